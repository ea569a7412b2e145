"""guest/info_chain.py: what it refuses, and what it reads."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.function import Area
from guest.function import RegionInfo as Region
from guest.info_chain import InfoError, capabilities, region_info
from guest.vfio_user_abi import CapabilityHeader, RegionInfo, SparseArea, SparseMmap
from guest.vfio_user_wire import pack_sparse_mmap

PAGE = 4096


def info(chain: bytes, *, size: int = 16 * PAGE, flags: int = 0xF, cap_offset: int = 32) -> bytes:
    return RegionInfo(32 + len(chain), flags, 2, cap_offset, size, 7 * PAGE).pack() + chain


SPARSE = CapabilityHeader(1, 1, 0).pack()
REFUSED = {
    "short": (info(b"")[:31], "region information of 31 bytes, less than 32"),
    "chain into the fixed part": (info(SPARSE, cap_offset=8), "a capability at 8, inside"),
    "chain past the end": (info(b"", cap_offset=32), "a capability at 32 of 32 bytes"),
    "loop": (info(CapabilityHeader(9, 1, 32).pack()), "a capability at 32 of 40 bytes"),
    "no room for the count": (info(SPARSE), "the sparse areas are cut short"),
    "fewer areas than counted": (
        info(SPARSE + SparseMmap(2).pack() + SparseArea(0, PAGE).pack()),
        "2 sparse areas in 64 bytes",
    ),
    "count that overflows": (
        info(SPARSE + SparseMmap(0xFFFFFFFF).pack()),
        "4294967295 sparse areas in 48 bytes",
    ),
    "unaligned offset": (info(pack_sparse_mmap([SparseArea(1, PAGE)])), "an area of 4096 bytes"),
    "unaligned size": (info(pack_sparse_mmap([SparseArea(0, 100)])), "an area of 100 bytes at 0"),
    "past the region": (
        info(pack_sparse_mmap([SparseArea(15 * PAGE, 2 * PAGE)])),
        "an area of 8192 bytes at 61440 of 65536",
    ),
    "end that overflows": (
        info(pack_sparse_mmap([SparseArea((1 << 64) - PAGE, 2 * PAGE)])),
        "an area of 8192 bytes",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str) -> None:
    answer, cause = REFUSED[kind]
    with pytest.raises(InfoError, match=cause):
        region_info(answer, 2)


def test_another_region() -> None:
    with pytest.raises(InfoError, match="information of region 2 in answer to 4"):
        region_info(info(b""), 4)


def test_without_the_capability_all_whole_pages_are_mappable() -> None:
    for flags, size, areas in (
        (0x7, 3 * PAGE, (Area(0, 3 * PAGE),)),
        (0x7, 3 * PAGE + 5, (Area(0, 3 * PAGE),)),
        (0x7, 5, ()),
        (0x3, 3 * PAGE, ()),
    ):
        region, offset = region_info(info(b"", size=size, flags=flags, cap_offset=0), 2)
        assert region == Region(2, size, readable=True, writable=True, areas=areas)
        assert offset == 7 * PAGE


def test_sparse_areas_behind_another_capability() -> None:
    chain = CapabilityHeader(2, 1, 48).pack() + bytes(8)
    chain += pack_sparse_mmap([SparseArea(PAGE, PAGE), SparseArea(0, 0), SparseArea(0, PAGE)])
    assert [each for each, _ in capabilities(info(chain), 32)] == [2, 1]
    region, _ = region_info(info(chain, flags=0xD), 2)
    assert not region.writable
    assert region.areas == (Area(PAGE, PAGE), Area(0, PAGE))


@given(
    st.binary(max_size=120),
    st.integers(0, 15),
    st.integers(0, 64),
    st.sampled_from([0, 5, PAGE, 1 << 63, (1 << 64) - 1]),
)
def test_any_chain_is_judged(chain: bytes, flags: int, cap_offset: int, size: int) -> None:
    with contextlib.suppress(InfoError):
        region, _ = region_info(info(chain, size=size, flags=flags, cap_offset=cap_offset), 2)
        assert region.size == size
        for area in region.areas:
            assert area.size > 0
            assert area.offset + area.size <= size
            assert area.offset % PAGE == area.size % PAGE == 0
