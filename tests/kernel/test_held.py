"""Frames that a port reads in VM1's memory: returned in order, once, and not before it is done."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmd.kernel import DirectionStats, Queue, Work, drop_names, fault_names
from tests.kernel.holding_port import HoldingPort
from tests.kernel.hostile import Program, rings
from tests.kernel.rig import DATA, USED, Rig, agree, begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEADER = 12
VF_ERROR = drop_names().index("vf_error")


class Sender:
    """VM1's transmit ring of 8 on a port that holds."""

    def __init__(self, rig: Rig, holds: Callable[[int], bool], room: int = 1 << 30) -> None:
        self.rig = rig
        self.port = HoldingPort(holds, room)
        self.stats = DirectionStats()
        self.queue: Queue = rig.queue(self.stats)
        self.work = Work(self.queue, None, self.port)

    def send(self, number: int) -> bytes:
        """Head number % 8: its buffer is filled anew and made available."""
        head = number % 8
        payload = bytes([number % 256]) * 64
        self.rig.poke(DATA + 128 * head, bytes(HEADER) + payload)
        self.rig.chain(head, [(DATA + 128 * head, HEADER + 64)])
        return payload

    def used(self) -> int:
        return self.rig.used_index()

    def heads(self, count: int) -> list[int]:
        return [head for head, _ in self.rig.used(count)]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig(8) as rig:
        yield rig


def test_a_held_frame_is_returned_when_it_is_done(rig: Rig) -> None:
    sender = Sender(rig, lambda _: True)
    frames = [sender.send(i) for i in range(3)]
    sender.work.turn(32)
    assert (sender.used(), sender.queue.in_flight, sender.port.held) == (0, 3, 3)
    sender.work.turn(32)
    assert (sender.used(), sender.stats.packets) == (0, 0)
    sender.port.finish(1)
    sender.work.turn(32)
    assert (sender.used(), sender.heads(1), sender.stats.packets) == (1, [0], 1)
    sender.port.finish(2)
    sender.work.turn(32)
    assert (sender.used(), sender.heads(3), sender.queue.in_flight) == (3, [0, 1, 2], 0)
    assert sender.port.sent == frames
    assert (sender.stats.packets, sender.stats.bytes) == (3, 3 * 64)


def test_what_is_done_at_once_waits_for_what_was_sent_before_it(rig: Rig) -> None:
    sender = Sender(rig, lambda number: number in (1, 3))
    for i in range(5):
        sender.send(i)
    sender.work.turn(32)
    assert (sender.used(), sender.heads(1), sender.queue.in_flight) == (1, [0], 4)
    sender.port.finish(1)
    sender.work.turn(32)
    assert (sender.used(), sender.heads(3), sender.queue.in_flight) == (3, [0, 1, 2], 2)
    sender.port.finish(1)
    sender.work.turn(32)
    assert (sender.used(), sender.heads(5)) == (5, [0, 1, 2, 3, 4])


def test_a_dropped_chain_keeps_its_place(rig: Rig) -> None:
    sender = Sender(rig, lambda _: True)
    sender.send(0)
    rig.chain(1, [(0xDEAD0000, 100)])
    sender.send(2)
    sender.work.turn(32)
    assert (sender.used(), sum(sender.stats.drops)) == (0, 0)
    sender.port.finish(2)
    sender.work.turn(32)
    assert (sender.used(), sender.heads(3), sender.stats.packets) == (3, [0, 1, 2], 2)
    assert sender.stats.drops[drop_names().index("bad_address")] == 1


def test_a_whole_ring_in_flight_is_no_jump(rig: Rig) -> None:
    sender = Sender(rig, lambda _: True)
    for i in range(8):
        sender.send(i)
    for _ in range(3):
        sender.work.turn(3)
    assert (sender.queue.in_flight, sender.queue.fault) == (8, 0)
    rig.make_available(0)  # it is not VM1's to send again
    sender.work.turn(3)
    assert fault_names()[sender.queue.fault] == "index_jump"


def test_round_and_round_each_is_sent_as_it_was_posted(rig: Rig) -> None:
    """Buffers are filled anew as soon as they are returned: too soon would show."""
    sender = Sender(rig, lambda number: number % 3 != 0)
    choose = random.Random(7)
    frames = []
    for number in range(2000):
        while number - sender.used() % 65536 >= 8:
            sender.port.finish(choose.randrange(4))
            sender.work.turn(choose.choice([1, 2, 32]))
        frames.append(sender.send(number))
        if choose.random() < 0.5:
            sender.work.turn(32)
    while sender.used() < 2000:
        sender.work.turn(32)
        sender.port.finish(1)
    assert sender.port.sent == frames
    assert (sender.stats.packets, sum(sender.stats.drops)) == (2000, 0)


def test_s08_a_head_posted_twice_is_returned_twice(rig: Rig) -> None:
    """Each posting is a frame of its own, and read only; what VM1 loses by it is its own."""
    sender = Sender(rig, lambda _: True)
    frame = sender.send(0)
    sender.send(8)
    rig.poke(DATA + HEADER, frame)
    sender.work.turn(32)
    assert (sender.used(), sender.queue.in_flight, sender.port.held) == (0, 2, 2)
    sender.port.finish(1)
    sender.work.turn(32)
    assert (sender.used(), sender.queue.in_flight) == (1, 1)
    sender.port.finish(1)
    sender.work.turn(32)
    assert (sender.used(), sender.heads(2), sender.stats.packets) == (2, [0, 0], 2)
    assert (sender.queue.in_flight, sender.queue.fault) == (0, 0)


def test_a_port_with_little_room(rig: Rig) -> None:
    sender = Sender(rig, lambda _: True, room=2)
    frames = [sender.send(i) for i in range(5)]
    while sender.used() < 5:
        sender.work.turn(32)
        assert sender.queue.in_flight <= 2
        sender.port.finish(1)
    assert sender.port.sent == frames


def test_drain_returns_what_is_done_and_takes_nothing(rig: Rig) -> None:
    sender = Sender(rig, lambda _: True)
    for i in range(3):
        sender.send(i)
    sender.work.turn(32)
    sender.send(3)
    sender.port.finish(2)
    assert sender.work.drain() == 1
    assert (sender.used(), len(sender.port.sent)) == (2, 3)
    sender.port.finish(1)
    assert sender.work.drain() == 0
    assert (sender.used(), sender.heads(3)) == (3, [0, 1, 2])


def test_a_port_that_never_ends_is_given_up(rig: Rig) -> None:
    sender = Sender(rig, lambda number: number != 1)
    for i in range(4):
        sender.send(i)
    sender.work.turn(32)
    assert sender.work.drain() == 4
    sender.queue.abandon()
    assert (sender.used(), sender.heads(4), sender.queue.in_flight) == (4, [0, 1, 2, 3], 0)
    assert (sender.stats.packets, sender.stats.drops[VF_ERROR]) == (1, 3)
    sender.queue.abandon()
    assert sender.used() == 4


def test_a_port_that_says_more_than_it_holds(rig: Rig) -> None:
    sender = Sender(rig, lambda _: True)
    sender.port.lie = 1000
    sender.send(0)
    sender.work.turn(32)
    sender.work.turn(32)
    assert (sender.used(), sender.queue.in_flight, sender.queue.fault) == (1, 0, 0)


def test_a_quarantined_ring_is_not_written(rig: Rig) -> None:
    sender = Sender(rig, lambda _: True)
    for i in range(3):
        sender.send(i)
    sender.work.turn(32)
    rig.set_index(1000)
    rig.poke(USED + 2, bytes(2))
    sender.work.turn(32)
    assert sender.queue.fault
    before = rig.peek(USED, 4 + 8 * 8)
    sender.port.finish(1)
    assert sender.work.drain() == 2
    sender.queue.abandon()
    assert sender.queue.in_flight == 0
    assert rig.peek(USED, 4 + 8 * 8) == before


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    program=rings(write=False),
    burst=st.sampled_from([1, 2, 3, 32, 256]),
    room=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 1 << 32),
)
def test_held_or_not_the_oracle_agrees(program: Program, burst: int, room: int, seed: int) -> None:
    """Whatever is held, and however late it is done: frames, verdicts, used ring and calls."""
    choose = random.Random(seed)
    with program.rig() as rig:
        ring, copies, queue = begin(rig, program.publish)
        port = HoldingPort(lambda _: choose.random() < 0.6, room)
        work = Work(queue, None, port)
        idle = 0
        while idle < 3:
            idle = 0 if work.turn(burst) or port.held else idle + 1
            port.finish(choose.randrange(3))
        expected: list[bytes] = []
        index = -1
        while index != ring.completed:
            index = ring.completed
            expected += ring.transmit(burst)
        assert port.sent == expected
        agree(rig, ring, copies, queue, expected)
