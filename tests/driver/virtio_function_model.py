"""A virtio network function in memory: registers, features, queues that come and go, DMA.

The notification structure lies in a file, so that the driver's mapping is the model's memory. All
other registers are reached by trapped accesses of their own widths. What breaks a rule is noted in
`faults`.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from typing import TYPE_CHECKING

from driver.virtio_net.features import Feature
from guest.errors import VhostPciError
from guest.function import Area, Identity, Irq, Region, RegionInfo
from guest.mapping import Mapping
from tests.driver.dma_model import DmaModel
from tests.driver.virtio_ring_model import PackedModel, SplitModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest.function import Doorbell
    from tests.driver.virtio_ring_model import RingModel

BAR_SIZE = 0x4000
COMMON, NOTIFY, DEVICE, ISR = 0x0000, 0x3000, 0x2000, 0x1000
MULTIPLIER = 4
UNWRITTEN = NO_VECTOR = 0xFFFF
WIDTHS = {0x00: 4, 0x04: 4, 0x08: 4, 0x0C: 4, 0x10: 2, 0x12: 2, 0x14: 1, 0x15: 1, 0x16: 2, 0x18: 2}
WIDTHS |= dict.fromkeys((0x1A, 0x1C, 0x1E, 0x3A), 2) | dict.fromkeys(range(0x20, 0x38, 4), 4)
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
OFFER = (
    Feature.VERSION_1 | Feature.ACCESS_PLATFORM | Feature.MAC | Feature.STATUS | Feature.MRG_RXBUF
    | Feature.CTRL_VQ | Feature.CTRL_RX | Feature.CTRL_MAC_ADDR
    | 1 << 28 | 1 << 29  # indirect descriptors and event indices, which we do without
)  # fmt: skip


class VirtioFunctionModel(DmaModel):
    """One function, as an open one; what its queues hold is left to `VirtioNetModel`.

    Attributes:
        offer: Feature bits. size_max: Of queues, by number; `default_size` of others.
        mac, mtu, pairs: Its configuration. gone: All ones.
        stops: Whether a queue that is reset stops (RING_RESET).
        irq_max: MSI-X vectors that the function has. vectors: How many of them the device can use.
        irqs: Eventfds, by vector. interrupts: How many were raised.
        request: Eventfd by which the kernel wants it back.
    """

    name = "0000:01:00.0"

    def __init__(self, offer: int = OFFER) -> None:
        super().__init__()
        self.offer = offer
        self.default_size = 256
        self.size_max: dict[int, int] = {}
        self.mac = bytes.fromhex("525400123456")
        self.mtu = 1500
        self.pairs = 1
        self.link = 1
        self.generation = 0
        self.refuses_features = False
        self.resets = True
        self.stops = True
        self.irq_max = self.vectors = 4
        self.irqs: tuple[int, ...] = ()
        self.interrupts = 0
        self.gone = False
        self.closed = False
        self.identity_now = Identity(0x1AF4, 0x1041, 0x020000, 1, 0x1AF4, 0x1100)
        self.config = self._make_config()
        self.request = os.eventfd(0, os.EFD_CLOEXEC)
        self._file = os.memfd_create("notify", os.MFD_CLOEXEC)
        os.ftruncate(self._file, mmap.PAGESIZE)
        self._notify = mmap.mmap(self._file, mmap.PAGESIZE)
        self._notify[:] = b"\xff" * mmap.PAGESIZE
        self.mappings: list[Mapping] = []
        self._forget()

    def _forget(self) -> None:
        self.status = 0
        self.accepted = 0
        self.rings: dict[int, RingModel] = {}
        self.active_pairs = 1
        self._stopped: set[int] = set()
        self._selects = {0x00: 0, 0x08: 0, 0x16: 0}
        self._queue: dict[tuple[int, int], int] = {}

    def _make_config(self) -> bytearray:
        config = bytearray(256)
        struct.pack_into("<H", config, 0x06, 1 << 4)
        config[0x34] = 0x98
        capabilities = [
            struct.pack("<BBBBBxxxII", 0x09, 0x84, 16, 5, 0, 0, 0),  # access by configuration space
            struct.pack("<BBBBBxxxIII", 0x09, 0x70, 20, 2, 4, NOTIFY, 0x1000, MULTIPLIER),
            struct.pack("<BBBBBxxxII", 0x09, 0x60, 16, 4, 4, DEVICE, 0x1000),
            struct.pack("<BBBBBxxxII", 0x09, 0x50, 16, 3, 4, ISR, 0x1000),
            struct.pack("<BBBBBxxxII", 0x09, 0x40, 16, 1, 4, COMMON, 0x1000),
            struct.pack("<BB10x", 0x11, 0),
        ]
        for offset, capability in zip(
            (0x98, 0x84, 0x70, 0x60, 0x50, 0x40), capabilities, strict=True
        ):
            config[offset : offset + len(capability)] = capability
        return config

    # ---- guest.function.Function: registers

    def fileno(self) -> int:
        return self.request

    def identity(self) -> Identity:
        return self.identity_now

    def region_count(self) -> int:
        return 9

    def region(self, index: int) -> RegionInfo:
        size = BAR_SIZE if index == Region.BAR4 else 0
        areas = (Area(NOTIFY, mmap.PAGESIZE),) if size else ()
        return RegionInfo(index, size, True, True, areas)

    def read(self, index: int, offset: int, size: int) -> bytes:
        if self.gone:
            return b"\xff" * size
        if index == Region.CONFIG:
            return bytes(self.config[offset : offset + size])
        assert index == Region.BAR4
        if DEVICE <= offset < DEVICE + 0x1000:
            return self._read_device(offset - DEVICE, size)
        assert WIDTHS[offset] == size, f"{offset:#x} has {WIDTHS[offset]} bytes, not {size}"
        return self._read_common(offset).to_bytes(size, "little")

    def _read_device(self, offset: int, size: int) -> bytes:
        assert size == (1 if offset < 6 else 2)
        assert offset < 6 or offset % 2 == 0
        whole = struct.pack("<6sHHH", self.mac, self.link, self.pairs, self.mtu)
        return whole[offset : offset + size]

    def _read_common(self, offset: int) -> int:
        number = self._selects[0x16]
        registers = {
            0x04: self.offer >> 32 * self._selects[0x00] & 0xFFFFFFFF,
            0x12: 2 * self.pairs + 1,
            0x14: self.status,
            0x15: self.generation % 256,
            0x18: self._queue.get((number, 0x18), self._size_max(number)),
            0x1A: self._queue.get((number, 0x1A), NO_VECTOR),
            0x1C: int(number in self.rings),
            0x1E: number,
            0x3A: int(not self.stops),
        }
        return registers[offset]

    def _size_max(self, number: int) -> int:
        there = number < 2 * self.pairs + 1
        return self.size_max.get(number, self.default_size) if there else 0

    def write(self, index: int, offset: int, data: bytes) -> None:
        assert index == Region.BAR4
        value = int.from_bytes(data, "little")
        if NOTIFY <= offset < NOTIFY + 0x1000:
            assert len(data) == 2
            assert offset == NOTIFY + MULTIPLIER * value
            self.control(value)
            return
        assert WIDTHS[offset] == len(data), f"{offset:#x} has {WIDTHS[offset]} bytes"
        number = self._selects[0x16]
        if offset in self._selects:
            self._selects[offset] = value
        elif offset == 0x0C:
            half = 32 * self._selects[0x08]
            self.accepted = self.accepted & ~(0xFFFFFFFF << half) | value << half
        elif offset == 0x14:
            self._write_status(value)
        elif offset == 0x1C:
            self._enable(number)
        elif offset == 0x3A:
            self._reset_queue(number)
        elif offset in (0x10, 0x1A):
            self._queue[number, offset] = value if value < self.vectors else NO_VECTOR
            if value != NO_VECTOR and (offset == 0x10 or value >= len(self.irqs)):
                self.faults.append(f"interrupt vector {value}")
        else:
            if not 0x18 <= offset < 0x38:
                self.faults.append(f"a write at {offset:#x}")
            self._queue[number, offset] = value

    def _write_status(self, value: int) -> None:
        if value == 0:
            if self.resets:
                self._forget()
            return
        if self.status & ~value:
            self.faults.append(f"status {value:#x} after {self.status:#x}")
        if value & FEATURES_OK and not self.status & FEATURES_OK:
            if self.accepted & ~self.offer:
                self.faults.append(f"features {self.accepted:#x} of {self.offer:#x}")
            if self.refuses_features:
                value &= ~FEATURES_OK
        self.status = value

    def control(self, number: int) -> None:
        """A queue was notified by a trapped access."""
        raise NotImplementedError

    def _reset_queue(self, number: int) -> None:
        """2.6.1."""
        if not self.accepted & Feature.RING_RESET or number not in self.rings:
            self.faults.append(f"queue {number} is reset")
        if self.stops:
            del self.rings[number]
            self._stopped.add(number)
            struct.pack_into("<H", self._notify, MULTIPLIER * number, UNWRITTEN)

    def _enable(self, number: int) -> None:
        (notified,) = struct.unpack_from("<H", self._notify, MULTIPLIER * number)
        if number in self._stopped and notified != UNWRITTEN:
            self.faults.append(f"queue {number} is notified while it is stopped")
        due = FEATURES_OK | DRIVER_OK if number in self._stopped else FEATURES_OK
        if self.status & (FEATURES_OK | DRIVER_OK) != due or number in self.rings:
            self.faults.append(f"queue {number} is enabled with status {self.status:#x}")
        size = self._queue.get((number, 0x18), self._size_max(number))
        if size > self._size_max(number) or size & size - 1:
            self.faults.append(f"queue {number} has {size} entries")
        areas = [
            self._queue[number, at] | self._queue[number, at + 4] << 32 for at in (0x20, 0x28, 0x30)
        ]
        packed = bool(self.accepted & Feature.RING_PACKED)
        for area, alignment in zip(areas, (16, 4, 4) if packed else (16, 2, 4), strict=True):
            if area % alignment:
                self.faults.append(f"an area of queue {number} at {area:#x}")
        make = PackedModel if packed else SplitModel
        in_order = bool(self.accepted & Feature.IN_ORDER)
        self.rings[number] = make(self.memory, size, areas, self.faults, in_order=in_order)

    # ---- the rest of guest.function.Function

    def map_area(self, index: int, area: Area, *, writable: bool) -> Mapping:
        assert (index, area) == (Region.BAR4, Area(NOTIFY, mmap.PAGESIZE))
        mapping = Mapping(self._file, area.size, 0, writable=writable, name="notify")
        self.mappings.append(mapping)
        return mapping

    def doorbells(self, index: int, offsets: Sequence[int]) -> dict[int, Doorbell]:
        raise VhostPciError("ring", self.name, f"region {index} has no doorbells at {offsets}")

    def events(self, index: int, offsets: Sequence[int]) -> dict[int, int]:
        raise VhostPciError("wait for", self.name, f"region {index} has no events at {offsets}")

    def irq_count(self, index: int) -> int:
        return self.irq_max if index == Irq.MSIX else 0

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        if index != Irq.MSIX or len(eventfds) > self.irq_max:
            raise VhostPciError("arm", self.name, f"interrupt {index}, {eventfds}")
        self.irqs = tuple(eventfds)

    def interrupt(self, number: int) -> None:
        """Tell the driver of what a queue has used, if it wants to know."""
        vector = self._queue.get((number, 0x1A), NO_VECTOR)
        # 2.7.7.2's fence: CPython's lock operations between the two accesses are full ones.
        threading.Lock().acquire()
        if vector != NO_VECTOR and self.rings[number].wants_interrupts:
            self.interrupts += 1
            os.eventfd_write(self.irqs[vector], 1)

    def reset(self) -> None:
        self._forget()

    def _check_unused(self, iova: int, size: int) -> None:
        """No queue lies there, and no buffer of one."""
        for number, ring in self.rings.items():
            if iova <= ring.descriptors < iova + size:
                self.faults.append(f"memory is taken away from queue {number}")
            for chain in ring.given():
                if any(iova <= at < iova + size for at, _, _ in chain.parts):
                    self.faults.append(f"a window is taken away from frames of queue {number}")

    def close(self) -> None:
        self.closed = True

    def dispose(self) -> None:
        """The machine is gone."""
        self._notify.close()
        os.close(self._file)
        os.close(self.request)
