"""Packed rings at the vhost-user side: set-up, bad input, and where a stopped one stands.

Rows P.., U.. are of the project's catalogue of adversarial input; sections of virtio 1.3.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device.vhost_user_peer import (
    BUS,
    FEATURES,
    MIB,
    USER,
    FrontEnd,
    Region,
    Serving,
    memory,
    ring_addresses,
    serving,
)
from tools.device.packed_position import DESC, Mark, PackedRemains, Standing
from tools.vhost_user_abi import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

WHOLE = Region(BUS, 4 * MIB, USER)
PACKED = FEATURES | 1 << 34
WRAP = 1 << 15
FRESH = WRAP << 16 | WRAP  # the first position: descriptor 0, wrap counters 1 (2.8.1)
NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15  # 2.8.13


@contextlib.contextmanager
def negotiated(features: int = PACKED) -> Iterator[tuple[Serving, FrontEnd, int]]:
    """A front-end with memory, nothing of its rings said yet."""
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate(features)
        assert front_end.set_memory([WHOLE], [fd])
        yield server, front_end, fd


def pair(index: int, number: int) -> bytes:
    return struct.pack("<II", index, number)


def addresses(desc: int, driver: int, device: int) -> bytes:
    return struct.pack("<IIQQQQ", 0, 0, desc, device, driver, 0)


def write_flags(fd: int, index: int, flags: int) -> None:
    """What VM1 and the driver in VM2 left in a descriptor of ring 0 at the memory's beginning."""
    os.pwrite(fd, struct.pack("<H", flags), 16 * index + 14)


@pytest.mark.parametrize("size", [2, 3, 1000, 32768])
def test_start(size: int) -> None:
    """2.8.10.1: sizes need not be powers of two."""
    with negotiated() as (server, front_end, _):
        front_end.send(Request.SET_VRING_NUM, pair(0, size))
        front_end.send(Request.SET_VRING_BASE, pair(0, FRESH))
        front_end.send(Request.SET_VRING_ADDR, ring_addresses(0, USER + MIB))
        front_end.send(Request.SET_VRING_KICK, struct.pack("<Q", 0), [front_end.eventfd()])
        front_end.sync()
        ring = server.function.state.rings[0]
        assert (ring.size, ring.started, ring.base) == (size, True, FRESH)
        assert (ring.desc, ring.driver, ring.device) == (
            BUS + MIB, BUS + MIB + 0x2000, BUS + MIB + 0x3000,
        )  # fmt: skip
        assert server.function.position(0) == (WRAP, WRAP)


def test_a_base_of_one_half_is_enough() -> None:
    """DPDK's virtio-user gives the available half only."""
    with negotiated() as (server, front_end, _):
        front_end.start_ring(0, base=WRAP)
        front_end.sync()
        assert server.function.state.rings[0].started
        assert server.function.position(0) == (WRAP, WRAP)
        assert front_end.stop_ring(0) == FRESH


def test_ring_that_ends_with_its_region() -> None:
    with negotiated() as (_, front_end, _):
        end = USER + 4 * MIB
        assert front_end.acknowledged(Request.SET_VRING_NUM, pair(0, 3))
        good = addresses(end - 48, end - 52, end - 56)
        assert front_end.acknowledged(Request.SET_VRING_ADDR, good)
        assert front_end.acknowledged(Request.SET_VRING_ADDR, addresses(USER, USER + 48, end - 4))


BAD = {
    **{f"p06_size_{size}": (Request.SET_VRING_NUM, pair(0, size))
       for size in (0, 1, 32769, 65536, 1 << 31, 0x10002)},
    "p15_available_index": (Request.SET_VRING_BASE, pair(0, FRESH | 100)),
    "p15_used_index": (Request.SET_VRING_BASE, pair(0, FRESH | 100 << 16)),
    "p15_all_ones": (Request.SET_VRING_BASE, pair(0, 0xFFFF_FFFF)),
    "u11_desc_unaligned": (Request.SET_VRING_ADDR, addresses(USER + 8, USER, USER)),
    "u11_driver_event_unaligned": (Request.SET_VRING_ADDR, addresses(USER, USER + 2, USER)),
    "u11_device_event_unaligned": (Request.SET_VRING_ADDR, addresses(USER, USER, USER + 2)),
    "u11_desc_straddles": (
        Request.SET_VRING_ADDR, addresses(USER + 4 * MIB - 16 * 99, USER, USER)),
    "u11_driver_event_outside": (
        Request.SET_VRING_ADDR, addresses(USER, USER + 4 * MIB, USER)),
    "u11_device_event_outside": (
        Request.SET_VRING_ADDR, addresses(USER, USER, USER - 4)),
    "u11_wraps": (Request.SET_VRING_ADDR, addresses((1 << 64) - 16, USER, USER)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    request, payload = BAD[name]
    with negotiated() as (server, front_end, _):
        assert front_end.acknowledged(Request.SET_VRING_NUM, pair(0, 100))
        assert not front_end.acknowledged(request, payload)
        front_end.start_ring(0, size=100, base=FRESH)  # and the next works
        front_end.sync()
        assert server.function.state.rings[0].started


def test_p15_base_is_judged_again_with_the_size() -> None:
    """Base first, the size that it does not fit afterwards: the ring does not start."""
    with negotiated() as (server, front_end, _):
        assert front_end.acknowledged(Request.SET_VRING_BASE, pair(0, FRESH | 200))
        assert front_end.acknowledged(Request.SET_VRING_NUM, pair(0, 200))
        front_end.send(Request.SET_VRING_ADDR, ring_addresses(0, USER))
        front_end.send(Request.SET_VRING_KICK, struct.pack("<Q", 0), [front_end.eventfd()])
        front_end.sync()
        assert not server.function.state.rings[0].started
        assert front_end.acknowledged(Request.SET_VRING_NUM, pair(0, 201))
        assert server.function.state.rings[0].started


@pytest.mark.parametrize(("features", "starts"), [(PACKED, True), (FEATURES, False)])
def test_features_after_the_rings(features: int, starts: bool) -> None:
    """A size of 3 is a packed ring's; which it was to be is known at the start."""
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.send(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", 1 << 3))
        assert front_end.set_memory([WHOLE], [fd])
        front_end.start_ring(0, size=3, base=FRESH)
        front_end.send(Request.SET_FEATURES, struct.pack("<Q", features))
        front_end.sync()
        assert server.function.state.rings[0].started is starts
        assert not front_end.acknowledged(Request.SET_VRING_NUM, pair(1, 0))


def test_p16_split_set_up_is_none_of_a_packed_ring() -> None:
    """Accepted anew with the other layout, a ring needs its addresses and its base anew."""
    with negotiated(FEATURES) as (server, front_end, _):
        front_end.send(Request.SET_VRING_NUM, pair(0, 256))
        front_end.send(Request.SET_VRING_BASE, pair(0, 77))
        front_end.send(Request.SET_VRING_ADDR, ring_addresses(0, USER))
        front_end.send(Request.SET_FEATURES, struct.pack("<Q", PACKED))
        front_end.send(Request.SET_VRING_KICK, struct.pack("<Q", 0), [front_end.eventfd()])
        front_end.sync()
        assert not server.function.state.rings[0].started
        front_end.start_ring(0, base=FRESH)
        front_end.sync()
        ring = server.function.state.rings[0]
        assert (ring.started, ring.base) == (True, FRESH)
        assert front_end.stop_ring(0) == FRESH
        assert front_end.acknowledged(Request.RESET_DEVICE)
        front_end.send(Request.SET_FEATURES, struct.pack("<Q", FEATURES))
        front_end.start_ring(0)
        front_end.sync()
        assert server.function.state.rings[0].started
        assert front_end.stop_ring(0) == 0


POSITIONS = {
    # committed, intended, flags of the descriptors from committed on: where the ring stands.
    "at rest": ((WRAP | 7, WRAP | 7), AVAIL, WRAP | 7),
    "published": ((WRAP | 7, WRAP | 9), AVAIL | USED, WRAP | 9),
    "published, one frame": ((WRAP | 7, 1 << 16 | WRAP | 9), AVAIL | USED, WRAP | 9),
    "published across the end": ((WRAP | 250, 4), AVAIL | USED, 4),
    "published, wrap counter 0": ((250, WRAP | 4), 0, WRAP | 4),
    "published, and available again": ((WRAP | 7, WRAP | 9), USED, WRAP | 9),
    "not published": ((WRAP | 7, WRAP | 9), AVAIL, WRAP | 7),
    "not published, wrap counter 0": ((7, 9), USED, 7),
    "a whole ring": ((WRAP | 7, 7), AVAIL | USED, 7),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_base_of_a_stopped_ring(name: str) -> None:
    """docs/device.md 5.6: from the words, and from VM1's descriptor where they differ."""
    words, flags, position = POSITIONS[name]
    with negotiated() as (server, front_end, fd):
        front_end.start_ring(0, base=FRESH)
        front_end.sync()
        server.function.leave(0, *words)
        for index in (0, 1):  # of the batch's two descriptors
            write_flags(fd, (words[0] & 0x7FFF) + index, flags)
        assert front_end.stop_ring(0) == position << 16 | position
        assert front_end.stop_ring(0) == position << 16 | position


@pytest.mark.parametrize("one_frame", [False, True])
def test_a_batch_that_was_cut_short_is_finished(one_frame: bool) -> None:
    """From the last to the first: the third of three buffers is marked, the other two are not."""
    with negotiated() as (server, front_end, fd):
        front_end.start_ring(0, base=FRESH)
        front_end.sync()
        ring = {
            254: (BUS, 1000, 11, WRITE | NEXT | AVAIL),
            255: (BUS, 500, 12, WRITE | AVAIL),
            0: (BUS + 0x8000, 32, 13, INDIRECT | USED),
            1: (BUS, 77, 14, WRITE),
            2: (BUS, 2000, 15, WRITE | USED),
        }
        for index, desc in ring.items():
            os.pwrite(fd, DESC.pack(*desc), DESC.size * index)
        table = DESC.pack(BUS, 300, 0, WRITE) + DESC.pack(BUS, 200, 0, WRITE)
        os.pwrite(fd, table, 0x8000)
        server.function.leave(0, WRAP | 254, 2 | (1 << 16 if one_frame else 0))
        assert front_end.stop_ring(0) == 2 << 16 | 2
        found = {index: DESC.unpack(os.pread(fd, DESC.size, DESC.size * index)) for index in ring}
        first, second = (1500, 500) if one_frame else (0, 0)
        wrote = WRITE if one_frame else 0
        ring[254] = (BUS, first, 12, AVAIL | USED | wrote)
        ring[0] = (BUS + 0x8000, second, 13, wrote)
        assert found == ring


HOSTILE = {
    "index is the size": (WRAP | 256, WRAP | 256),
    "wide": (1 << 16, 1 << 16),
    "all ones": (0xFFFF_FFFF, 0xFFFF_FFFF),
    "intended beyond": (WRAP | 7, WRAP | 256),
    "intended wide": (WRAP | 7, 1 << 17 | WRAP | 7),
    "further than the ring": (WRAP | 7, 8),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_words_that_cannot_be(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A driver that writes nonsense: VM1 gets the base it gave, and the log says so."""
    with negotiated() as (server, front_end, fd):
        for index in range(5):
            write_flags(fd, index, AVAIL | USED)
        front_end.start_ring(0, base=FRESH | 5 << 16 | 5)
        front_end.sync()
        server.function.leave(0, *HOSTILE[name])
        write_flags(fd, 7, AVAIL | USED)
        assert front_end.stop_ring(0) == FRESH | 5 << 16 | 5
    assert "ring 0: nobody knows where it stands" in caplog.text


STANDS = {
    # Flags of four descriptors, a base, whether the ring may stand there.
    "fresh": ((0, 0, 0, 0), WRAP, True),
    "fresh, stocked": ((AVAIL, AVAIL, AVAIL, AVAIL), WRAP, True),
    "middle of the first lap": ((AVAIL | USED, AVAIL, 0, 0), WRAP | 2, True),  # a chain of two
    "stocked anew behind it": ((USED, USED, AVAIL, AVAIL), WRAP | 2, True),
    "second lap": ((0, AVAIL, AVAIL | USED, USED), 1, True),
    "p17_stale: used since": ((AVAIL | USED, AVAIL, 0, 0), WRAP, False),
    "p17_stale: a lap behind": ((0, 0, AVAIL | USED, AVAIL | USED), WRAP, False),
    "p17_stale: a lap ahead": ((0, 0, 0, 0), WRAP | 2, False),
}


@pytest.mark.parametrize("name", STANDS)
def test_p17_a_base_that_the_ring_denies(name: str) -> None:
    """After a device's death QEMU gives the base of the last start: nobody is to guess."""
    flags, base, may = STANDS[name]
    with negotiated() as (server, front_end, fd):
        for index, value in enumerate(flags):
            write_flags(fd, index, value)
        front_end.start_ring(0, size=4, base=base)
        front_end.sync()
        assert server.function.state.rings[0].started is may
        assert server.backend._counters["ring_base"] == (not may)
        assert front_end.ask_u64(Request.GET_STATUS) == (0 if may else 0x40)
        if not may:  # VM1's driver makes its ring anew
            front_end.stop_ring(0)
            os.pwrite(fd, bytes(64), 0)
            front_end.start_ring(0, size=4, base=FRESH)
            front_end.sync()
            assert server.function.state.rings[0].started


def test_base_of_a_ring_whose_memory_was_taken_away() -> None:
    with negotiated() as (server, front_end, fd):
        front_end.start_ring(0, base=FRESH)
        front_end.sync()
        server.function.leave(0, WRAP | 7, WRAP | 9)
        write_flags(fd, 7, AVAIL | USED)
        assert front_end.set_memory([Region(BUS, MIB, USER + MIB, MIB)], [fd])
        assert not server.function.state.rings[0].started
        assert front_end.set_memory([WHOLE], [fd])
        assert server.function.state.rings[0].base == (WRAP | 9) << 16 | WRAP | 9
        assert server.function.position(0) == (WRAP | 9, WRAP | 9)


def test_tables_that_cannot_be_are_empty() -> None:
    """Lengths of no table, and one that cannot be read: the buffer is given back with 0 bytes."""
    for length in (8, 48, 0, 32):
        ring = [(BUS, length, 5, INDIRECT | AVAIL), (BUS, 9, 6, WRITE | AVAIL | USED)]
        remains = PackedRemains(b"".join(DESC.pack(*desc) for desc in ring), lambda *_: None)
        mark = (8, struct.pack("<IHH", 0, 5, AVAIL | USED))
        assert remains.standing((WRAP, 1 << 16)) == Standing(0, (Mark(*mark),))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 0xFFFF)] * 4), min_size=2, max_size=6),
    st.integers(0, 0xFFFF_FFFF),
    st.one_of(st.integers(0, 0xFFFF_FFFF), st.sampled_from([0, WRAP, 1, WRAP | 1, 1 << 16])),
)
def test_any_remains(ring: list[tuple[int, int, int, int]], committed: int, intended: int) -> None:
    """Whatever VM1 and a driver left: a position of the ring, marks inside it, or nothing."""
    content = b"".join(DESC.pack(*desc) for desc in ring)
    standing = PackedRemains(content, lambda _, size: bytes(size)).standing((committed, intended))
    if standing is not None:
        assert standing.position & 0x7FFF < len(ring)
        assert standing.position in (committed, intended & 0xFFFF)
        assert all(0 <= mark.offset <= len(content) - 8 for mark in standing.marks)
        assert all(len(mark.data) == 8 for mark in standing.marks)
