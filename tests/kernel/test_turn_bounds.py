"""What one turn may cost: a ring of long, empty chains must not keep its lcore from the others."""

from __future__ import annotations

from itertools import pairwise

from driver.device_ring import Verdict
from pmd.kernel import DirectionStats, Work, drop_names
from tests.kernel.rig import DATA, INDIRECT, MORE, NEXT, WRITE, Rig, frames_of, give

SIZE = 512
TURN_WALK_MAX = 4096  # queue.h
GATHER_WALK_MAX = 65536
FRAME = bytes(range(100))


def _one_long_chain(rig: Rig, last: tuple[int, int]) -> None:
    """Every head is that of all descriptors of the table; all but the last are empty."""
    for index, after in pairwise(range(SIZE)):
        rig.desc(index, DATA, 0, NEXT, after)
    rig.desc(SIZE - 1, *last)
    rig.make_available(*[0] * SIZE)


def test_a_turn_begins_no_chain_after_its_descriptors_are_used_up() -> None:
    with Rig(SIZE) as rig:
        _one_long_chain(rig, (DATA, 12 + len(FRAME)))
        rig.poke(DATA + 12, FRAME)
        queue, port = rig.queue(DirectionStats()), rig.port()
        work = Work(queue, None, port)
        for turn in range(1, SIZE * SIZE // TURN_WALK_MAX + 1):
            assert work.turn(256) == TURN_WALK_MAX // SIZE
            assert rig.used_index() == turn * TURN_WALK_MAX // SIZE
            assert frames_of(port) == [FRAME] * (TURN_WALK_MAX // SIZE)
        assert work.turn(256) == 0


def test_the_entries_of_indirect_tables_count_though_none_is_walked() -> None:
    with Rig(SIZE, indirect=True) as rig:
        rig.desc(0, MORE, 16 * SIZE, INDIRECT)
        rig.table(MORE, (DATA, 12 + len(FRAME), 0, 0), *[(DATA, 0, 0, 0)] * (SIZE - 1))
        rig.make_available(*[0] * SIZE)
        work = Work(rig.queue(DirectionStats()), None, rig.port())
        assert work.turn(256) == TURN_WALK_MAX // SIZE


def test_empty_buffers_are_not_gathered_without_end_for_one_frame() -> None:
    with Rig(SIZE, indirect=True, mergeable=True) as rig:
        rig.desc(0, MORE, 16 * SIZE, INDIRECT)
        entries = [(DATA, 0, WRITE | NEXT, 1 + number) for number in range(SIZE - 1)]
        rig.table(MORE, *entries, (DATA, 0, WRITE, 0))
        rig.make_available(*[0] * SIZE)
        stats, port = DirectionStats(), rig.port()
        gathered = GATHER_WALK_MAX // (2 * SIZE)  # the table is copied, then walked
        give(port, [FRAME] * (SIZE // gathered + 1))
        work = Work(None, rig.queue(stats), port)
        for turn in range(1, SIZE // gathered + 1):
            assert work.turn(256) == gathered
            assert rig.used(gathered) == [(0, 0)] * gathered
            assert stats.drops[drop_names().index(Verdict.SMALL_BUFFER.value)] == turn
        assert work.turn(256) == 0
        assert frames_of(port) == [FRAME]
