"""VM1 receives: sizes of buffers, mergeable or not, and broken chains (virtio 1.3, 5.1.6.4)."""

from __future__ import annotations

import pytest

from pmd.kernel import FRAME_MAX, DirectionStats, Work
from tests.kernel.rig import (
    BIG,
    DATA,
    DATA_END,
    DATA_SEAM,
    INDIRECT,
    MORE,
    NEXT,
    READ_ONLY,
    WRITE,
    Rig,
    frames_of,
    give,
    receive,
)

FRAME = bytes(range(200))


def _header(size: int, buffers: int) -> bytes:
    return bytes(10) + (buffers.to_bytes(2, "little") if size == 12 else b"")


@pytest.mark.parametrize("header", [10, 12])
def test_a_frame_is_written_after_a_zero_header(header: int) -> None:
    with Rig(8, header_bytes=header) as rig:
        rig.chain(2, [(DATA, 5), (DATA + 5, 100), (DATA + 105, 1000)], WRITE)
        outcome = receive(rig, [FRAME])
        assert outcome.packets == 1
        assert rig.peek(DATA, header + 200) == _header(header, 1) + FRAME
        assert rig.used(1) == [(2, header + 200)]


def test_s11_s13_buffers_at_ends_and_across_the_seam() -> None:
    with Rig(8) as rig:
        rig.chain(0, [(DATA_END - 212, 212)], WRITE)
        rig.chain(1, [(DATA_SEAM - 100, 212)], WRITE)
        assert receive(rig, [FRAME, FRAME]).packets == 2
        assert rig.peek(DATA_END - 212, 212) == _header(12, 1) + FRAME
        assert rig.peek(DATA_SEAM - 100, 212) == _header(12, 1) + FRAME


def test_s22_s23_indirect_after_direct() -> None:
    with Rig(8, indirect=True) as rig:
        rig.desc(0, DATA, 12, WRITE | NEXT, 1)
        rig.desc(1, MORE, 32, INDIRECT | WRITE)
        rig.table(MORE, (DATA + 12, 50, WRITE | NEXT, 1), (DATA + 62, 500, WRITE, 0))
        rig.make_available(0)
        receive(rig, [FRAME])
        assert rig.peek(DATA + 12, 200) == FRAME
        assert rig.used(1) == [(0, 212)]


BROKEN = {
    "S12 one byte too far": ((DATA_END - 211, 212, WRITE, 0), "bad_address"),
    "S14 in a hole": ((DATA_END, 212, WRITE, 0), "bad_address"),
    "S16 readable": ((DATA, 1000, 0, 0), "bad_direction"),
    "S16 readable last": ((DATA, 1000, WRITE | NEXT, 6), "bad_direction"),
    "read-only memory": ((READ_ONLY, 1000, WRITE, 0), "bad_address"),
    "S13 into read-only memory": ((READ_ONLY - 100, 212, WRITE, 0), "bad_address"),
    "S01 loop": ((DATA, 4, WRITE | NEXT, 0), "chain_loop"),
    "S04 next": ((DATA, 1000, WRITE | NEXT, 8), "bad_next"),
    "S18 indirect": ((MORE, 16, INDIRECT, 0), "bad_indirect"),
}


@pytest.mark.parametrize("mergeable", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_chain_goes_back_empty_and_the_frame_takes_the_next(
    name: str, mergeable: bool
) -> None:
    desc, verdict = BROKEN[name]
    with Rig(8, mergeable=mergeable) as rig:
        rig.desc(0, *desc)
        rig.desc(6, DATA, 1000, 0)
        rig.make_available(0)
        rig.chain(7, [(BIG, 1000)], WRITE)
        outcome = receive(rig, [FRAME])
        assert outcome.drops == {verdict: 1}
        assert outcome.packets == 1
        assert rig.used(2) == [(0, 0), (7, 212)]
        assert rig.peek(BIG + 12, 200) == FRAME


@pytest.mark.parametrize("capacity", [0, 1, 11, 12, 13, 211])
def test_s31_small_buffers_drop_the_frame_and_larger_ones_recover(capacity: int) -> None:
    with Rig(8) as rig:
        rig.chain(0, [(DATA, capacity)], WRITE)
        rig.chain(1, [(DATA, 212)], WRITE)
        outcome = receive(rig, [FRAME, FRAME])
        assert outcome.drops == {"small_buffer": 1}
        assert outcome.packets == 1
        assert rig.used(2) == [(0, 0), (1, 212)]


def test_mergeable_fills_all_but_the_last_and_counts_them() -> None:
    with Rig(8, mergeable=True) as rig:
        for index, length in enumerate([100, 0, 50, 100, 1000]):
            rig.chain(index, [(DATA + 0x100 * index, length)], WRITE)
        outcome = receive(rig, [FRAME])
        assert outcome.packets == 1
        assert rig.used(4) == [(0, 100), (1, 0), (2, 50), (3, 62)]
        assert rig.used_index() == 4
        assert rig.peek(DATA, 100) == _header(12, 4) + FRAME[:88]
        assert rig.peek(DATA + 0x300, 62) == FRAME[138:]


def test_mergeable_waits_for_more_buffers_and_then_goes_on() -> None:
    with Rig(8, mergeable=True) as rig:
        port = rig.port()
        work = Work(None, rig.queue(DirectionStats()), port)
        give(port, [FRAME])
        rig.chain(0, [(DATA, 100)], WRITE)
        assert work.turn(32) == 0
        assert rig.used_index() == 0
        rig.chain(1, [(DATA + 100, 112)], WRITE)
        assert work.turn(32) == 2
        assert rig.used(2) == [(0, 100), (1, 112)]
        assert rig.peek(DATA, 212) == _header(12, 2) + FRAME
        assert frames_of(port) == []


def test_s31_a_full_ring_of_small_buffers_drops_the_frame() -> None:
    with Rig(4, mergeable=True) as rig:
        for index in range(4):
            rig.chain(index, [(DATA, 20)], WRITE)
        outcome = receive(rig, [FRAME])
        assert outcome.drops == {"small_buffer": 1}
        assert rig.used(4) == [(index, 0) for index in range(4)]


def _every_descriptor(rig: Rig, *lengths: int) -> None:
    """Chains of so many one-byte buffers; 0: one that has two of them in a table."""
    head = 0
    for chain, length in enumerate(lengths):
        if length:
            rig.chain(head, [(DATA + head, 1)] * length, WRITE)
        else:
            bus = MORE + 32 * chain
            rig.table(bus, (DATA, 1, WRITE | NEXT, 1), (DATA + 1, 1, WRITE, 0))
            rig.chain(head, [(bus, 32)], INDIRECT)
        head += max(length, 1)


@pytest.mark.parametrize("lengths", [(8,), (3, 5), (1, 0, 6), (7, 0), (0,) * 8], ids=str)
def test_s31_chains_of_all_descriptors_that_hold_no_frame(lengths: tuple[int, ...]) -> None:
    """VM1 has none left to post more with: it gets them back, and may post larger ones."""
    with Rig(8, mergeable=True, indirect=True) as rig:
        _every_descriptor(rig, *lengths)
        outcome = receive(rig, [FRAME, FRAME])
        assert outcome.drops == {"small_buffer": 1}
        assert outcome.frames == [FRAME]
        assert [length for _, length in rig.used(len(lengths))] == [0] * len(lengths)


@pytest.mark.parametrize("lengths", [(7,), (3, 4), (1, 0, 5), (0,) * 7], ids=str)
def test_chains_of_all_descriptors_but_one_wait_for_it(lengths: tuple[int, ...]) -> None:
    with Rig(8, mergeable=True, indirect=True) as rig:
        _every_descriptor(rig, *lengths)
        outcome = receive(rig, [FRAME])
        assert (outcome.drops, outcome.frames) == ({}, [FRAME])
        rig.chain(7, [(BIG, 1000)], WRITE)
        assert receive(rig, [FRAME]).packets == 1
        assert rig.used(1)[0][0] == 7


def test_a_broken_chain_amid_gathering_returns_those_before_it_too() -> None:
    with Rig(8, mergeable=True) as rig:
        rig.chain(0, [(DATA, 100)], WRITE)
        rig.chain(1, [(DATA, 100)])
        rig.chain(2, [(DATA, 100)], WRITE)
        rig.chain(3, [(DATA + 100, 112)], WRITE)
        outcome = receive(rig, [FRAME])
        assert outcome.drops == {"bad_direction": 1}
        assert rig.used(4) == [(0, 0), (1, 0), (2, 100), (3, 112)]


def test_the_longest_frame_and_buffers_beyond_it() -> None:
    frame = bytes(i * 7 % 256 for i in range(FRAME_MAX))
    with Rig(8) as rig:
        # A buffer after those that hold the longest frame is not looked at: it may lie nowhere.
        rig.chain(0, [(BIG, 12 + FRAME_MAX), (DATA_END, 1)], WRITE)
        assert receive(rig, [frame]).packets == 1
        assert rig.peek(BIG + 12, FRAME_MAX) == frame


def test_s34_a_disabled_ring_leaves_buffers_and_frames_alone() -> None:
    with Rig(8, enabled=False) as rig:
        rig.chain(0, [(DATA, 1000)], WRITE)
        outcome = receive(rig, [FRAME])
        assert outcome.frames == [FRAME]
        assert rig.used_index() == 0


@pytest.mark.parametrize("mergeable", [False, True])
def test_s05_bad_head(mergeable: bool) -> None:
    with Rig(8, mergeable=mergeable) as rig:
        rig.chain(0, [(DATA, 212)], WRITE)
        rig.chain(1, [(DATA, 100 if mergeable else 212)], WRITE)
        rig.make_available(8)
        outcome = receive(rig, [FRAME] * 3)
        assert outcome.fault == "bad_head"
        assert rig.used_index() == (1 if mergeable else 2)


def test_s06_index_jump() -> None:
    def publish(rig: Rig) -> None:
        rig.index = 9
        rig.make_available()

    with Rig(8) as rig:
        assert receive(rig, [FRAME], then=publish).fault == "index_jump"
        assert rig.used_index() == 0


@pytest.mark.parametrize("size", [1, 2, 256])
def test_s07_the_index_wraps(size: int) -> None:
    with Rig(size) as rig:
        rig.set_index(65535)
        for index in range(size):
            rig.chain(index, [(DATA + 64 * index, 64)], WRITE)
        frames = [bytes([index]) * 40 for index in range(size)]
        assert receive(rig, frames, burst=5).packets == size
        assert rig.used(size) == [(index, 52) for index in range(size)]


def test_s08_a_buffer_posted_twice_receives_twice() -> None:
    """Each posting is one; that the second frame lies over the first is VM1's own loss."""
    with Rig(8) as rig:
        rig.desc(0, BIG, 512, WRITE)
        rig.make_available(0, 0)
        assert receive(rig, [FRAME, FRAME[::-1]]).packets == 2
        assert rig.used(2) == [(0, 12 + len(FRAME))] * 2
        assert rig.peek(BIG + 12, len(FRAME)) == FRAME[::-1]


def test_frames_wait_while_there_are_no_buffers() -> None:
    with Rig(8) as rig:
        assert receive(rig, [FRAME, FRAME]).frames == [FRAME, FRAME]
