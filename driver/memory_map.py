"""Bus address -> run: VM1's memory table as the driver checked it (docs/device.md 5.4).

A table is immutable; a new one replaces it whole, between bursts.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NewType

from driver.state_area import Permission
from guest.errors import VhostPciError
from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from guest.function import RegionInfo

BusAddress = NewType("BusAddress", int)
WindowOffset = NewType("WindowOffset", int)

_ADDRESS_END = 1 << 64


class TranslationError(VhostPciError):
    """A bus address is not VM1's memory, or not with the permission asked for."""


class Run(NamedTuple):
    """Contiguous bytes of one window: what a bus address range is, as far as it goes."""

    window: int
    offset: WindowOffset
    length: int


class Miss(NamedTuple):
    """length bytes of bus addresses without a translation, permission: `state_area.Permission`."""

    bus: int
    length: int
    permission: int


class MappedArea(NamedTuple):
    """size bytes of a window from offset on, at address in this process."""

    offset: int
    size: int
    address: int


class HostRegion(NamedTuple):
    """length bytes of VM1's memory, from bus address bus on, at address host in this process.

    permission: `state_area.Permission` bits.
    """

    bus: int
    length: int
    host: int
    permission: int


class _Entry(NamedTuple):
    bus: int
    length: int
    offset: int
    window: int
    permission: Permission

    @property
    def end(self) -> int:
        return self.bus + self.length

    def continued_by(self, other: _Entry) -> bool:
        """Whether other goes on where this ends, in bus addresses and in the same window."""
        return (
            self.end == other.bus
            and self.window == other.window
            and self.offset + self.length == other.offset
        )


class MemoryMap:
    """VM1's memory: checked once, never changed.

    Args:
        table: Rows of `state_area.MEMORY`.
        windows: The regions the table may name, as they are now.
        name: The function's, for messages.

    Raises:
        VhostPciError: An entry is empty, wraps, is out of order, overlaps its predecessor, names a
            window that is unknown, too small or not writable where it may be written, or has a
            permission that is none.
    """

    def __init__(
        self,
        table: Iterable[Sequence[int]],
        windows: Mapping[int, RegionInfo],
        name: str = "VM1",
    ) -> None:
        self.name = name
        end = 0
        entries: list[_Entry] = []
        for index, row in enumerate(table):
            cause = _entry_fault(row, end, windows)
            if cause:
                subject = f"entry {index} of {name}'s memory table"
                raise VhostPciError("use", subject, cause, "the device is at fault: see its log")
            entry = _Entry(row[0], row[1], row[2], row[3], Permission(row[4]))
            end = entry.end
            _append_merged(entries, entry)
        self._entries = tuple(entries)
        self._starts = [entry.bus for entry in entries]
        self.windows = frozenset(entry.window for entry in entries)

    def __len__(self) -> int:
        """How many entries are left after merging those that continue each other."""
        return len(self._entries)

    def translate(self, bus: BusAddress, length: int, *, write: bool) -> Run:
        """Where bus lies and how many of length bytes are contiguous there (1 or more).

        The rest, if any, is the caller's next call: it may lie elsewhere, or nowhere.

        Raises:
            TranslationError: bus is not VM1's memory or lacks the permission; length is not
                positive.
        """
        need = Permission.WRITE if write else Permission.READ
        index = bisect_right(self._starts, bus) - 1
        entry = self._entries[index] if index >= 0 else None
        if length <= 0:
            raise self._refusal(bus, length, "it is empty")
        if entry is None or bus >= entry.end:
            raise self._refusal(bus, length, "it is outside VM1's memory")
        if need not in entry.permission:
            raise self._refusal(bus, length, f"{need.name} is not permitted there")
        offset = WindowOffset(entry.offset + bus - entry.bus)
        last = entry
        while last.end - bus < length and index + 1 < len(self._entries):
            index += 1
            following = self._entries[index]
            # Entries that continue each other but differ in permission are still one run.
            if not last.continued_by(following) or need not in following.permission:
                break
            last = following
        return Run(entry.window, offset, min(length, last.end - bus))

    def _refusal(self, bus: int, length: int, cause: str) -> TranslationError:
        return TranslationError("translate", f"{length} bytes at {bus:#x} of {self.name}", cause)

    def regions(self, areas: Mapping[int, Sequence[MappedArea]]) -> list[HostRegion]:
        """The table for the kernel: sorted by bus, neighbours merged.

        Args:
            areas: What is mapped of each window, sorted by offset, not overlapping.

        Raises:
            VhostPciError: An entry is not wholly inside the mapped areas of its window.
        """
        return [
            piece
            for entry in self._entries
            for piece in self._pieces(entry, areas.get(entry.window, ()))
        ]

    def _pieces(self, entry: _Entry, areas: Sequence[MappedArea]) -> Iterator[HostRegion]:
        """Each area's part of an entry."""
        done = 0
        for area in areas:
            inside = entry.offset + done - area.offset
            if 0 <= inside < area.size and done < entry.length:
                length = min(entry.length - done, area.size - inside)
                host = area.address + inside
                yield HostRegion(entry.bus + done, length, host, int(entry.permission))
                done += length
        if done < entry.length:
            subject = f"{entry.length} bytes at {entry.offset:#x} of window {entry.window}"
            raise VhostPciError("map", subject, f"only {done} of them can be mapped")


def _append_merged(entries: list[_Entry], entry: _Entry) -> None:
    """Add entry, as part of the last one where it continues that with the same permission."""
    if entries:
        last = entries[-1]
        if last.continued_by(entry) and last.permission == entry.permission:
            length = last.length + entry.length
            entries[-1] = _Entry(last.bus, length, last.offset, last.window, last.permission)
            return
    entries.append(entry)


def _entry_fault(row: Sequence[int], end: int, windows: Mapping[int, RegionInfo]) -> str:
    """What is wrong with an entry that follows one ending at bus address end; empty if nothing."""
    bus, length, offset, window, permission = row
    if length == 0:
        return "its length is 0"
    if bus + length > _ADDRESS_END:
        return f"{length} bytes at {bus:#x} pass the end of the address space"
    if bus < end:
        return f"{bus:#x} is before the end of the entry before it, {end:#x}"
    if permission == 0 or permission & ~int(Permission.READ | Permission.WRITE):
        return f"its permission is {permission:#x}"
    return _window_fault(offset + length, permission, window, windows.get(window))


def _window_fault(end: int, permission: int, window: int, region: RegionInfo | None) -> str:
    if region is None or region.size == 0:
        return f"window {window} does not exist"
    if end > region.size:
        return f"it ends at {end:#x} of window {window}, which has {region.size:#x} bytes"
    if permission & Permission.WRITE and not region.writable:
        return f"it may be written, but window {window} is read-only"
    return ""
