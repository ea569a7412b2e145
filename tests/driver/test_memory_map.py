"""Bus address -> run, and the tables that are refused (docs/device.md 5.4)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver.memory_map import (
    BusAddress,
    MappedArea,
    MemoryMap,
    Run,
    TranslationError,
    WindowOffset,
)
from guest.errors import VhostPciError
from guest.function import Area, RegionInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

Entry = tuple[int, int, int, int, int]  # bus, length, offset, window, permission
SIZE = 0x100000
WINDOWS = {
    2: RegionInfo(2, SIZE, True, True, (Area(0, SIZE),)),
    4: RegionInfo(4, SIZE, True, False, (Area(0, SIZE),)),
    9: RegionInfo(9, 0, False, False, ()),
}
READ, WRITE, BOTH = 1, 2, 3


def _map(*entries: Entry) -> MemoryMap:
    return MemoryMap(entries, WINDOWS)


def _translate(map_: MemoryMap, bus: int, length: int, *, write: bool = False) -> Run:
    return map_.translate(BusAddress(bus), length, write=write)


BAD_TABLES: dict[str, tuple[list[Entry], str]] = {
    "empty": ([(0, 0, 0, 2, BOTH)], "entry 0 of VM1's memory table: its length is 0"),
    "wraps": ([((1 << 64) - 16, 17, 0, 2, BOTH)], "pass the end of the address space"),
    "out of order": (
        [(0x2000, 16, 0, 2, BOTH), (0x1000, 16, 16, 2, BOTH)],
        "entry 1 of VM1's memory table: 0x1000 is before the end of the entry before it, 0x2010",
    ),
    "overlaps": ([(0, 17, 0, 2, BOTH), (16, 16, 32, 2, BOTH)], "0x10 is before"),
    "overlaps where it would merge": ([(0, 32, 0, 2, BOTH), (16, 16, 32, 2, BOTH)], "is before"),
    "twice": ([(0, 16, 0, 2, BOTH), (0, 16, 0, 2, BOTH)], "is before"),
    "no permission": ([(0, 16, 0, 2, 0)], "its permission is 0x0"),
    "unknown permission": ([(0, 16, 0, 2, 7)], "its permission is 0x7"),
    "unknown window": ([(0, 16, 0, 10, BOTH)], "window 10 does not exist"),
    "window of size 0": ([(0, 16, 0, 9, BOTH)], "window 9 does not exist"),
    "past the window": ([(0, 16, SIZE - 15, 2, BOTH)], "it ends at 0x100001 of window 2"),
    "offset that wraps": ([(0, 16, (1 << 64) - 8, 2, BOTH)], "of window 2, which has 0x100000"),
    "length that wraps": ([(0, (1 << 64) - 1, 16, 2, BOTH)], "of window 2, which has"),
    "writable, window is not": ([(0, 16, 0, 4, BOTH)], "window 4 is read-only"),
    "write-only, window is not": ([(0, 16, 0, 4, WRITE)], "window 4 is read-only"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_refused(name: str) -> None:
    entries, cause = BAD_TABLES[name]
    with pytest.raises(VhostPciError, match=re.escape(cause)):
        _map(*entries)


def test_the_whole_of_address_space_and_window() -> None:
    map_ = _map(((1 << 64) - SIZE, SIZE, 0, 2, BOTH))
    assert _translate(map_, (1 << 64) - 1, 10) == Run(2, WindowOffset(SIZE - 1), 1)


def test_runs_end_where_their_window_does_not_go_on() -> None:
    map_ = _map(
        (0x1000, 0x1000, 0x5000, 2, BOTH),
        (0x2000, 0x1000, 0x6000, 2, BOTH),  # goes on in both
        (0x3000, 0x1000, 0x9000, 2, BOTH),  # on the bus only
        (0x4000, 0x1000, 0xA000, 4, READ),  # in another window
        (0x6000, 0x1000, 0xA000, 2, BOTH),  # after a hole
    )
    assert len(map_) == 4
    assert map_.windows == {2, 4}
    assert _translate(map_, 0x1FFF, 2) == Run(2, WindowOffset(0x5FFF), 2)
    assert _translate(map_, 0x1000, 0x9000) == Run(2, WindowOffset(0x5000), 0x2000)
    assert _translate(map_, 0x3800, 0x1000) == Run(2, WindowOffset(0x9800), 0x800)
    assert _translate(map_, 0x4800, 0x8000) == Run(4, WindowOffset(0xA800), 0x800)
    assert _translate(map_, 0x6FFF, 1) == Run(2, WindowOffset(0xAFFF), 1)


def test_a_run_crosses_a_change_of_permission_as_far_as_it_is_permitted() -> None:
    map_ = _map((0, 16, 0, 2, BOTH), (16, 16, 16, 2, READ), (32, 16, 32, 2, BOTH))
    assert len(map_) == 3
    assert _translate(map_, 8, 100).length == 40
    assert _translate(map_, 8, 20).length == 20
    assert _translate(map_, 8, 100, write=True).length == 8
    with pytest.raises(TranslationError, match="WRITE is not permitted there"):
        _translate(map_, 16, 1, write=True)


@pytest.mark.parametrize(
    ("bus", "length", "cause"),
    [
        (0xFFF, 1, "1 bytes at 0xfff of VM1: it is outside VM1's memory"),
        (0x2000, 1, "it is outside VM1's memory"),
        ((1 << 64) - 1, 1, "it is outside VM1's memory"),
        (0, 4, "it is outside VM1's memory"),
        (0x1000, 0, "it is empty"),
        (0x1000, -1, "it is empty"),
        (0x5000, 1, "READ is not permitted there"),
    ],
)
def test_what_is_not_memory(bus: int, length: int, cause: str) -> None:
    map_ = _map((0x1000, 0x1000, 0, 2, BOTH), (0x5000, 0x1000, 0x1000, 2, WRITE))
    with pytest.raises(TranslationError, match=cause):
        _translate(map_, bus, length)


def test_no_memory() -> None:
    map_ = _map()
    assert len(map_) == 0
    assert len(map_.regions({})) == 0
    with pytest.raises(TranslationError):
        _translate(map_, 0, 1)


def test_regions_for_the_kernel() -> None:
    map_ = _map(
        (0x1000, 0x1000, 0x0000, 2, BOTH),
        (0x2000, 0x1000, 0x1000, 2, BOTH),
        (0x3000, 0x1000, 0x2000, 2, READ),
        (0x4000, 0x0800, 0x0000, 4, READ),
    )
    areas = {
        2: [MappedArea(0, 0x800, 0x7F0000), MappedArea(0x800, 0x2800, 0x7E0000)],
        4: [MappedArea(0, 0x1000, 0x7D0000)],
    }
    assert map_.regions(areas) == [
        (0x1000, 0x0800, 0x7F0000, 3),
        (0x1800, 0x1800, 0x7E0000, 3),
        (0x3000, 0x1000, 0x7E1800, 1),
        (0x4000, 0x0800, 0x7D0000, 1),
    ]


@pytest.mark.parametrize(
    ("areas", "done"),
    [
        ([], 0),
        ([MappedArea(0, 0x1000, 0x7F0000)], 0),
        ([MappedArea(0x1000, 0x800, 0x7F0000)], 0x800),
        ([MappedArea(0x1800, 0x800, 0x7F0000)], 0),
        ([MappedArea(0x1000, 0x800, 0x7F0000), MappedArea(0x2000, 0x800, 0x7E0000)], 0x800),
    ],
)
def test_regions_that_are_not_mapped(areas: Sequence[MappedArea], done: int) -> None:
    map_ = _map((0x1000, 0x1000, 0x1000, 2, BOTH))
    with pytest.raises(VhostPciError, match=f"only {done} of them can be mapped"):
        map_.regions({2: areas})


@st.composite
def _tables(draw: st.DrawFn) -> list[Entry]:
    """Tables of small entries, many of which touch each other, or nearly."""
    bus = draw(st.sampled_from([0, 0x1000, (1 << 64) - 0x1000]))
    entries: list[Entry] = []
    offset, window = 0, 2
    for _ in range(draw(st.integers(0, 12))):
        bus += draw(st.sampled_from([0, 0, 0, 1, 16]))
        length = draw(st.integers(1, 64))
        if draw(st.booleans()):
            offset, window = draw(st.integers(0, SIZE - 64)), draw(st.sampled_from([2, 4]))
        permission = READ if window == 4 else draw(st.sampled_from([BOTH, BOTH, READ, WRITE]))
        entries.append((bus, length, offset, window, permission))
        bus, offset = bus + length, min(offset + length, SIZE - 64)
    return entries


@settings(deadline=None, max_examples=200)
@given(entries=_tables(), at=st.integers(-5, 600), length=st.integers(1, 200), write=st.booleans())
def test_translation_is_that_of_a_byte_by_byte_search(
    entries: list[Entry], at: int, length: int, write: bool
) -> None:
    start = max((entries[0][0] if entries else 0) + at, 0)
    need = WRITE if write else READ

    def find(bus: int) -> tuple[int, int] | None:
        for first, count, offset, window, permission in entries:
            if first <= bus < first + count and permission & need:
                return window, offset + bus - first
        return None

    map_ = _map(*entries)
    here = find(start)
    if here is None:
        with pytest.raises(TranslationError):
            _translate(map_, start, length, write=write)
        return
    window, offset = here
    reach = 1
    while reach < length and find(start + reach) == (window, offset + reach):
        reach += 1
    assert _translate(map_, start, length, write=write) == Run(window, WindowOffset(offset), reach)


def test_thousands_of_entries() -> None:
    entries = [(i * 0x2000, 0x1000, i * 16, 2, BOTH) for i in range(4096)]
    map_ = _map(*entries)
    assert len(map_) == 4096
    for i in (0, 1, 2047, 4095):
        assert _translate(map_, i * 0x2000 + 0xFFF, 2) == Run(2, WindowOffset(i * 16 + 0xFFF), 1)
        with pytest.raises(TranslationError):
            _translate(map_, i * 0x2000 + 0x1000, 1)
