"""The memory of one queue pair: two descriptor rings and a buffer for each descriptor."""

from __future__ import annotations

import ctypes
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

    rx_tail, tx_tail and link_up are addresses in this process: of two registers, and of a uint32.
    frame_bytes_max is without FCS. windows is the address of a `WindowTable`.
    """

    rx: Ring
    tx: Ring
    rx_tail: int
    tx_tail: int
    buffer_bytes: int
    frame_bytes_max: int
    link_up: int
    windows: int


def lay_out(memory: DmaMemory) -> tuple[Ring, Ring]:
    """The receive and the transmit ring in MEMORY_BYTES of memory: the buffers first."""
    rx_size, tx_size = RX_COUNT * BUFFER_BYTES, TX_COUNT * BUFFER_BYTES
    rx_ring, tx_ring = rx_size + tx_size, rx_size + tx_size + RX_COUNT * DESCRIPTOR_BYTES

    def ring(descriptors: int, buffers: int, count: int) -> Ring:
        here, there = memory.address, memory.iova
        return Ring(here + descriptors, there + descriptors, here + buffers, there + buffers, count)

    return ring(rx_ring, 0, RX_COUNT), ring(tx_ring, rx_size, TX_COUNT)


class WindowTable:
    """Parts of VM1's memory that the VF reaches: RK_IGBVF_WINDOWS of struct rk_igbvf_window.

    Changed only while no loop runs the port.
    """

    capacity = 16

    def __init__(self) -> None:
        self._words = (ctypes.c_uint64 * (3 * self.capacity))()
        self.count = 0

    @property
    def address(self) -> int:
        """Of the table in this process, as long as it lives."""
        return ctypes.addressof(self._words)

    def append(self, address: int, size: int, iova: int) -> None:
        """One more; count must be less than capacity."""
        self._words[3 * self.count : 3 * self.count + 3] = [address, size, iova]
        self.count += 1

    def clear(self) -> None:
        """None any more."""
        ctypes.memset(self._words, 0, ctypes.sizeof(self._words))
        self.count = 0
