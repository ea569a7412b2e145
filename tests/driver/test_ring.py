"""A ring's geometry (virtio 1.3, 2.7 and 2.8) and the header before frames (5.1.6.1)."""

from __future__ import annotations

from typing import Any

import pytest

from driver.memory_map import BusAddress, MemoryMap
from driver.ring import Feature, Ring, header_bytes
from driver.state_area import RingFlag
from guest.errors import VhostPciError
from guest.function import RegionInfo

END = 0x10000
READ_ONLY, WRITE_ONLY = 0x20000, 0x30000
WINDOW = {2: RegionInfo(2, 0x100000, True, True, ())}
MEMORY_MAP = MemoryMap(
    [
        (0, 0x8000, 0, 2, 3),
        (0x8000, 0x8000, 0x40000, 2, 3),  # goes on in the bus, not in the window
        (READ_ONLY, 0x8000, 0x50000, 2, 1),
        (WRITE_ONLY, 0x8000, 0x60000, 2, 2),
    ],
    WINDOW,
    "0000:00:05.0",
)
RING = Ring(
    3,
    256,
    RingFlag.STARTED,
    BusAddress(0),
    BusAddress(0x1000),
    BusAddress(0x2000),
    0,
    1,
)


@pytest.mark.parametrize(
    ("features", "size"),
    [
        (0, 10),
        (Feature.INDIRECT_DESC | Feature.EVENT_IDX, 10),
        (Feature.NET_MRG_RXBUF, 12),
        (Feature.VERSION_1, 12),
        (Feature.VERSION_1 | Feature.NET_MRG_RXBUF, 12),
    ],
)
def test_header_length(features: int, size: int) -> None:
    assert header_bytes(features) == size


def test_feature_bits_are_the_specifications() -> None:
    """Section 6 and 5.1.3."""
    assert Feature.NET_MRG_RXBUF == 1 << 15
    assert Feature.INDIRECT_DESC == 1 << 28
    assert Feature.EVENT_IDX == 1 << 29
    assert Feature.VERSION_1 == 1 << 32
    assert Feature.RING_PACKED == 1 << 34


@pytest.mark.parametrize("size", [1, 256, 32768])
def test_part_lengths(size: int) -> None:
    """The table of section 2.7: 16 * size, 6 + 2 * size, 6 + 8 * size with the event fields."""
    ring = RING._replace(size=size)
    lengths = [part.length for part in ring.parts(Feature.EVENT_IDX)]
    assert lengths == [16 * size, 6 + 2 * size, 6 + 8 * size]
    assert [part.length for part in ring.parts(0)] == [16 * size, 4 + 2 * size, 4 + 8 * size]


def test_ring_3_is_transmitq_1() -> None:
    assert (RING.transmits, RING.pair) == (True, 1)
    assert (RING._replace(index=2).transmits, RING._replace(index=2).pair) == (False, 1)
    assert RING.started
    assert not RING.enabled
    assert RING._replace(flags=RingFlag.ENABLED).enabled


def _bus(**addresses: int) -> dict[str, Any]:
    return {part: BusAddress(address) for part, address in addresses.items()}


GOOD: dict[str, dict[str, Any]] = {
    "apart": {},
    "at the end": _bus(desc=END - 16 * 256, avail=0, used=0x1000),
    "event field fits exactly": _bus(avail=END - 518),
    "descriptors and available ring are only read": _bus(desc=READ_ONLY, avail=READ_ONLY + 0x1000),
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    RING._replace(**GOOD[name]).check(MEMORY_MAP, Feature.EVENT_IDX)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"size {size}": ({"size": size}, f"its size is {size}")
        for size in (0, 3, 255, 65536, 0xFFFFFFFF)
    },
    "desc alignment": (_bus(desc=8), "its descriptor table at 0x8 is not aligned to 16"),
    "avail alignment": (_bus(avail=1), "its available ring at 0x1 is not aligned to 2"),
    "used alignment": (_bus(used=2), "its used ring at 0x2 is not aligned to 4"),
    "desc past the end": (_bus(desc=END - 4080), "only 4080 of 4096 bytes are contiguous"),
    "desc across windows": (_bus(desc=0x7FF0), "only 16 of 4096 bytes are contiguous"),
    "avail by its event field": (_bus(avail=END - 516), "only 516 of 518 bytes"),
    "used by its event field": (_bus(used=END - 2052), "only 2052 of 2054 bytes"),
    "desc nowhere": (_bus(desc=END), "its descriptor table at 0x10000: it is outside"),
    "used at the end of addresses": (_bus(used=(1 << 64) - 4), "it is outside"),
    "used is read-only": (_bus(used=READ_ONLY), "WRITE is not permitted there"),
    "used is write-only": (_bus(used=WRITE_ONLY), "READ is not permitted there"),
    "avail is write-only": (_bus(avail=WRITE_ONLY), "READ is not permitted there"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    change, cause = BAD[name]
    with pytest.raises(VhostPciError, match=cause) as caught:
        RING._replace(**change).check(MEMORY_MAP, Feature.EVENT_IDX)
    assert caught.value.subject == "ring 3 of 0000:00:05.0"


def test_without_event_idx_the_event_fields_are_not_there() -> None:
    ring = RING._replace(**_bus(avail=END - 516))
    ring.check(MEMORY_MAP, 0)
    with pytest.raises(VhostPciError):
        ring.check(MEMORY_MAP, Feature.EVENT_IDX)


PACKED = RING._replace(
    size=3, flags=RingFlag.PACKED, **_bus(desc=0x1000, avail=0x1030, used=0x1034)
)
COMMIT = 0x7F00_0000_0000


def test_packed_part_lengths() -> None:
    """Section 2.8.10: 16 * size, 4 and 4, aligned to 16, 4 and 4."""
    parts = [(part.length, part.alignment, part.written) for part in PACKED.parts(0)]
    assert parts == [(48, 16, True), (4, 4, False), (4, 4, True)]


PACKED_GOOD: dict[str, dict[str, Any]] = {
    "close together": {},
    "driver event is only read": _bus(avail=READ_ONLY + 0x7FFC),
    "at the end": _bus(desc=END - 48, avail=0, used=4),
    **{f"size {size}": {"size": size} for size in (2, 255, 0x700)},
}


@pytest.mark.parametrize("name", PACKED_GOOD)
def test_packed_good(name: str) -> None:
    PACKED._replace(**PACKED_GOOD[name]).check(MEMORY_MAP, 0, COMMIT)


PACKED_BAD: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"size {size}": ({"size": size}, f"its size is {size}")
        for size in (0, 1, 32769, 65536, 0xFFFFFFFF)
    },
    "desc alignment": (_bus(desc=8), "its descriptor ring at 0x8 is not aligned to 16"),
    "driver event alignment": (_bus(avail=2), "its driver event at 0x2 is not aligned to 4"),
    "device event alignment": (_bus(used=2), "its device event at 0x2 is not aligned to 4"),
    "desc past the end": (_bus(desc=END - 32), "only 32 of 48 bytes are contiguous"),
    "desc is read-only": (_bus(desc=READ_ONLY), "WRITE is not permitted there"),
    "device event is read-only": (_bus(used=READ_ONLY), "WRITE is not permitted there"),
    "device event is write-only": (_bus(used=WRITE_ONLY), "READ is not permitted there"),
    "driver event nowhere": (_bus(avail=END), "it is outside"),
}


@pytest.mark.parametrize("name", PACKED_BAD)
def test_packed_bad(name: str) -> None:
    change, cause = PACKED_BAD[name]
    with pytest.raises(VhostPciError, match=cause):
        PACKED._replace(**change).check(MEMORY_MAP, 0, COMMIT)


def test_packed_needs_commit_words() -> None:
    """A device of minor version 0 has none (docs/device.md 5.6)."""
    with pytest.raises(VhostPciError, match="the device has no commit area"):
        PACKED.check(MEMORY_MAP, 0)
