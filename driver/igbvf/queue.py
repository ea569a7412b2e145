"""The memory of one queue pair: two descriptor rings and a buffer for each descriptor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guest.dma import DmaMemory

DESCRIPTOR_BYTES = 16
BUFFER_BYTES = 2048  # SRRCTL takes whole KiB
RX_COUNT = 512
TX_COUNT = 256
MEMORY_BYTES = (RX_COUNT + TX_COUNT) * (DESCRIPTOR_BYTES + BUFFER_BYTES)


@dataclass(frozen=True, slots=True)
class Ring:
    """One ring: where it and its buffers are, here (address) and for the VF (iova)."""

    address: int
    iova: int
    buffers: int
    buffers_iova: int
    count: int

    @property
    def size(self) -> int:
        """Of the descriptors, in bytes."""
        return self.count * DESCRIPTOR_BYTES


@dataclass(frozen=True, slots=True)
class QueuePair:
    """What pmd/csrc/port_igbvf.c works with: struct rk_igbvf_config. All stays the VF's.

    rx_tail, tx_tail, interrupts_on, interrupts_off, link_up and report are addresses in this
    process: of four registers, a uint32 and a `driver.igbvf.report.Report`. wake_fd is readable
    after an interrupt of the receive queue, -1 if it has none. frame_bytes_max is without FCS.
    windows is the address of a `driver.passthrough.WindowTable`. direct_bytes is the room that a
    buffer of VM1's must have for the VF to receive into it, 0 if it must not at all.
    """

    rx: Ring
    tx: Ring
    rx_tail: int
    tx_tail: int
    buffer_bytes: int
    frame_bytes_max: int
    link_up: int
    windows: int
    report: int
    direct_bytes: int
    interrupts_on: int
    interrupts_off: int
    wake_fd: int


def lay_out(memory: DmaMemory) -> tuple[Ring, Ring]:
    """The receive and the transmit ring in MEMORY_BYTES of memory: the buffers first."""
    rx_size, tx_size = RX_COUNT * BUFFER_BYTES, TX_COUNT * BUFFER_BYTES
    rx_ring, tx_ring = rx_size + tx_size, rx_size + tx_size + RX_COUNT * DESCRIPTOR_BYTES

    def ring(descriptors: int, buffers: int, count: int) -> Ring:
        here, there = memory.address, memory.iova
        return Ring(here + descriptors, there + descriptors, here + buffers, there + buffers, count)

    return ring(rx_ring, 0, RX_COUNT), ring(tx_ring, rx_size, TX_COUNT)
