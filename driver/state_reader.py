"""The state area as the driver reads it: generations and copies of tables (docs/device.md 5)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from driver.device_state import Announcement
from driver.state_area import (
    COMMIT,
    DIRTY_SHIFT_MIN,
    DRIVER,
    GENERATION_OFFSET,
    HEADER,
    MAGIC,
    MEMORY,
    MISS,
    PAGE_SIZE,
    QUEUE_COUNT_MAX,
    RING,
    VERSION_MAJOR,
)
from guest.errors import VhostPciError
from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from driver.record import Record
    from guest.mapping import Mapping

_COMMIT_SIZE_MAX = 1 << 20  # of a later minor version; ours has 8 KiB
ADDRESS_BITS = 64
_RETRY_S = 0.0001  # the device writes for microseconds


class Tables(NamedTuple):
    """Private copies of one even generation: header fields by name, rows of RING, MEMORY, MISS."""

    generation: int
    header: dict[str, int]
    rings: list[tuple[int, ...]]
    memory: list[tuple[int, ...]]
    refused: list[tuple[int, ...]]

    @property
    def announcement(self) -> Announcement:
        """What VM1's VMM asks for (docs/device.md 5.9)."""
        address = self.header["announced_address"].to_bytes(8, "little")[:6]
        return Announcement(address, self.header["announcement"])

    @property
    def windows(self) -> set[int]:
        """Those that the memory table names."""
        return {window for _, _, _, window, _ in self.memory}


def version_error(name: str, major: int) -> VhostPciError:
    """What a driver says to a device of another major version (docs/device.md 9)."""
    cause = f"the device speaks version {major}, this driver version {VERSION_MAJOR}"
    remedy = "use a device and a driver of the same major version"
    return VhostPciError("attach to", name, cause, remedy)


class StateReader:
    """Reads a state area that the device may be writing.

    Args:
        mapping: Of at least size bytes; borrowed.
        size: STATE_SIZE.
        name: The function's, for messages.
    """

    def __init__(self, mapping: Mapping, size: int, name: str) -> None:
        self._mapping = mapping
        self._size = size
        self._name = name

    def generation(self) -> int:
        """The generation now; odd while the device writes."""
        return self._mapping.load(GENERATION_OFFSET)

    def snapshot(self, deadline: float) -> Tables:
        """The tables of one even generation, waiting for one until deadline (time.monotonic).

        The order of reading is the interpreter's program order: this is the control path, and the
        poll loop looks at the generation again, with acquire, before the first burst.

        Raises:
            VhostPciError: The state area contradicts itself or does not come to rest.
        """
        while True:
            before = self.generation()
            if before % 2 == 0:
                try:
                    tables = self._copy(before)
                except VhostPciError:
                    # A header torn between two generations need not make sense.
                    if self.generation() == before:
                        raise
                else:
                    if self.generation() == before:
                        return tables
            self.check_deadline(deadline)
            time.sleep(_RETRY_S)

    def check_deadline(self, deadline: float) -> None:
        """VhostPciError if it has passed."""
        if time.monotonic() > deadline:
            cause = "the device does not stop changing it"
            raise VhostPciError("read", f"the state of {self._name}", cause)

    def _copy(self, generation: int) -> Tables:
        header = self.header()
        rings = self._copy_table(header, "ring", RING)
        memory = self._copy_table(header, "memory", MEMORY)
        start, count = header["refused_offset"], header["refused_count"]
        refused = MISS.rows(self._mapping.read(start, count * MISS.itemsize), count, MISS.itemsize)
        return Tables(generation, header, rings, memory, refused)

    def _copy_table(
        self, header: dict[str, int], section: str, record: Record
    ) -> list[tuple[int, ...]]:
        count, stride = header[f"{section}_count"], header[f"{section}_stride"]
        copied = self._mapping.read(header[f"{section}_offset"], count * stride)
        return record.rows(copied, count, stride)

    def header(self) -> dict[str, int]:
        """A private copy of the header, its every section checked to lie in the state area.

        Raises:
            VhostPciError: It contradicts itself, or is of another major version.
        """
        (row,) = HEADER.rows(self._mapping.read(0, HEADER.itemsize), 1, HEADER.itemsize)
        header = dict(zip(HEADER.names, row, strict=True))
        if header["magic"] != MAGIC:
            raise self._contradiction(f"its magic is {header['magic']:#x}, not {MAGIC:#x}")
        if header["major"] != VERSION_MAJOR:
            raise version_error(self._name, header["major"])
        if header["ring_count"] > QUEUE_COUNT_MAX:
            raise self._contradiction(f"it has {header['ring_count']} rings")
        if header["memory_count"] > header["memory_capacity"]:
            raise self._contradiction("its memory table is longer than its capacity")
        self._check_section(header, "ring", header["ring_count"], RING.itemsize)
        self._check_section(header, "memory", header["memory_capacity"], MEMORY.itemsize)
        start, size = header["driver_offset"], header["driver_size"]
        if start % PAGE_SIZE or size < DRIVER.itemsize or start + size > self._size:
            raise self._contradiction(f"its driver area is {size} bytes at {start:#x}")
        size = header["commit_size"]
        if 0 < size < header["ring_count"] * COMMIT.itemsize or size > _COMMIT_SIZE_MAX:
            raise self._contradiction(f"its commit area has {size} bytes")
        self._check_dirty(header)
        for section, count in (("miss", "miss_capacity"), ("refused", "refused_count")):
            start, rows = header[f"{section}_offset"], header[count]
            if start + rows * MISS.itemsize > self._size:
                raise self._contradiction(f"its {section} table is {rows} entries at {start:#x}")
        return header

    def _check_dirty(self, header: dict[str, int]) -> None:
        start, size = header["dirty_offset"], header["dirty_size"]
        shift = header["dirty_shift"]
        if start and (start + size > self._size or not DIRTY_SHIFT_MIN <= shift < ADDRESS_BITS):
            cause = f"its dirty map is {size} bytes at {start:#x}, of 2^{shift} each"
            raise self._contradiction(cause)

    def _check_section(
        self, header: dict[str, int], section: str, count: int, item_size: int
    ) -> None:
        start, stride = header[f"{section}_offset"], header[f"{section}_stride"]
        if stride < item_size or start + stride * count > self._size:
            cause = f"its {section} table is {count} entries of {stride} bytes at {start:#x}"
            raise self._contradiction(cause)

    def _contradiction(self, cause: str) -> VhostPciError:
        remedy = "the device is at fault: see its log"
        return VhostPciError("use", f"the state area of {self._name}", cause, remedy)
