"""Which windows a memory table makes, and what they show of a later one."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from driver.state_area import MEMORY
from guest.function import Area
from tests.device.vm1_memory import MIB, Vm1, region
from tools.device.windows import WINDOW_SIZE_MAX, choose_windows, lay_out

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.device.vm1_state import MemoryRegion
    from tools.device.windows import Layout


@pytest.fixture
def vm1() -> Iterator[Vm1]:
    vm1 = Vm1()
    yield vm1
    vm1.close()


def dynamic(*memory: MemoryRegion) -> Layout:
    return lay_out(memory, choose_windows(memory, 32))


def test_split_memory_shares_a_window(vm1: Vm1) -> None:
    """QEMU's q35 with 5 GiB: 2 GiB at 0, 3 GiB at 4 GiB, one file (here in MiB)."""
    file = vm1.file(5 * MIB)
    layout = dynamic(region(file, 4 << 30, 3 * MIB, 2 * MIB), region(file, 0, 2 * MIB))
    (window,) = layout.windows
    assert (window.index, window.base, window.size) == (2, 0, 8 * MIB)
    assert layout.areas(window) == (Area(0, 5 * MIB),)
    table = layout.memory_table()
    assert table.dtype == MEMORY
    assert table.tolist() == [(0, 2 * MIB, 0, 2, 3), (4 << 30, 3 * MIB, 2 * MIB, 2, 3)]


def test_base_leaves_out_what_lies_before(vm1: Vm1) -> None:
    file = vm1.file(8 * MIB)
    layout = dynamic(region(file, 0, MIB, 5 * MIB), region(file, MIB, MIB, 7 * MIB))
    (window,) = layout.windows
    assert (window.base, window.size) == (5 * MIB, 4 * MIB)
    assert layout.areas(window) == (Area(0, MIB), Area(2 * MIB, MIB))


def test_largest_grant_is_bar_2(vm1: Vm1, tmp_path: Path) -> None:
    small, large = vm1.file(8 * MIB), vm1.file(4 * MIB)
    rom = vm1.file(MIB, read_only_path=tmp_path / "a")
    rom2 = vm1.file(2 * MIB, read_only_path=tmp_path / "b")
    memory = (
        region(small, 0, MIB),
        region(large, 1 << 32, 4 * MIB),
        region(rom, 2 << 32, MIB),
        region(rom2, 3 << 32, 2 * MIB),
    )
    layout = dynamic(*memory)
    shown = {window.index: (window.key[1], window.writable) for window in layout.windows}
    assert shown == {
        2: (large.inode, True),
        9: (rom2.inode, False),
        10: (small.inode, True),
        11: (rom.inode, False),
    }
    assert [row[3:] for row in layout.memory_table().tolist()] == [(10, 3), (2, 3), (11, 1), (9, 1)]


def test_unaligned_area_is_not_mapped(vm1: Vm1) -> None:
    """F15: its page shows bytes that were not granted. It is reached by trapped access only."""
    file = vm1.file(2 * MIB)
    os.pwrite(file.fd, b"\xee" * 8192, 0)
    layout = dynamic(region(file, 0, 0x1800, 0x400), region(file, MIB, 4096, MIB))
    (window,) = layout.windows
    assert layout.areas(window) == (Area(MIB, 4096),)
    assert layout.memory_table()["offset"].tolist() == [0x400, MIB]
    seen = layout.read(window, 0, 8192)
    assert seen == bytes(0x400) + b"\xee" * 0x1800 + bytes(0x400)


def test_unaligned_neighbours_become_one_area(vm1: Vm1) -> None:
    file = vm1.file(2 * MIB)
    layout = dynamic(region(file, 0, 0x1800), region(file, MIB, 0x800, 0x1800))
    assert layout.areas(layout.windows[0]) == (Area(0, 0x2000),)


def test_parts_of_huge_pages_are_not_mapped(vm1: Vm1) -> None:
    """A mapping of hugetlbfs is of whole pages: it would show what was not granted.

    It could not be unmapped by its length, nor be replaced when the file shrinks.
    """
    file = replace(vm1.file(8 * MIB), page_bytes=2 * MIB)
    layout = dynamic(
        region(file, 0, 4096),
        region(file, 4 * MIB, 2 * MIB, 4 * MIB),
        region(file, 8 * MIB, MIB, 7 * MIB),
    )
    assert layout.areas(layout.windows[0]) == (Area(4 * MIB, 2 * MIB),)
    moved = dynamic(region(file, 0, 4 * MIB, 3 * MIB))
    assert moved.windows[0].base == 3 * MIB
    assert moved.areas(moved.windows[0]) == ()


def test_smallest_window_is_a_page(vm1: Vm1) -> None:
    layout = dynamic(region(vm1.file(4096), 0, 16))
    assert layout.windows[0].size == 4096
    assert layout.areas(layout.windows[0]) == ()


def test_same_file_by_two_descriptors(vm1: Vm1) -> None:
    file = vm1.file(2 * MIB)
    again = os.dup(file.fd)
    vm1.fds.append(again)
    twin = type(file)(again, file.device, file.inode, file.size, writable=True)
    assert len(dynamic(region(file, 0, MIB), region(twin, MIB, MIB, MIB)).windows) == 1


def test_too_many_files_leave_the_smallest_out(vm1: Vm1) -> None:
    memory = [region(vm1.file(MIB), n << 32, MIB - 4096 * n) for n in range(30)]
    layout = dynamic(*memory)
    assert [window.index for window in layout.windows] == [2, *range(9, 32)]
    assert [left.bus for left in layout.left_out] == [n << 32 for n in range(24, 30)]


def test_too_large_a_span_has_no_window(vm1: Vm1) -> None:
    """A sparse file could otherwise give VM2 a BAR that it cannot place."""
    sparse, good = vm1.file(2 * WINDOW_SIZE_MAX), vm1.file(MIB)
    layout = dynamic(
        region(sparse, 0, 4096),
        region(sparse, MIB, 2 * MIB, WINDOW_SIZE_MAX),
        region(good, 1 << 40, MIB),
    )
    assert [(window.index, window.key[1]) for window in layout.windows] == [(2, good.inode)]
    assert [left.bus for left in layout.left_out] == [0, MIB]


def test_frozen_windows_show_only_what_lies_inside(vm1: Vm1) -> None:
    file, other = vm1.file(4 * MIB), vm1.file(MIB)
    frozen = choose_windows([region(file, 0, MIB), region(file, MIB, MIB, 3 * MIB)], 9)
    inside = region(file, 8 * MIB, 4096, 3 * MIB + 4096)
    straddles = region(file, 16 * MIB, MIB, MIB // 2)
    in_the_hole = region(file, 32 * MIB, 4096, 2 * MIB)
    elsewhere = region(other, 64 * MIB, MIB)
    layout = lay_out([elsewhere, in_the_hole, straddles, inside], frozen)
    assert layout.memory_table().tolist() == [(8 * MIB, 4096, 3 * MIB + 4096, 2, 3)]
    assert layout.left_out == (straddles, in_the_hole, elsewhere)
    assert layout.areas(layout.windows[0]) == (Area(3 * MIB + 4096, 4096),)


def test_no_memory() -> None:
    layout = dynamic()
    assert (layout.windows, layout.entries) == ((), ())
