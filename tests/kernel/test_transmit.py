"""VM1 transmits: each way to break a chain, by name, with its exact verdict (virtio 1.3, 2.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pmd.kernel import FRAME_MAX, DirectionStats, Work
from tests.kernel.holding_port import HoldingPort
from tests.kernel.rig import (
    BIG,
    DATA,
    DATA_END,
    DATA_SEAM,
    DESC,
    INDIRECT,
    MORE,
    NEXT,
    READ_ONLY,
    TOP,
    USED,
    WRITE,
    Rig,
    frames_of,
    transmit,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Breaker = Callable[[Rig], None]

GOOD = (DATA, 100)  # a buffer that is fine
TABLE = MORE


def _after_good(rig: Rig) -> None:
    """A good chain follows the bad one at head 0, and must come through."""
    rig.make_available(0)
    rig.chain(rig.layout.size - 1, [GOOD])


def _self_loop(rig: Rig) -> None:
    rig.desc(0, *GOOD, NEXT, 0)


def _pair_loop(rig: Rig) -> None:
    rig.desc(0, *GOOD, NEXT, 1)
    rig.desc(1, *GOOD, NEXT, 0)


def _loop_of_empty_buffers(rig: Rig) -> None:
    rig.desc(0, DATA, 0, NEXT, 0)


def _indirect(*entries: tuple[int, int, int, int], length: int | None = None) -> Breaker:
    def poke(rig: Rig) -> None:
        rig.table(TABLE, *entries)
        rig.desc(0, TABLE, 16 * len(entries) if length is None else length, INDIRECT)

    return poke


def _chain(*descs: tuple[int, int, int, int]) -> Breaker:
    def poke(rig: Rig) -> None:
        for index, desc in enumerate(descs):
            rig.desc(index, *desc)

    return poke


def _table(*entries: tuple[int, int, int, int], bus: int = TABLE) -> Breaker:
    return lambda rig: rig.table(bus, *entries)


def _all(*pokes: Breaker) -> Breaker:
    def poke(rig: Rig) -> None:
        for each in pokes:
            each(rig)

    return poke


END = (1 << 64) - 16
BROKEN = {
    "S01 self loop": (_self_loop, "chain_loop"),
    "S01 loop of two": (_pair_loop, "chain_loop"),
    "S01 loop of empty buffers": (_loop_of_empty_buffers, "chain_loop"),
    "S03 table of size after one direct": (
        _all(
            _chain((DATA, 1, NEXT, 1), (TABLE, 16 * 8, INDIRECT, 0)),
            _table(*[(DATA, 20, NEXT, i + 1) for i in range(7)], (DATA, 20, 0, 0)),
        ),
        "chain_loop",
    ),
    "S04 next is size": (_chain((*GOOD, NEXT, 8)), "bad_next"),
    "S04 next is 0x7fff": (_chain((*GOOD, NEXT, 0x7FFF)), "bad_next"),
    "S04 next is 0xffff": (_chain((*GOOD, NEXT, 0xFFFF)), "bad_next"),
    "S09 nothing": (_chain((0, 0, 0, 0)), "runt"),
    "S09 empty buffers at bad addresses": (_chain((END, 0, NEXT, 1), (0, 0, 0, 0)), "runt"),
    "S10 past the end of addresses": (_chain((END, 64, 0, 0)), "bad_address"),
    "S10 4 GiB - 1": (_chain((DATA, 0xFFFFFFFF, 0, 0)), "oversize"),
    "S10 sum past 4 GiB": (
        _chain(*[(DATA, 0x7FFFFFFF, NEXT, i) for i in (1, 2)], (*GOOD, 0, 0)),
        "oversize",
    ),
    "S12 one byte too far": (_chain((DATA_END - 99, 100, 0, 0)), "bad_address"),
    "S12 one byte too early": (_chain((DATA - 1, 100, 0, 0)), "bad_address"),
    "S14 across a hole": (_chain((DATA_END - 50, 0x1000 + 100, 0, 0)), "bad_address"),
    "S15 writable only": (_chain((*GOOD, WRITE, 0)), "bad_direction"),
    "S15 writable first": (_chain((*GOOD, WRITE | NEXT, 1), (*GOOD, 0, 0)), "bad_direction"),
    "S15 writable last": (_chain((*GOOD, NEXT, 1), (*GOOD, WRITE, 0)), "bad_direction"),
    "S15 empty and writable": (_chain((*GOOD, NEXT, 1), (DATA, 0, WRITE, 0)), "bad_direction"),
    "S17 readable after writable": (
        _chain((*GOOD, NEXT, 1), (*GOOD, WRITE | NEXT, 2), (*GOOD, 0, 0)),
        "bad_direction",
    ),
    "S19 indirect with next": (_chain((TABLE, 16, INDIRECT | NEXT, 1)), "bad_indirect"),
    "S20 nested indirect": (_indirect((TABLE, 16, INDIRECT, 0)), "bad_indirect"),
    **{
        f"S21 table of {length} bytes": (_indirect((*GOOD, 0, 0), length=length), "bad_indirect")
        for length in (0, 1, 15, 17, 16 * 9, 0xFFFFFFF0)
    },
    "S24 table past the end": (_chain((DATA_END - 16, 32, INDIRECT, 0)), "bad_address"),
    "S24 table nowhere": (_chain((DATA_END, 16, INDIRECT, 0)), "bad_address"),
    "S25 loop in a table": (_indirect((*GOOD, NEXT, 1), (*GOOD, NEXT, 0)), "chain_loop"),
    "S25 next is a table's count": (_indirect((*GOOD, NEXT, 1)), "bad_next"),
    "S32 header only": (_chain((DATA, 12, 0, 0)), "runt"),
    "S32 less than a header": (_chain((DATA, 11, 0, 0)), "runt"),
    "S32 one byte less than Ethernet": (_chain((DATA, 12 + 13, 0, 0)), "runt"),
    "S33 one byte more than a frame": (_chain((BIG, 12 + FRAME_MAX + 1, 0, 0)), "oversize"),
    "S38 all ones": (_chain((0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF, 0xFFFF, 0xFFFF)), "bad_indirect"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_chain_is_dropped_and_the_next_goes_through(name: str) -> None:
    poke, verdict = BROKEN[name]
    with Rig(8, indirect=True) as rig:
        poke(rig)
        _after_good(rig)
        outcome = transmit(rig)
        assert outcome.drops == {verdict: 1}
        assert outcome.frames == [rig.peek(DATA + 12, 88)]
        assert outcome.fault == "none"
        assert rig.used(2) == [(0, 0), (7, 0)]


LEGAL = {
    "S02 chain of size": (
        _chain(*[(DATA + 4 * i, 4, NEXT if i < 7 else 0, i + 1) for i in range(8)]),
        [(DATA, 32)],
    ),
    "S02 table of size": (
        _indirect(*[(DATA + 4 * i, 4, NEXT if i < 7 else 0, i + 1) for i in range(8)]),
        [(DATA, 32)],
    ),
    "S09 empty buffers among others": (
        _chain((END, 0, NEXT, 1), (DATA, 50, NEXT, 2), (0, 0, 0, 0)),
        [(DATA, 50)],
    ),
    "S11 to the end of a region": (_chain((DATA_END - 60, 60, 0, 0)), [(DATA_END - 60, 60)]),
    "S11 to the end of addresses": (
        _chain(((1 << 64) - 60, 60, 0, 0)),
        [((1 << 64) - 60, 60)],
    ),
    "S11 the last page whole": (_chain((TOP, 0x1000, 0, 0)), [(TOP, 0x1000)]),
    "S13 across the seam": (_chain((DATA_SEAM - 30, 60, 0, 0)), [(DATA_SEAM - 30, 60)]),
    "S13 into another window": (_chain((READ_ONLY - 30, 60, 0, 0)), [(READ_ONLY - 30, 60)]),
    "S22 direct, then a table": (
        _all(
            _chain((DATA, 20, NEXT, 1), (TABLE, 16, INDIRECT, 0)),
            _table((DATA + 20, 30, 0, 0)),
        ),
        [(DATA, 50)],
    ),
    "S23 writable table": (
        _all(_chain((TABLE, 16, INDIRECT | WRITE, 0)), _table((DATA, 50, 0, 0))),
        [(DATA, 50)],
    ),
    "S24 table across the seam": (
        _all(
            _chain((DATA_SEAM - 8, 32, INDIRECT, 0)),
            _table((DATA, 20, NEXT, 1), (DATA + 20, 30, 0, 0), bus=DATA_SEAM - 8),
        ),
        [(DATA, 50)],
    ),
    "S24 table in the used ring": (
        _all(_chain((USED + 32, 16, INDIRECT, 0)), _table((DATA, 50, 0, 0), bus=USED + 32)),
        [(DATA, 50)],
    ),
    "S24 table that is the ring's own": (
        _chain((DESC + 16, 16, INDIRECT, 0), (DATA, 50, 0, 0)),
        [(DATA, 50)],
    ),
    "S32 header in single bytes": (
        _indirect(*[(DATA + i, 1, NEXT, i + 1) for i in range(7)], (DATA + 7, 53, 0, 0)),
        [(DATA, 60)],
    ),
    "S33 the longest frame": (_chain((BIG, 12 + FRAME_MAX, 0, 0)), [(BIG, 12 + FRAME_MAX)]),
    "the shortest frame": (_chain((DATA, 26, 0, 0)), [(DATA, 26)]),
}


@pytest.mark.parametrize("name", LEGAL)
def test_legal_chain_goes_through(name: str) -> None:
    poke, content = LEGAL[name]
    with Rig(8, indirect=True) as rig:
        poke(rig)
        rig.make_available(0)
        expected = b"".join(rig.peek(*each) for each in content)[12:]
        outcome = transmit(rig)
        assert outcome.frames == [expected]
        assert outcome.drops == {}
        assert rig.used(1) == [(0, 0)]


def test_s18_indirect_that_was_not_negotiated() -> None:
    with Rig(8) as rig:
        rig.table(TABLE, (*GOOD, 0, 0))
        rig.desc(0, TABLE, 16, INDIRECT)
        _after_good(rig)
        assert transmit(rig).drops == {"bad_indirect": 1}


def test_s33_a_frame_in_512_single_bytes() -> None:
    with Rig(512) as rig:
        rig.chain(0, [(DATA + i, 1) for i in range(512)])
        assert transmit(rig).frames == [rig.peek(DATA + 12, 500)]


@pytest.mark.parametrize("head", [8, 0x7FFF, 0xFFFF])
def test_s05_bad_head_quarantines_after_the_chains_before_it(head: int) -> None:
    with Rig(8) as rig:
        rig.chain(3, [GOOD])
        rig.make_available(head)
        rig.make_available(3)
        outcome = transmit(rig)
        assert outcome.fault == "bad_head"
        assert outcome.packets == 1
        assert rig.used_index() == 1


@pytest.mark.parametrize("jump", [9, 32768, 65535])
def test_s06_index_jump_consumes_nothing(jump: int) -> None:
    def publish(rig: Rig) -> None:
        rig.index = jump
        rig.make_available()

    with Rig(8) as rig:
        outcome = transmit(rig, then=publish)
        assert outcome.fault == "index_jump"
        assert rig.used_index() == 0


@pytest.mark.parametrize("size", [1, 2, 256])
def test_s07_the_index_wraps(size: int) -> None:
    with Rig(size) as rig:
        start = 65536 - size // 2 if size > 1 else 65535
        rig.set_index(start)
        for index in range(size):
            rig.chain(index, [(DATA + index, 40)])
        outcome = transmit(rig, burst=7)
        assert outcome.packets == size
        assert rig.used_index() == (start + size) % 65536
        assert rig.used(size) == [(index, 0) for index in range(size)]


def test_s34_a_disabled_ring_returns_every_chain_unwalked() -> None:
    with Rig(8, enabled=False) as rig:
        rig.chain(0, [GOOD])
        rig.desc(1, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF, 0xFFFF, 0xFFFF)
        rig.make_available(1)
        outcome = transmit(rig)
        assert outcome.drops == {"disabled": 2}
        assert outcome.frames == []
        assert rig.used(2) == [(0, 0), (1, 0)]


def test_s29_what_vm1_writes_into_the_used_ring_changes_nothing() -> None:
    with Rig(8) as rig:
        stats = DirectionStats()
        queue, port = rig.queue(stats), rig.port()
        work = Work(queue, None, port)
        for round_ in range(20):
            rig.poke(USED, b"\xff" * 64)
            rig.chain(round_ % 8, [(DATA + round_, 50)])
            assert work.turn(32) == 1
            assert frames_of(port) == [rig.peek(DATA + round_ + 12, 38)]
            assert rig.used_index() == round_ + 1
            assert rig.used(1) == [(round_ % 8, 0)]


def test_frames_a_full_port_does_not_take_stay_in_the_ring() -> None:
    with Rig(32) as rig:
        for index in range(32):
            rig.chain(index, [(BIG + index, 60012)])
        queue = rig.queue(DirectionStats())
        port = HoldingPort(lambda number: number % 7 > 2, room=4)
        work = Work(queue, None, port)
        ring, _ = rig.oracle()
        while len(port.sent) < 32 or port.held:
            sent = len(port.sent)
            work.turn(256)
            assert len(port.sent) < sent + 32, "the port must fill up"
            port.finish(1)
        work.turn(256)
        assert port.sent == ring.transmit(256)
        assert rig.used_index() == 32
        assert list(queue.stats.drops) == [0] * 16
