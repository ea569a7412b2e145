"""A driver of VM2 killed at each instruction that VM1 or a successor can tell (docs/device.md 5.6).

Whatever it leaves: its successor goes on, each chain is returned once and in order, VM1 sees whole
frames only, and kernel and oracle make the same of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pmd.kernel import DirectionStats, Queue, Work
from tests.kernel.packed_driver import WRAP, WRITE, Returned
from tests.kernel.packed_rig import HEADER, PackedRig, received
from tests.kernel.rig import BIG, DESC, frames_of, give
from tests.kernel.single_step import changes, native_port

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 11
START = 7 | WRAP


class Remains:
    """What a killed driver left: to be gone on with by `successor`."""

    def __init__(self, rig: PackedRig) -> None:
        self.rig = rig
        self.memory = {window: data.copy() for window, data in rig.windows.items()}
        self.commit = rig.commit.copy()
        self.driver = rig.driver.twin()

    def restore(self) -> None:
        for window, data in self.memory.items():
            self.rig.windows[window][:] = data
        self.rig.commit[:] = self.commit
        self.rig.driver = self.driver.twin()

    def check_both_begin_alike(self) -> None:
        """Kernel and oracle."""
        self.restore()
        _, copies = self.rig.oracle()
        self.rig.queue(DirectionStats())
        self.rig.check_alike(copies)


def _killed(rig: PackedRig, work: Work) -> Iterator[Remains]:
    """The remains after each instruction of a turn that changes ring or commit words."""

    def look() -> bytes:
        return rig.peek(DESC, 16 * SIZE) + rig.commit.tobytes()

    for _ in changes(lambda: work.turn(32), look):
        yield Remains(rig)


def _states(rig: PackedRig, work: Work, at_least: int) -> list[Remains]:
    states = list(_killed(rig, work))
    assert len(states) >= at_least, "as many stores at least make a difference"
    for state in states:
        state.check_both_begin_alike()
    return states


@pytest.mark.parametrize("in_order", [False, True])
def test_while_it_returns_what_vm1_sent(in_order: bool) -> None:
    with PackedRig(SIZE, START, in_order=in_order) as rig, native_port() as killed:
        payloads = [bytes([number]) * (20 + number) for number in range(5 + SIZE)]
        for number, buffers in enumerate([1, 2, 1, 3, 1]):
            rig.post_frame(number, buffers, payloads[number])
        rig.driver.show()
        states = _states(rig, Work(rig.queue(DirectionStats()), None, killed), 4)
        if not in_order:
            assert len(states) == 1 + 2 + 5  # as it was; the commit words; a mark each
        again: set[int] = set()
        for state in states:
            state.restore()
            # VM1 goes on meanwhile: places of the batch may be available again.
            back = rig.driver.reap()
            total = 5 + rig.driver.free
            for number in range(5, total):
                rig.post_frame(number, 1, payloads[number])
            rig.driver.show()
            port = rig.port()
            Work(rig.queue(DirectionStats()), None, port).turn(32)
            back += rig.driver.reap()
            assert [each.id for each in back] == list(range(total))
            sent = frames_of(port)
            assert sent == payloads[total - len(sent) : total]
            again.add(total - len(sent))
            assert list(rig.commit) == [rig.driver.position] * 2
        assert again == {0, 5}, "all again if none was marked, else none"


def _frames(rig: PackedRig, where: dict[int, int], back: list[Returned]) -> list[bytes]:
    """What VM1's driver makes of used buffers: an empty one is an error that it counts."""
    return list(received(rig, where, [each for each in back if each.length]))


def test_while_it_returns_what_vm1_receives() -> None:
    """Frames of one buffer and of several: the former may be lost, none is ever cut."""
    lengths = [30, 40, 150, 20, 25, 100]
    frames = [bytes([1 + number]) * length for number, length in enumerate(lengths)]
    later = [bytes([100 + number]) * 50 for number in range(3)]
    with PackedRig(SIZE, START, mergeable=True) as rig, native_port(frames) as killed:
        where: dict[int, int] = {}
        number = 0

        def post(count: int) -> None:
            nonlocal number
            for _ in range(count):
                where[number] = BIG + 64 * number
                rig.driver.post(number, [(where[number], 64)], WRITE)
                number += 1
            rig.driver.show()

        post(SIZE)
        states = _states(rig, Work(None, rig.queue(DirectionStats()), killed), 14)
        most: list[int] = []
        for state in states:
            state.restore()
            number = SIZE
            port = rig.port()
            work = Work(None, rig.queue(DirectionStats()), port)
            got = _frames(rig, where, rig.driver.reap())
            most.append(len(got))
            post(rig.driver.free)
            give(port, later)
            work.turn(32)
            got += _frames(rig, where, rig.driver.reap())
            assert got[-3:] == later
            assert [frame for frame in frames if frame in got] == got[:-3]
            assert list(rig.commit) == [rig.driver.used_position] * 2
        assert most[0] == 0
        assert most[-1] == len(frames)
        assert max(lengths) + HEADER > 64


def test_a_successor_killed_while_it_finishes_the_batch() -> None:
    with PackedRig(SIZE, START) as rig, native_port() as killed:
        for number in range(5):
            rig.post_frame(number, 2, bytes([number]) * 20)
        rig.driver.show()
        work = Work(rig.queue(DirectionStats()), None, killed)
        cut = list(_killed(rig, work))[4]
        cut.restore()

        def look() -> bytes:
            return rig.peek(DESC, 16 * SIZE) + rig.commit.tobytes()

        config, map_, stats = rig.config(), rig.kernel_map(), DirectionStats()
        states = [Remains(rig) for _ in changes(lambda: Queue(config, map_, stats), look)]
        assert len(states) == 1 + 3, "two marks, the commit word"
        for state in states:
            state.check_both_begin_alike()
            state.restore()
            rig.queue(DirectionStats())
            assert [each.id for each in rig.driver.reap()] == list(range(5))
