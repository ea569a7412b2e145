"""Writer of the state area: the shared memory of BAR 0 and its generation protocol.

docs/device.md 5. The memory is shared with whoever drives the function, so the device builds every
state in private memory and copies it out; of what is shared it reads what the driver writes only,
which lies behind the tables: the driver area, the miss table and the dirty map.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from driver.state_area import (
    DRIVER,
    GENERATION_OFFSET,
    HEADER,
    MAGIC,
    MEMORY,
    MISS,
    MISS_CAPACITY,
    PAGE_SIZE,
    RING,
    VERSION_MAJOR,
    VERSION_MINOR,
)
from tools.device.commit_area import COMMIT_SIZE
from tools.device.vm1_state import NOT_ANNOUNCED, Announcement, Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

BAR0_SIZE = 1 << 20
STATE_OFFSET = PAGE_SIZE
STATE_SIZE = BAR0_SIZE - STATE_OFFSET
RING_OFFSET = HEADER.itemsize
REFUSED_SIZE = MISS_CAPACITY * MISS.itemsize
DRIVER_OFFSET = (256 << 10) - STATE_OFFSET - DRIVER.itemsize
MISS_OFFSET = DRIVER_OFFSET + DRIVER.itemsize
DIRTY_SIZE = 512 << 10
DIRTY_OFFSET = STATE_SIZE - DIRTY_SIZE


@dataclass(frozen=True, slots=True)
class DriverArea:
    """What the driver wrote: hostile input."""

    heartbeat: int
    pid: int


class StateWriter:
    """Owns the memory of BAR 0; a file offset is an offset in BAR 0, page 0 of it is not used.

    Thread rule: one thread. `close` frees the file; what a client mapped lives on.

    Args:
        ring_count: Entries of the ring table, 1 to 512.
    """

    def __init__(self, ring_count: int) -> None:
        self.ring_count = ring_count
        self._refused_offset = RING_OFFSET + ring_count * RING.itemsize
        self._memory_offset = self._refused_offset + REFUSED_SIZE
        self.memory_capacity = (DRIVER_OFFSET - self._memory_offset) // MEMORY.itemsize
        self.generation = 0
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        self.fd = os.memfd_create("vhost-pci-state", flags)
        try:
            os.ftruncate(self.fd, BAR0_SIZE)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
            self._map = mmap.mmap(self.fd, BAR0_SIZE)
        except OSError:
            os.close(self.fd)
            raise

    def write(
        self,
        status: int,
        features: int,
        rings: npt.NDArray[np.void],
        memory: npt.NDArray[np.void],
        *,
        mtu: int = 0,
        dirty_shift: int = 0,
        refused: Sequence[Span] = (),
        window_serial: int = 0,
        announcement: Announcement = NOT_ANNOUNCED,
    ) -> int:
        """Publish a state; returns its generation, which is even.

        Args:
            status: `state_area.Status` bits.
            features: virtio feature bits.
            rings: ring_count items of dtype RING.
            memory: at most memory_capacity items of dtype MEMORY, sorted by bus address.
            mtu: VM1's, 0 if it was told none.
            dirty_shift: the dirty map's, 0 while nothing is to be marked.
            refused: what VM1's IOMMU does not have; at most MISS_CAPACITY.
            window_serial: changes with the windows.
            announcement: VM1's.
        """
        odd, even = (self.generation + 1) & 0xFFFFFFFF, (self.generation + 2) & 0xFFFFFFFF
        image = np.zeros(DRIVER_OFFSET, dtype=np.uint8)
        header = image[: HEADER.itemsize].view(HEADER)[0]
        header["magic"] = MAGIC
        header["major"], header["minor"] = VERSION_MAJOR, VERSION_MINOR
        header["generation"] = odd
        header["status"], header["features"] = status, features
        header["ring_offset"], header["ring_stride"] = RING_OFFSET, RING.itemsize
        header["ring_count"] = self.ring_count
        header["memory_offset"], header["memory_stride"] = self._memory_offset, MEMORY.itemsize
        header["memory_count"], header["memory_capacity"] = len(memory), self.memory_capacity
        header["driver_offset"], header["driver_size"] = DRIVER_OFFSET, DRIVER.itemsize
        header["commit_size"], header["mtu"] = COMMIT_SIZE, mtu
        if dirty_shift:
            header["dirty_offset"], header["dirty_size"] = DIRTY_OFFSET, DIRTY_SIZE
            header["dirty_shift"] = dirty_shift
        header["miss_offset"], header["miss_capacity"] = MISS_OFFSET, MISS_CAPACITY
        header["refused_offset"], header["refused_count"] = self._refused_offset, len(refused)
        header["window_serial"] = window_serial
        header["announced_address"], header["announcement"] = announcement
        self._place(image, self._refused_offset, _rows(refused), MISS_CAPACITY)
        self._place(image, RING_OFFSET, rings, self.ring_count)
        self._place(image, self._memory_offset, memory, self.memory_capacity)
        # docs/device.md 5.2. Each step is a store or a memcpy inside a call into C, so the compiler
        # keeps their order; x86 keeps the order of stores. A weaker machine needs release fences.
        self._store_generation(odd)
        self._map[STATE_OFFSET : STATE_OFFSET + DRIVER_OFFSET] = image.tobytes()
        self._store_generation(even)
        self.generation = even
        return even

    @staticmethod
    def _place(
        image: npt.NDArray[np.uint8], offset: int, table: npt.NDArray[np.void], limit: int
    ) -> None:
        if len(table) > limit:
            raise ValueError(f"{len(table)} entries in a table of {limit}")
        packed = np.frombuffer(table.tobytes(), dtype=np.uint8)
        image[offset : offset + len(packed)] = packed

    def _store_generation(self, value: int) -> None:
        # Native "I" copies four aligned bytes at once, one store; "<I" would store byte after byte.
        struct.pack_into("I", self._map, STATE_OFFSET + GENERATION_OFFSET, value)

    def driver_area(self) -> DriverArea:
        """Read the driver area once."""
        heartbeat, pid = struct.unpack_from("<QI", self._map, STATE_OFFSET + DRIVER_OFFSET)
        return DriverArea(heartbeat, pid)

    def clear_driver_area(self) -> None:
        """Forget the last driver's heartbeat and pid: its successor starts from zero."""
        start = STATE_OFFSET + DRIVER_OFFSET
        self._map[start : start + DRIVER.itemsize] = bytes(DRIVER.itemsize)

    def take_marks(self) -> npt.NDArray[np.intp]:
        """Which bytes of the dirty map are not 0, ascending; they are 0 from now on.

        A stored mark is never lost: one that is stored meanwhile either is in the answer, or stays.
        """
        start = STATE_OFFSET + DIRTY_OFFSET
        marks = np.frombuffer(self._map, np.uint8, DIRTY_SIZE, start)
        found = np.flatnonzero(marks)
        marks[found] = 0
        return found

    def misses(self, count: int) -> list[Span]:
        """The first count rows of the miss table, each read once: hostile input."""
        start = STATE_OFFSET + MISS_OFFSET
        count = min(count, MISS_CAPACITY)
        copied = self._map[start : start + count * MISS.itemsize]
        rows = MISS.rows(copied, count, MISS.itemsize)
        return [Span(*row) for row in rows if row[-1] in (1, 2, 3)]

    def read(self, offset: int, count: int) -> bytes:
        """Trapped read: what the client could read through its own mapping (offset in BAR 0)."""
        return self._map[offset : offset + count]

    def write_driver_area(self, offset: int, data: bytes) -> None:
        """Trapped write at an offset in BAR 0; in front of the driver area without effect."""
        start = STATE_OFFSET + DRIVER_OFFSET
        skip = max(0, start - offset)
        kept = data[skip:]
        self._map[offset + skip : offset + skip + len(kept)] = kept

    def close(self) -> None:
        """Twice is fine."""
        if not self._map.closed:
            self._map.close()
            os.close(self.fd)


def _rows(spans: Sequence[Span]) -> npt.NDArray[np.void]:
    table = np.zeros(len(spans), dtype=MISS)
    for row, span in zip(table, spans, strict=True):
        row["address"], row["length"], row["permission"] = span
    return table
