"""Windows onto VM1's memory: which file is seen through which region, and where (docs/device.md 3).

One window shows one memory file. Window offset = file offset - base. Two files are the same if
device, inode and the right to write are equal.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from driver.state_area import (
    FIRST_EXTENSION_WINDOW,
    MEMORY,
    PAGE_SIZE,
    WINDOW_RW,
    Permission,
)
from guest.function import Area

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from tools.device.vm1_state import MemoryFile, MemoryRegion, Translation

    FileKey = tuple[int, int, bool]

# What stock QEMU was seen to realize; a VM1 with a huge sparse file must not break VM2.
WINDOW_SIZE_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class Window:
    """Region index shows a file from file offset base on. No descriptor is kept.

    grants: what VM1 gave of it, in window offsets, sorted, apart from each other.
    size: a power of two.
    """

    index: int
    key: FileKey
    base: int
    size: int
    grants: tuple[Area, ...]

    @property
    def writable(self) -> bool:
        """Whether the file is open for writing."""
        return self.key[2]

    def holds(self, start: int, end: int) -> bool:
        """Whether the window offsets start to end lie in one grant."""
        return any(a.offset <= start and end <= a.offset + a.size for a in self.grants)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the memory table (docs/device.md 5.4), and the file it leads to."""

    bus: int
    length: int
    offset: int
    window: Window
    file: MemoryFile


@dataclass(frozen=True, slots=True)
class Layout:
    """All windows, the memory table sorted by bus address, and the regions that no window shows.

    Every entry lies inside a grant of its window.
    """

    windows: tuple[Window, ...]
    entries: tuple[Entry, ...]
    left_out: tuple[MemoryRegion, ...]

    def window(self, index: int) -> Window | None:
        """The window at a region index."""
        return next((window for window in self.windows if window.index == index), None)

    def file_of(self, window: Window) -> MemoryFile | None:
        """An open file for a window; None while VM1 grants nothing of it."""
        return next((entry.file for entry in self.entries if entry.window == window), None)

    @property
    def shown(self) -> tuple[tuple[Window, tuple[Area, ...]], ...]:
        """What a driver can map: as long as this is equal, what it has mapped is right."""
        return tuple((window, self.areas(window)) for window in self.windows)

    def areas(self, window: Window) -> tuple[Area, ...]:
        """What may be mapped: granted now, and aligned, so that no neighbour's bytes are seen.

        A mapping of huge pages always is of whole ones, whatever its length was to be.
        """
        file = self.file_of(window)
        page = max(PAGE_SIZE, file.page_bytes if file else 0)
        spans = [(e.offset, e.offset + e.length) for e in self.entries if e.window == window]
        joined = (Area(start, end - start) for start, end in _join(spans))
        return tuple(a for a in joined if not (window.base + a.offset | a.size) % page)

    def memory_table(
        self, translations: Sequence[Translation] | None = None
    ) -> npt.NDArray[np.void]:
        """Items of dtype MEMORY: the entries, or what the windows show of these translations."""
        if translations is None:
            both = int(Permission.READ | Permission.WRITE)
            rows = [
                (e.bus, e.length, e.offset, e.window.index, both if e.window.writable else 1)
                for e in self.entries
            ]
        else:
            rows = list(self._translated(translations))
        return np.array(rows, dtype=MEMORY.dtype)

    def _translated(
        self, translations: Sequence[Translation]
    ) -> Iterator[tuple[int, int, int, int, int]]:
        by_key = {window.key: window for window in self.windows}
        for each in translations:
            window = by_key.get(file_key(each.file))
            offset = each.file_offset - window.base if window else -1
            if window and window.holds(offset, offset + each.size):
                yield each.bus, each.size, offset, window.index, each.permission

    def read(self, window: Window, offset: int, count: int) -> bytes:
        """Trapped read of VM1's memory; what is not granted reads zero. OSError from the file."""
        data = bytearray(count)
        for entry, start, end in self._granted(window, offset, offset + count):
            view = memoryview(data)[start - offset : end - offset]
            os.preadv(entry.file.fd, [view], window.base + start)
        return bytes(data)

    def write(self, window: Window, offset: int, data: bytes) -> None:
        """Trapped write of VM1's memory; what is not granted ignores it. OSError from the file."""
        for entry, start, end in self._granted(window, offset, offset + len(data)):
            os.pwrite(entry.file.fd, data[start - offset : end - offset], window.base + start)

    def _granted(self, window: Window, start: int, end: int) -> Iterator[tuple[Entry, int, int]]:
        for entry in self.entries:
            first, last = max(start, entry.offset), min(end, entry.offset + entry.length)
            if entry.window == window and first < last:
                yield entry, first, last


EMPTY_LAYOUT = Layout((), (), ())


def file_key(file: MemoryFile) -> FileKey:
    """What makes two memory files one window."""
    return (file.device, file.inode, file.writable)


def choose_windows(memory: Sequence[MemoryRegion], region_count: int) -> tuple[Window, ...]:
    """The windows for a memory table, with indices below region_count.

    The writable file with the largest grant is window 2; the others take windows 9 and up, largest
    first. A file for which none is left, or that would need more than WINDOW_SIZE_MAX, has none.
    """
    groups: dict[FileKey, list[MemoryRegion]] = {}
    for region in memory:
        groups.setdefault(file_key(region.file), []).append(region)
    candidates = [_window(0, key, regions) for key, regions in groups.items()]
    fitting = [window for window in candidates if window.size <= WINDOW_SIZE_MAX]
    fitting.sort(key=lambda window: sum(a.size for a in window.grants), reverse=True)
    bars = {WINDOW_RW}
    further = iter(range(FIRST_EXTENSION_WINDOW, region_count))
    windows = []
    for window in fitting:
        index = bars.pop() if bars and window.writable else next(further, None)
        if index is not None:
            windows.append(Window(index, window.key, window.base, window.size, window.grants))
    return tuple(sorted(windows, key=lambda window: window.index))


def _join(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ranges, sorted, neighbours and overlaps made one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _window(index: int, key: FileKey, regions: Sequence[MemoryRegion]) -> Window:
    joined = _join([(r.file_offset, r.file_offset + r.size) for r in regions])
    base = joined[0][0] & -PAGE_SIZE
    needed = max(joined[-1][1] - base, PAGE_SIZE)
    size = 1 << (needed - 1).bit_length()
    return Window(index, key, base, size, tuple(Area(s - base, e - s) for s, e in joined))


def lay_out(memory: Sequence[MemoryRegion], windows: tuple[Window, ...]) -> Layout:
    """What these windows show of a memory table: the regions that lie inside their grants.

    The windows may have been chosen for an earlier table (they are frozen for a static client).
    """
    by_key = {window.key: window for window in windows}
    entries, left_out = [], []
    for region in sorted(memory, key=lambda region: region.bus):
        window = by_key.get(file_key(region.file))
        offset = region.file_offset - window.base if window else -1
        if window and window.holds(offset, offset + region.size):
            entries.append(Entry(region.bus, region.size, offset, window, region.file))
        else:
            left_out.append(region)
    return Layout(windows, tuple(entries), tuple(left_out))
