"""VM1's I/O virtual addresses, as far as its front-end has told them (docs/device.md 5.8).

What VM1's descriptors hold under VIRTIO_F_ACCESS_PLATFORM is translated by its IOMMU, which its VMM
plays: it answers misses by updates, and takes them back by invalidations. Neighbours that continue
each other are one entry. Reference: QEMU's docs/interop/vhost-user.rst, "IOMMU support".
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from driver.state_area import Permission
from tools.device.backend_rules import Reason, RefusalError
from tools.device.memory_table import ADDRESS_LIMIT
from tools.device.vm1_state import Translation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.device.memory_table import MemoryTable
    from tools.device.vm1_state import MemoryFile

CAPACITY = 2048  # entries; fewer than the state area has room for
READ, WRITE = Permission.READ, Permission.WRITE


class _Entry(NamedTuple):
    """I/O virtual addresses from start to end are user addresses, delta further on."""

    start: int
    end: int
    delta: int
    permission: int
    stamp: int


class Iotlb:
    """The translations of one connection, bounded. Thread rule: one thread.

    Args:
        capacity: Entries; where there are more, the one that changed longest ago is forgotten.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._entries: list[_Entry] = []
        self._stamp = 0
        self._shown: tuple[int, MemoryTable, Translations] | None = None
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._entries)

    def update(
        self,
        iova: int,
        size: int,
        user: int,
        permission: int,
        keep: Sequence[tuple[int, int]] = (),
    ) -> bool:
        """Take a translation in; what was known of these addresses and differs is replaced.

        A permission that was known of the same translation stays.

        Args:
            iova: First I/O virtual address.
            size: How many bytes.
            user: The user address that the first is.
            permission: 1 read, 2 write.
            keep: First addresses and sizes that are not to be forgotten for it.

        Returns:
            Whether it took anything away.

        Raises:
            RefusalError: It is empty, passes 2^64, or permits nothing. Nothing has changed.
        """
        end = iova + size
        if size == 0 or end > ADDRESS_LIMIT or user + size > ADDRESS_LIMIT:
            text = f"translates {size} bytes at {iova:#x} to {user:#x}"
            raise RefusalError(Reason.IOTLB, text)
        if not 0 < permission <= READ | WRITE:
            raise RefusalError(Reason.IOTLB, f"gives permission {permission}")
        delta, at, taken = user - iova, iova, False
        self._stamp += 1
        for old in self._cut(iova, end):
            taken |= old.delta != delta
            if old.delta == delta and old.permission & ~permission:
                self._insert(at, old.start, delta, permission)
                self._insert(old.start, old.end, delta, permission | old.permission)
                at = old.end
        self._insert(at, end, delta, permission)
        return self._limit(keep) or taken

    def invalidate(self, iova: int, size: int, keep: Sequence[tuple[int, int]] = ()) -> None:
        """Forget these addresses; size 0, or beyond the last address: all from there on."""
        self._stamp += 1
        end = iova + size if size else ADDRESS_LIMIT
        self._cut(iova, min(end, ADDRESS_LIMIT))
        self._limit(keep)

    def clear(self) -> None:
        """Forget everything."""
        self.invalidate(0, ADDRESS_LIMIT)

    def covers(self, iova: int, permission: int) -> bool:
        """Whether an address is known, with all of a permission."""
        index = self._after(iova)
        entry = self._entries[index] if index < len(self._entries) else None
        return bool(entry and entry.start <= iova and not permission & ~entry.permission)

    def translations(self, table: MemoryTable) -> Translations:
        """What of it lies in VM1's memory table; the same object until something changes."""
        shown = self._shown
        if shown is None or shown[0] != self._stamp or shown[1] is not table:
            shown = (self._stamp, table, Translations(self._pieces(table)))
            self._shown = shown
        return shown[2]

    def _pieces(self, table: MemoryTable) -> tuple[Translation, ...]:
        regions = sorted(table.regions, key=lambda region: region.user)
        pieces = []
        for entry in self._entries:
            for region in regions:
                start = max(entry.start + entry.delta, region.user)
                end = min(entry.end + entry.delta, region.user + region.size)
                if start < end:
                    inside = start - region.user
                    pieces.append(
                        Translation(
                            start - entry.delta,
                            end - start,
                            region.bus + inside,
                            region.file,
                            region.file_offset + inside,
                            entry.permission,
                        )
                    )
        return tuple(pieces)

    def _after(self, address: int) -> int:
        """Index of the first entry that ends behind an address."""
        return bisect_right(self._entries, address, key=lambda entry: entry.end)

    def _cut(self, start: int, end: int) -> list[_Entry]:
        """Take the addresses out; the parts of entries that they were."""
        first = last = self._after(start)
        removed, left = [], []
        while last < len(self._entries) and (old := self._entries[last]).start < end:
            removed.append(old._replace(start=max(old.start, start), end=min(old.end, end)))
            if old.start < start:
                left.append(old._replace(end=start))
            if old.end > end:
                left.append(old._replace(start=end))
            last += 1
        self._entries[first:last] = left
        return removed

    def _insert(self, start: int, end: int, delta: int, permission: int) -> None:
        """Add addresses that no entry has, as part of the neighbours that they continue."""
        if start >= end:
            return
        index = self._after(start)
        entry = _Entry(start, end, delta, permission, self._stamp)
        if index < len(self._entries) and _continue(entry, self._entries[index]):
            entry = entry._replace(end=self._entries.pop(index).end)
        if index and _continue(self._entries[index - 1], entry):
            index -= 1
            entry = entry._replace(start=self._entries.pop(index).start)
        self._entries.insert(index, entry)

    def _limit(self, keep: Sequence[tuple[int, int]]) -> bool:
        """Forget what is too much; whether that was anything."""
        forgotten = self.forgotten
        while len(self._entries) > self._capacity:
            free = [e for e in self._entries if not _any_in(e, keep)] or self._entries
            self._entries.remove(min(free, key=lambda entry: entry.stamp))
            self.forgotten += 1
        return self.forgotten != forgotten


def _continue(entry: _Entry, other: _Entry) -> bool:
    """Whether the other goes on where an entry ends, in all respects."""
    return (entry.end, entry.delta, entry.permission) == (
        other.start,
        other.delta,
        other.permission,
    )


def _any_in(entry: _Entry, places: Sequence[tuple[int, int]]) -> bool:
    return any(start < entry.end and entry.start < start + size for start, size in places)


@dataclass(frozen=True, slots=True)
class Translations:
    """Sorted by I/O virtual address, none overlapping another: looked up as a memory table is."""

    all: tuple[Translation, ...] = ()

    def bus_address(self, address: int, size: int, *, write: bool) -> int | None:
        """The address itself, if these bytes are known, readable, and as one run of a file.

        write: they have to be writable too.
        """
        needed = READ | WRITE if write else READ
        return None if self._locate(address, size, needed) is None else address

    def locate(self, bus: int, size: int) -> tuple[MemoryFile, int] | None:
        """File and file offset of these bytes, if they are one run of a file."""
        return self._locate(bus, size, 0)

    def _locate(self, bus: int, size: int, needed: int) -> tuple[MemoryFile, int] | None:
        index = bisect_right(self.all, bus, key=lambda each: each.bus) - 1
        if index < 0 or bus >= self.all[index].bus + self.all[index].size:
            return None
        first = self.all[index]
        begin = first.file_offset + bus - first.bus
        at, offset = bus, begin
        for each in self.all[index:]:
            runs_on = (each.file, each.file_offset + at - each.bus) == (first.file, offset)
            if each.bus > at or not runs_on or needed & ~each.permission:
                return None
            step = each.bus + each.size - at
            if at + step >= bus + size:
                return first.file, begin
            at, offset = at + step, offset + step
        return None


@dataclass(frozen=True, slots=True)
class TranslatedTable:
    """VM1's memory by I/O virtual address, as it is known at each look."""

    iotlb: Iotlb
    table: MemoryTable

    def bus_address(self, address: int, size: int, *, write: bool) -> int | None:
        """See `Translations`; in no time where there is nothing."""
        if not self.iotlb.covers(address, READ | WRITE if write else READ):
            return None
        return self.iotlb.translations(self.table).bus_address(address, size, write=write)

    def locate(self, bus: int, size: int) -> tuple[MemoryFile, int] | None:
        """See `Translations`."""
        return self.iotlb.translations(self.table).locate(bus, size)
