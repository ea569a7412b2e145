"""VM1 transmits on a packed ring: each way to break a chain, by name, with its verdict (2.8)."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pmd.kernel import FRAME_MAX, DirectionStats, Work
from tests.kernel.packed_driver import AVAIL, INDIRECT, NEXT, USED, WRAP, WRITE
from tests.kernel.packed_rig import AT, DISABLE, ENABLE, PackedRig
from tests.kernel.rig import (
    BIG,
    DATA,
    DATA_END,
    DATA_SEAM,
    DESC,
    MORE,
    READ_ONLY,
    TOP,
    frames_of,
    transmit,
)

Desc = tuple[int, int, int]  # address, length, flags

GOOD = (DATA, 100)  # a buffer that is fine
TABLE = MORE
END = (1 << 64) - 16
SIZE = 9


@dataclass(frozen=True)
class Case:
    """Descriptors of one chain, and its indirect table: entries are address, length, id, flags."""

    descs: list[Desc]
    table: list[tuple[int, int, int, int]] = field(default_factory=list)
    table_bus: int = TABLE

    def post(self, rig: PackedRig, buffer_id: int) -> None:
        rig.table(self.table_bus, *self.table)
        for place, (address, length, flags) in enumerate(self.descs):
            last = place + 1 == len(self.descs)
            shown = buffer_id if last else 0xDEAD
            rig.driver.put(address, length, shown, flags, first=place == 0)
        rig.driver.posted.append((buffer_id, len(self.descs)))


def _table_of(length: int, count: int = 1) -> Case:
    return Case([(TABLE, length, INDIRECT)], [(*GOOD, 0, 0)] * count)


BROKEN = {
    "P01 INDIRECT with NEXT": (Case([(TABLE, 16, INDIRECT | NEXT), (*GOOD, 0)]), "bad_indirect"),
    "P01 table in a list": (
        Case([(*GOOD, NEXT), (TABLE, 16, INDIRECT)], [(*GOOD, 0, 0)]),
        "bad_indirect",
    ),
    **{
        f"P12 table of {length} bytes": (_table_of(length), "bad_indirect")
        for length in (0, 1, 15, 17, 16 * (SIZE + 1), 0xFFFFFFF0)
    },
    "P12 table past the end": (Case([(DATA_END - 16, 32, INDIRECT)]), "bad_address"),
    "P12 table nowhere": (Case([(DATA_END, 16, INDIRECT)]), "bad_address"),
    "S09 nothing": (Case([(0, 0, 0)]), "runt"),
    "S09 empty buffers at bad addresses": (Case([(END, 0, NEXT), (0, 0, 0)]), "runt"),
    "P11 past the end of addresses": (Case([(END, 64, 0)]), "bad_address"),
    "P11 4 GiB - 1": (Case([(DATA, 0xFFFFFFFF, 0)]), "oversize"),
    "P11 sum past 4 GiB": (
        Case([(DATA, 0x7FFFFFFF, NEXT), (DATA, 0x7FFFFFFF, NEXT), (*GOOD, 0)]),
        "oversize",
    ),
    "P11 one byte too far": (Case([(DATA_END - 99, 100, 0)]), "bad_address"),
    "P11 one byte too early": (Case([(DATA - 1, 100, 0)]), "bad_address"),
    "P11 across a hole": (Case([(DATA_END - 50, 0x1000 + 100, 0)]), "bad_address"),
    "S15 writable only": (Case([(*GOOD, WRITE)]), "bad_direction"),
    "S15 writable first": (Case([(*GOOD, WRITE | NEXT), (*GOOD, 0)]), "bad_direction"),
    "S15 writable last": (Case([(*GOOD, NEXT), (*GOOD, WRITE)]), "bad_direction"),
    "a fault, and more faults after it": (
        Case([(DATA - 1, 100, NEXT), (*GOOD, WRITE | NEXT), (TABLE, 17, INDIRECT)]),
        "bad_address",
    ),
    "S32 header only": (Case([(DATA, 12, 0)]), "runt"),
    "S32 one byte less than Ethernet": (Case([(DATA, 12 + 13, 0)]), "runt"),
    "S33 one byte more than a frame": (Case([(BIG, 12 + FRAME_MAX + 1, 0)]), "oversize"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_chain_is_dropped_and_the_next_goes_through(name: str) -> None:
    case, verdict = BROKEN[name]
    with PackedRig(SIZE, (SIZE - 2) | WRAP, indirect=True) as rig:
        case.post(rig, 40)
        rig.driver.post(50, [GOOD])
        rig.driver.show()
        outcome = transmit(rig)
        assert outcome.drops == {verdict: 1}
        assert outcome.frames == [rig.peek(DATA + 12, 88)]
        assert outcome.fault == "none"
        assert [(each.id, each.length) for each in rig.driver.reap()] == [(40, 0), (50, 0)]


LEGAL = {
    "P03 list of size": (
        Case([(DATA + 4 * i, 4, NEXT if i + 1 < SIZE else 0) for i in range(SIZE)]),
        [(DATA, 4 * SIZE)],
    ),
    "P12 table of size": (
        Case([(TABLE, 16 * SIZE, INDIRECT)], [(DATA + 4 * i, 4, 0, 0) for i in range(SIZE)]),
        [(DATA, 4 * SIZE)],
    ),
    "P12 flags and ids of a table count for nothing": (
        Case(
            [(TABLE, 32, INDIRECT)],
            [(DATA, 20, 0xFFFF, 0xFFFF & ~WRITE), (DATA + 20, 30, 99, NEXT | INDIRECT)],
        ),
        [(DATA, 50)],
    ),
    "S15 a table's entries marked as DPDK's driver marks them": (
        Case(
            [(TABLE, 48, INDIRECT)], [(DATA, 12, 0, WRITE), (DATA + 12, 9, 0, WRITE), (*GOOD, 0, 0)]
        ),
        [(DATA, 21), GOOD],
    ),
    "2.8.7 WRITE of the descriptor of a table": (
        Case([(TABLE, 16, INDIRECT | WRITE)], [(DATA, 50, 0, 0)]),
        [(DATA, 50)],
    ),
    "P12 table across the seam": (
        Case(
            [(DATA_SEAM - 8, 32, INDIRECT)],
            [(DATA, 20, 0, 0), (DATA + 20, 30, 0, 0)],
            DATA_SEAM - 8,
        ),
        [(DATA, 50)],
    ),
    "S09 empty buffers among others": (
        Case([(END, 0, NEXT), (DATA, 50, NEXT), (0, 0, 0)]),
        [(DATA, 50)],
    ),
    "S11 to the end of a region": (Case([(DATA_END - 60, 60, 0)]), [(DATA_END - 60, 60)]),
    "S11 to the end of addresses": (Case([((1 << 64) - 60, 60, 0)]), [((1 << 64) - 60, 60)]),
    "S11 the last page whole": (Case([(TOP, 0x1000, 0)]), [(TOP, 0x1000)]),
    "S13 across the seam": (Case([(DATA_SEAM - 30, 60, 0)]), [(DATA_SEAM - 30, 60)]),
    "S13 into another window": (Case([(READ_ONLY - 30, 60, 0)]), [(READ_ONLY - 30, 60)]),
    "S33 the longest frame": (Case([(BIG, 12 + FRAME_MAX, 0)]), [(BIG, 12 + FRAME_MAX)]),
    "reserved flags": (Case([(*GOOD, 0x7F78)]), [GOOD]),
}


@pytest.mark.parametrize("start", [WRAP, (SIZE - 2) | WRAP, SIZE - 1])
@pytest.mark.parametrize("name", LEGAL)
def test_legal_chain_goes_through(name: str, start: int) -> None:
    case, content = LEGAL[name]
    with PackedRig(SIZE, start, indirect=True) as rig:
        case.post(rig, 0xFFFF)
        rig.driver.show()
        expected = b"".join(rig.peek(*each) for each in content)[12:]
        outcome = transmit(rig)
        assert outcome.frames == [expected]
        assert outcome.drops == {}
        assert [(each.id, each.length) for each in rig.driver.reap()] == [(0xFFFF, 0)]


def test_s18_indirect_that_was_not_negotiated() -> None:
    with PackedRig(SIZE) as rig:
        _table_of(16).post(rig, 1)
        rig.driver.show()
        assert transmit(rig).drops == {"bad_indirect": 1}


@pytest.mark.parametrize("before", [0, 2])
def test_p02_a_list_without_end_quarantines_after_the_chains_before_it(before: int) -> None:
    with PackedRig(SIZE) as rig:
        for number in range(before):
            rig.driver.post(number, [GOOD])
        for place in range(SIZE - before):
            rig.driver.put(*GOOD, 7, NEXT, first=place == 0)
        rig.driver.show()
        outcome = transmit(rig)
        assert outcome.fault == "long_chain"
        assert outcome.packets == before
        assert list(rig.commit) == [before | WRAP] * 2


@pytest.mark.parametrize("marks", [0, AVAIL | USED, USED])
def test_p05_what_is_not_available_is_not_touched(marks: int) -> None:
    with PackedRig(SIZE) as rig:
        rig.raw(0, *GOOD, 3, marks)
        before = rig.peek(DESC, 16 * SIZE)
        outcome = transmit(rig)
        assert (outcome.packets, outcome.fault) == (0, "none")
        assert rig.peek(DESC, 16 * SIZE) == before


def test_p07_a_chain_whose_rest_comes_later() -> None:
    with PackedRig(SIZE) as rig:
        queue, port = rig.queue(DirectionStats()), rig.port()
        work = Work(queue, None, port)
        rig.raw(0, DATA, 40, 0, AVAIL | NEXT)
        assert (work.turn(32), work.turn(32), queue.fault) == (0, 0, 0)
        assert list(rig.commit) == [WRAP] * 2
        rig.raw(1, DATA + 40, 60, 8, AVAIL)
        assert work.turn(32) == 1
        assert frames_of(port) == [rig.peek(DATA + 12, 88)]
        assert list(rig.commit) == [2 | WRAP] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 200])
def test_p06_the_ring_wraps(size: int) -> None:
    with PackedRig(size, indirect=True) as rig:
        queue, port = rig.queue(DirectionStats()), rig.port()
        work = Work(queue, None, port)
        for lap in range(7):
            count = size if lap % 2 else size // 2 + 1
            for number in range(count):
                rig.driver.post(number, [(DATA + number % 100, 40)])
            rig.driver.show()
            while work.turn(64):
                pass
            assert [each.id for each in rig.driver.reap()] == list(range(count))
            assert len(frames_of(port)) == count
        assert queue.fault == 0


def test_p04_ids_are_echoed_whatever_they_are() -> None:
    with PackedRig(SIZE) as rig:
        for buffer_id in (5, 5, 0xFFFF, SIZE):
            rig.driver.post(buffer_id, [GOOD])
        rig.driver.show()
        assert transmit(rig).packets == 4
        assert [each.id for each in rig.driver.reap()] == [5, 5, 0xFFFF, SIZE]


def test_s34_a_disabled_ring_returns_every_chain_unjudged() -> None:
    with PackedRig(SIZE, enabled=False) as rig:
        rig.driver.post(1, [GOOD, (END, 64)])
        rig.driver.put(0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF, 2, INDIRECT | WRITE, first=True)
        rig.driver.posted.append((2, 1))
        rig.driver.show()
        outcome = transmit(rig)
        assert outcome.drops == {"disabled": 2}
        assert [each.id for each in rig.driver.reap()] == [1, 2]


def test_in_order_is_one_descriptor_for_a_turn() -> None:
    """2.8.8: the batch's last id at the batch's first place; the rest stays as VM1 wrote it."""
    with PackedRig(SIZE, (SIZE - 1) | WRAP, in_order=True) as rig:
        for number in range(4):
            rig.driver.post(number, [GOOD, (DATA, number)])
        rig.driver.show()
        before = rig.peek(DESC, 16 * SIZE)
        assert transmit(rig).packets == 4
        changed = [at for at, was in enumerate(before) if rig.peek(DESC + at, 1)[0] != was]
        assert {at // 16 for at in changed} == {SIZE - 1}
        assert [each.id for each in rig.driver.reap()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "event", "event_idx", "called"),
    [
        (ENABLE, 0, False, True),
        (DISABLE, 0, False, False),
        (DISABLE | 0xFFFC, 0, False, False),
        (3, 0, False, True),
        (3, 0, True, True),
        (AT, 5 | WRAP, False, True),
        (AT, 5 | WRAP, True, False),
        (AT, 0 | WRAP, True, True),
        (AT, 2 | WRAP, True, True),
        (AT, 3 | WRAP, True, False),
        (AT, 2, True, False),
        (AT, SIZE, True, True),
        (AT, 0x7FFF | WRAP, True, True),
    ],
)
def test_p10_when_vm1_is_called(flags: int, event: int, event_idx: bool, called: bool) -> None:
    """Three chains of one descriptor are used, from 0 on."""
    with PackedRig(SIZE, event_idx=event_idx) as rig:
        rig.set_event(flags, event)
        for number in range(3):
            rig.driver.post(number, [GOOD])
        rig.driver.show()
        assert transmit(rig).calls == called
