"""What two lcores write shares no cache lines; and idle works leave an lcore to its busy ones."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from itertools import combinations

from driver.software_vf import PortSpec
from pmd.kernel import DirectionStats, Event, Loop, Port, Queue, Work
from pmd.own_lines import LINES_BYTES, own_lines
from tests.kernel.rig import DATA, WRITE, Rig

IDLE_ROUNDS = 64  # csrc/roster.h

_usable = ctypes.CDLL(None).malloc_usable_size
_usable.restype, _usable.argtypes = ctypes.c_size_t, [ctypes.c_void_p]


def lines(address: int, size_bytes: int) -> set[int]:
    """Pairs of lines that some bytes lie in."""
    return set(range(address // LINES_BYTES, (address + size_bytes - 1) // LINES_BYTES + 1))


def of_structure(structure: ctypes.Structure) -> set[int]:
    return lines(ctypes.addressof(structure), ctypes.sizeof(structure))


def written(loop: Loop) -> set[int]:
    """The lines of all that the kernel writes for a loop, as far as Python can name it."""
    found = lines(loop.handle, _usable(loop.handle)) | of_structure(loop.stats)
    for work in loop.works:
        found |= of_structure(work.structure)
        for part in work.parts:
            found |= lines(part.handle, _usable(part.handle))
        for queue in (work.tx, work.rx):
            assert queue is not None
            found |= of_structure(queue.stats)
    return found


def test_lcores_write_lines_of_their_own() -> None:
    with ExitStack() as stack:
        loops = [stack.enter_context(Loop(32)) for _ in range(4)]
        rigs = [stack.enter_context(Rig(8)) for _ in loops]
        for loop, rig in zip(loops, rigs, strict=True):
            port = stack.enter_context(Port(PortSpec("null")))
            tx, rx = (rig.queue(own_lines(DirectionStats)) for _ in range(2))
            loop.set([Work(tx, rx, port)])
        for one, other in combinations(loops, 2):
            assert written(one) & written(other) == set()
        for loop in loops:
            loop.set([])


def test_own_lines_are_zero_and_alive() -> None:
    first, second = own_lines(DirectionStats), own_lines(ctypes.c_uint64 * 16)
    assert bytes(first) == bytes(ctypes.sizeof(first))
    assert ctypes.addressof(second) % LINES_BYTES == 0
    second[15] = 1 << 63
    assert list(second) == [0] * 15 + [1 << 63]


def busy_work(stack: ExitStack) -> Work:
    """One that moves something in each round: its frames are over the MTU, and need no buffer."""
    rig = stack.enter_context(Rig(8, mtu=68))
    rig.chain(0, [(DATA, 2048)], WRITE)
    config = rig.config()._replace(kick_fd=-1)
    queue = Queue(config, rig.kernel_map(), own_lines(DirectionStats))
    port = stack.enter_context(Port(PortSpec("gen", frame_bytes=1514)))
    return Work(None, stack.enter_context(queue), port)


def test_idle_works_are_asked_in_turn() -> None:
    """Whatever moves nothing dozes, and wakes by what comes; the busy one never does."""
    with ExitStack() as stack:
        busy, loop = busy_work(stack), stack.enter_context(Loop(4))
        rigs = [stack.enter_context(Rig(8)) for _ in range(5)]
        idle = [Work(rig.queue(DirectionStats()), None, rig.port()) for rig in rigs]
        loop.set([*idle[:2], busy, *idle[2:]])
        while loop.stats.turns < 2 * IDLE_ROUNDS:
            assert loop.run(1_000_000) == Event.BUDGET
        assert busy.structure.idle == 0
        assert {work.structure.idle for work in idle} == {IDLE_ROUNDS}
        for number, rig in enumerate(rigs):
            rig.chain(0, [(DATA, 100)])
            turns = loop.stats.turns
            while loop.stats.turns < turns + 5 * len(rigs):
                loop.run(1_000_000)
            assert [each.used_index() for each in rigs] == [1] * (number + 1) + [0] * (4 - number)
        assert loop.stats.busy_turns == loop.stats.turns
        loop.set([])


def test_all_doze_and_all_are_asked() -> None:
    with Rig(8) as rig, Rig(8) as other, Loop(4) as loop:
        works = [Work(each.queue(DirectionStats()), None, each.port()) for each in (rig, other)]
        loop.set(works)
        while loop.stats.turns < 2 * IDLE_ROUNDS:
            loop.run(1_000_000)
        assert [work.structure.idle for work in works] == [IDLE_ROUNDS, IDLE_ROUNDS]
        rig.chain(0, [(DATA, 100)])
        other.chain(0, [(DATA, 100)])
        loop.run(1_000_000)
        assert (rig.used_index(), other.used_index()) == (1, 1)
        assert loop.stats.busy_turns == 1
        loop.set([])
