"""A vhost-pci function in memory that bites: it refuses what docs/device.md and VFIO refuse."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from driver.state_area import (
    CLASS_CODE,
    DEVICE_ID,
    HEADER,
    MAGIC,
    MEMORY,
    PAGE_SIZE,
    RING,
    VENDOR_ID,
    Register,
)
from guest.closing import Closing
from guest.errors import VhostPciError
from guest.function import Area, Doorbell, Identity, Region, RegionInfo
from guest.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STATE_SIZE = 0x8000
RING_OFFSET, MEMORY_OFFSET, DRIVER_OFFSET = 0x200, 0x1000, 0x7000
RING_STRIDE, MEMORY_STRIDE, MEMORY_CAPACITY = 80, 32, 128  # strides: a later minor's may be larger


class FakeFunction(Closing):
    """A device with one file of VM1 behind window 2, changed by attributes and `publish`.

    map_count: areas mapped and not closed yet. writes: what the driver wrote to registers.
    sleeps: the driver may set interrupts, which are in `interrupts`. vectors: how many MSI has.
    kicks: eventfds of the function's own, by offset.
    on_region: called at each GET_REGION_INFO of a window: a test can change the world there.
    """

    def __init__(self, *, whole_bar0: bool = False) -> None:
        self.name = "fake"
        self.identity_now = Identity(VENDOR_ID, DEVICE_ID, CLASS_CODE, 1, VENDOR_ID, DEVICE_ID)
        self.command = 0x0400
        self.gone = False
        self.writes: list[tuple[int, int]] = []
        self.sleeps = False
        self.vectors = 8
        self.interrupts: tuple[int, ...] = ()
        self.kicks: dict[int, int] = {}
        self.on_region: Callable[[int], None] | None = None
        self.mappings: list[Mapping] = []
        self.registers = {
            Register.MAGIC: MAGIC,
            Register.VERSION: 0x00010000,
            Register.STATE_OFFSET: PAGE_SIZE,
            Register.STATE_SIZE: STATE_SIZE,
            Register.QUEUE_COUNT: 4,
        }
        self._bar0 = os.memfd_create("bar0", os.MFD_CLOEXEC)
        os.ftruncate(self._bar0, PAGE_SIZE + STATE_SIZE)
        area = Area(0, PAGE_SIZE + STATE_SIZE) if whole_bar0 else Area(PAGE_SIZE, STATE_SIZE)
        self.regions = {0: RegionInfo(0, 0x10000, True, True, (area,))}
        self.files: dict[int, int] = {0: self._bar0}
        self.header: dict[str, int] = {
            "magic": MAGIC,
            "minor": 7,
            "major": 1,
            "ring_offset": RING_OFFSET,
            "ring_stride": RING_STRIDE,
            "memory_offset": MEMORY_OFFSET,
            "memory_stride": MEMORY_STRIDE,
            "memory_capacity": MEMORY_CAPACITY,
            "driver_offset": DRIVER_OFFSET,
            "driver_size": PAGE_SIZE,
        }
        self.rings: list[tuple[int, ...]] = []
        self.memory: list[tuple[int, ...]] = []
        self.publish(2)

    def add_window(self, index: int, *areas: Area, writable: bool = True) -> None:
        """A window of these areas, backed by a new file."""
        size = max(area.offset + area.size for area in areas)
        if index in self.files:
            os.close(self.files[index])
        self.files[index] = os.memfd_create(f"window{index}", os.MFD_CLOEXEC)
        os.ftruncate(self.files[index], size)
        self.regions[index] = RegionInfo(index, size, True, writable, tuple(areas))

    def publish(self, generation: int) -> None:
        """Write the state area as the attributes say, under this generation."""
        self._store(0x08, struct.pack("<I", generation | 1))
        header = np.zeros(1, HEADER)
        counts = {"ring_count": len(self.rings), "memory_count": len(self.memory)}
        for field, value in (counts | self.header).items():
            header[field] = value
        header["generation"] = generation | 1
        self._store(0, header.tobytes())
        self._store_table(RING_OFFSET, RING_STRIDE, np.array(self.rings, RING))
        self._store_table(MEMORY_OFFSET, MEMORY_STRIDE, np.array(self.memory, MEMORY))
        self._store(0x08, struct.pack("<I", generation))

    def _store_table(self, offset: int, stride: int, table: np.ndarray[Any, Any]) -> None:
        for index, entry in enumerate(table):
            self._store(offset + index * stride, entry.tobytes())

    def _store(self, offset: int, data: bytes) -> None:
        os.pwrite(self._bar0, data, PAGE_SIZE + offset)

    def state_area(self, offset: int, size: int) -> bytes:
        """What is in the state area."""
        return os.pread(self._bar0, size, PAGE_SIZE + offset)

    @property
    def map_count(self) -> int:
        return sum(not mapping._map.closed for mapping in self.mappings)

    def fileno(self) -> int:
        return self._bar0

    def identity(self) -> Identity:
        return (
            Identity(0xFFFF, 0xFFFF, 0xFFFFFF, 255, 0xFFFF, 0xFFFF)
            if self.gone
            else (self.identity_now)
        )

    def region_count(self) -> int:
        return max(9, *(index + 1 for index in self.regions))

    def region(self, index: int) -> RegionInfo:
        if not 0 <= index < self.region_count():
            raise VhostPciError("ask for", f"region {index}", "invalid argument")
        if (index in (2, 4) or index >= 9) and self.on_region:
            self.on_region(index)
        return self.regions.get(index, RegionInfo(index, 0, False, False, ()))

    def read(self, index: int, offset: int, size: int) -> bytes:
        if index == Region.CONFIG:
            ids = struct.pack("<HH", VENDOR_ID, DEVICE_ID)
            # The ids are vfio-pci's own copy, whatever the function answers.
            config = ids + b"\xff" * 8
            if not self.gone:
                class_code = self.identity_now.class_code << 8 | self.identity_now.revision
                config = ids + struct.pack("<HHI", self.command, 0, class_code)
            assert offset + size <= len(config)
            return config[offset : offset + size]
        if self.gone:
            return b"\xff" * size
        assert index == Region.BAR0
        value = self.registers.get(Register(offset), 0) if size == 4 and offset % 4 == 0 else 0
        return struct.pack("<I", value)[:size]

    def write(self, index: int, offset: int, data: bytes) -> None:
        if index == Region.CONFIG:
            assert (offset, len(data)) == (4, 2)
            self.command = struct.unpack("<H", data)[0]
            return
        assert (index, len(data), offset % 4) == (0, 4, 0), "4: 32-bit, naturally aligned"
        self.writes.append((offset, struct.unpack("<I", data)[0]))

    def map_area(self, index: int, area: Area, *, writable: bool) -> Mapping:
        info = self.regions[index]
        if area.offset % PAGE_SIZE or area.size % PAGE_SIZE:
            raise VhostPciError("map", f"region {index}", "not page aligned")
        if writable and not info.writable:
            raise VhostPciError("map", f"region {index}", "permission denied")
        if not any(
            each.offset <= area.offset and area.offset + area.size <= each.offset + each.size
            for each in info.areas
        ):
            raise VhostPciError("map", f"region {index}", "not a mappable area")
        mapping = Mapping(
            self.files[index], area.size, area.offset, writable=writable, name=f"region {index}"
        )
        self.mappings.append(mapping)
        return mapping

    def doorbells(self, index: int, offsets: Sequence[int]) -> dict[int, Doorbell]:
        assert index == Region.BAR0
        assert all(0x800 <= offset < 0x810 and offset % 4 == 0 for offset in offsets)
        return {offset: Doorbell(self._bar0, offset) for offset in offsets}

    def irq_count(self, index: int) -> int:
        return self.vectors if index == 1 else 0

    def events(self, index: int, offsets: Sequence[int]) -> dict[int, int]:
        assert index == Region.BAR0
        return {offset: self.kicks[offset] for offset in offsets if offset in self.kicks}

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        assert self.sleeps, f"a polling driver set {len(eventfds)} vectors of interrupt {index}"
        assert (index, len(eventfds) <= self.vectors) == (1, True)
        self.interrupts = tuple(eventfds)

    def reset(self) -> None:
        self.command = 0

    def dma_map(self, address: int, size: int, iova: int, *, writable: bool) -> None:
        raise AssertionError(f"DMA to {address:#x}+{size:#x} as {iova:#x}, writable {writable}")

    def dma_unmap(self, iova: int, size: int) -> None:
        raise AssertionError(f"{size:#x} bytes at {iova:#x} were never mapped")

    def close(self) -> None:
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()
