"""A shared mapping: its address, words and copies, and numpy's view of the same bytes."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import pytest

from guest.errors import VhostPciError
from guest.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 8192


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("mapped", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, b"\x01\x02\x03\x04VM1", 4096)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("writable", [False, True])
def test_where_it_is_and_what_it_holds(file: int, *, writable: bool) -> None:
    with Mapping(file, SIZE, 0, writable=writable, name="it") as mapping:
        assert ctypes.string_at(mapping.address + 4100, 3) == b"VM1"
        assert mapping.read(4100, 3) == b"VM1"
        assert mapping.load(4096) == 0x04030201
        view = mapping.array("<u4", 4096, 1)
        assert (view.ctypes.data, int(view[0])) == (mapping.address + 4096, 0x04030201)
        del view


def test_a_word_is_stored_where_others_see_it(file: int) -> None:
    with Mapping(file, SIZE, 0, writable=True, name="it") as mapping:
        mapping.store(SIZE - 4, 0x44434241)
        assert os.pread(file, 8, SIZE - 8) == b"\0\0\0\0ABCD"


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (SIZE, 1), (SIZE - 2, 4), (0, -1)])
def test_nothing_past_its_end(file: int, offset: int, size: int) -> None:
    with Mapping(file, SIZE, 0, writable=True, name="it") as mapping:
        with pytest.raises(VhostPciError, match="pass its 8192"):
            mapping.read(offset, size)
        if size == 4:
            with pytest.raises(VhostPciError, match="4 bytes at 8190 pass its 8192"):
                mapping.load(offset)
            with pytest.raises(VhostPciError, match="4 bytes at 8190 pass its 8192"):
                mapping.store(offset, 0)
