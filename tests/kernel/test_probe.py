"""Measuring a window by reading it: on ordinary memory, which is cached."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from guest.errors import VhostPciError
from guest.mapping import Mapping
from pmd.kernel_library import library
from pmd.window_probe import MemoryType, WindowSpeed, measure

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = mmap.PAGESIZE
MIB = 1 << 20


@pytest.fixture
def file() -> Iterator[int]:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.ftruncate(file.fileno(), 4 * MIB)
        yield file.fileno()


def test_ordinary_memory_is_cached(file: int) -> None:
    with Mapping(file, 4 * MIB, 0, writable=True, name="memory") as mapping:
        view = mapping.array(np.uint8)
        view[: 2 * PAGE] = 0xA5
        speed = measure(mapping.address, mapping.size)
        assert speed.memory_type is MemoryType.CACHED
        assert speed.load_ns > 0.1
        assert speed.line_ns > 0.1
        assert str(speed).startswith("cached: ")
        assert (view[: 2 * PAGE] == 0xA5).all()
        del view


def test_only_the_first_mebibyte_is_touched(file: int) -> None:
    """What is read of a memory file takes memory from then on."""
    with Mapping(file, 4 * MIB, 0, writable=False, name="memory") as mapping:
        measure(mapping.address, mapping.size)
    assert 0 < os.fstat(file).st_blocks * 512 <= MIB


def test_nothing_behind_the_end_is_read(file: int) -> None:
    """The page behind is there in the mapping, but not in the file: a read would be a SIGBUS."""
    os.ftruncate(file, PAGE)
    with Mapping(file, PAGE, 0, writable=False, name="memory") as one:
        kernel = library()
        assert kernel.rk_probe_load_ps(one.address, PAGE, 100_000) > 0
        assert kernel.rk_probe_line_ps(one.address, PAGE, 100_000) > 0
        assert kernel.rk_probe_load_ps(one.address, PAGE - 1, 100_000) == 0
        assert kernel.rk_probe_line_ps(one.address, PAGE - 1, 100_000) == 0


def test_less_than_a_page_is_refused(file: int) -> None:
    with (
        Mapping(file, PAGE, 0, writable=False, name="memory") as mapping,
        pytest.raises(VhostPciError, match=r"cannot measure 4096 bytes: .* less than a page"),
    ):
        measure(mapping.address + 8, PAGE)  # its first whole line is further on


@pytest.mark.parametrize(
    ("load_ns", "line_ns", "expected"),
    [
        (2.3, 2.0, "cached: 2.3 ns a load, 32.00 GB/s"),
        (50.0, 400.0, "cached: 50.0 ns a load, 0.16 GB/s"),
        (110.0, 35.0, "write-combining: 110.0 ns a load, 1.83 GB/s"),
        (110.0, 219.0, "write-combining: 110.0 ns a load, 0.29 GB/s"),
        (110.0, 440.0, "uncached: 110.0 ns a load, 0.15 GB/s"),
        (60_000.0, 480_000.0, "uncached: 60000.0 ns a load, 0.00 GB/s"),
    ],
)
def test_speeds_tell_the_memory_type(load_ns: float, line_ns: float, expected: str) -> None:
    assert str(WindowSpeed(load_ns, line_ns)) == expected
