"""Frames of a packed ring that a port reads in VM1's memory: returned in order, once, in time."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pmd.kernel import DirectionStats, Queue, Work, drop_names, fault_names
from tests.kernel.holding_port import HoldingPort
from tests.kernel.hostile_packed import PackedProgram, packed_rings
from tests.kernel.packed_driver import AVAIL, NEXT, USED, WRAP
from tests.kernel.packed_rig import DISABLE, PackedRig
from tests.kernel.rig import DATA, DESC, agree, begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 11
VF_ERROR = drop_names().index("vf_error")


class Sender:
    """VM1's packed transmit ring on a port that holds."""

    def __init__(self, rig: PackedRig, holds: Callable[[int], bool], room: int = 1 << 30) -> None:
        self.rig = rig
        self.port = HoldingPort(holds, room)
        self.stats = DirectionStats()
        self.queue: Queue = rig.queue(self.stats)
        self.work = Work(self.queue, None, self.port)

    def send(self, number: int, buffers: int = 1) -> bytes:
        payload = bytes([number % 256]) * 64
        self.rig.post_frame(number % 0x10000, buffers, payload)
        self.rig.driver.show()
        return payload

    def back(self) -> list[int]:
        return [each.id for each in self.rig.driver.reap()]


@pytest.fixture(params=[False, True], ids=["any order", "in order"])
def rig(request: pytest.FixtureRequest) -> Iterator[PackedRig]:
    with PackedRig(SIZE, 8 | WRAP, in_order=request.param) as rig:
        yield rig


def test_a_held_frame_is_returned_when_it_is_done(rig: PackedRig) -> None:
    sender = Sender(rig, lambda _: True)
    frames = [sender.send(i, 1 + i) for i in range(3)]
    sender.work.turn(32)
    assert (sender.back(), sender.queue.in_flight, sender.port.held) == ([], 3, 3)
    sender.port.finish(1)
    sender.work.turn(32)
    assert (sender.back(), sender.stats.packets) == ([0], 1)
    sender.port.finish(2)
    sender.work.turn(32)
    assert (sender.back(), sender.queue.in_flight) == ([1, 2], 0)
    assert sender.port.sent == frames
    assert list(rig.commit) == [rig.driver.position] * 2


def test_what_is_done_at_once_waits_for_what_was_sent_before_it(rig: PackedRig) -> None:
    sender = Sender(rig, lambda number: number in (1, 3))
    for i in range(5):
        sender.send(i)
    sender.work.turn(32)
    assert (sender.back(), sender.queue.in_flight) == ([0], 4)
    sender.port.finish(1)
    sender.work.turn(32)
    assert (sender.back(), sender.queue.in_flight) == ([1, 2], 2)
    sender.port.finish(1)
    sender.work.turn(32)
    assert sender.back() == [3, 4]


def test_s08_what_is_in_flight_cannot_be_posted_again(rig: PackedRig) -> None:
    """VM1 marks the ring available for the next lap while all of it is in flight."""
    sender = Sender(rig, lambda _: True)
    for i in range(SIZE):
        sender.send(i)
    sender.work.turn(32)
    assert sender.queue.in_flight == SIZE
    for index in range(SIZE):
        lap = index >= 8
        rig.raw(index, DATA, 100, 77, USED if lap else AVAIL)
    ring = rig.peek(DESC, 16 * SIZE)
    sender.work.turn(32)
    assert (sender.queue.in_flight, len(sender.port.sent)) == (SIZE, SIZE)
    assert rig.peek(DESC, 16 * SIZE) == ring


def test_a_list_into_what_is_in_flight_ends_the_ring_when_that_is_back(rig: PackedRig) -> None:
    sender = Sender(rig, lambda _: True)
    sender.send(0)
    sender.work.turn(32)
    for index in range(SIZE):
        if index != 8:
            rig.raw(index, DATA, 100, 77, NEXT | (AVAIL if index > 8 else USED))
    sender.work.turn(32)
    assert (sender.queue.in_flight, sender.queue.fault) == (1, 0)
    sender.port.finish(1)
    sender.work.turn(32)
    assert (sender.back(), sender.queue.fault) == ([0], 0)
    rig.raw(8, DATA, 100, 77, NEXT | USED)
    sender.work.turn(32)
    assert fault_names()[sender.queue.fault] == "long_chain"


def test_round_and_round_each_is_sent_as_it_was_posted(rig: PackedRig) -> None:
    """Buffers are filled anew as soon as they are returned: too soon would show."""
    sender = Sender(rig, lambda number: number % 3 != 0)
    choose = random.Random(7)
    frames: list[bytes] = []
    back: list[int] = []
    for number in range(1500):
        buffers = choose.randint(1, 3)
        while rig.driver.free < buffers:
            sender.port.finish(choose.randrange(4))
            sender.work.turn(choose.choice([1, 2, 32]))
            back += sender.back()
        frames.append(sender.send(number, buffers))
        if choose.random() < 0.5:
            sender.work.turn(32)
    while len(back) < 1500:
        sender.work.turn(32)
        sender.port.finish(1)
        back += sender.back()
    assert back == list(range(1500))
    assert sender.port.sent == frames
    assert (sender.stats.packets, sum(sender.stats.drops)) == (1500, 0)


def test_drain_and_abandon(rig: PackedRig) -> None:
    sender = Sender(rig, lambda number: number != 1)
    for i in range(4):
        sender.send(i)
    sender.work.turn(32)
    sender.port.finish(1)
    assert (sender.work.drain(), sender.back()) == (2, [0, 1])
    sender.queue.abandon()
    assert (sender.back(), sender.queue.in_flight) == ([2, 3], 0)
    assert (sender.stats.packets, sender.stats.drops[VF_ERROR]) == (2, 2)
    assert list(rig.commit) == [rig.driver.position] * 2


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    program=packed_rings(write=False, in_order=False),  # else batches differ, and what is marked
    burst=st.sampled_from([1, 2, 3, 32, 256]),
    room=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 1 << 32),
)
def test_held_or_not_the_oracle_agrees(
    program: PackedProgram, burst: int, room: int, seed: int
) -> None:
    """Whatever is held, and however late: frames, verdicts, faults and where the ring stands."""
    # A chain that runs into one in flight is a fault; once that is returned, one not yet whole.
    assume(len(program.descs) < program.size or not program.descs[-1].flags & NEXT)
    choose = random.Random(seed)
    with program.rig() as rig:
        ring, copies, queue = begin(rig, None)
        rig.set_event(DISABLE)  # how often VM1 is called depends on how turns are cut
        rig.copy_into(copies, rig.layout.avail, 4)
        port = HoldingPort(lambda _: choose.random() < 0.6, room)
        work = Work(queue, None, port)
        idle = 0
        while idle < 3:
            idle = 0 if work.turn(burst) or port.held else idle + 1
            port.finish(choose.randrange(3))
        expected: list[bytes] = []
        completed = -1
        while completed != ring.completed:
            completed = ring.completed
            expected += ring.transmit(burst)
        assert port.sent == expected
        agree(rig, ring, copies, queue, expected)
