"""Loops that sleep: nothing VM1 or a port has is left waiting, and idle ones cost nothing.

VM1 here is another thread that follows the notification rules to the letter (senders.py): it kicks
only when it is asked to, and pauses at random, so that a wake-up that is lost ends the test.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from driver.software_vf import PortSpec
from pmd.kernel import DirectionStats, Event, Loop, Poll, Port, Queue, Work
from tests.kernel.holding_port import HoldingPort
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import BIG, USED, WRITE, Rig
from tests.kernel.senders import DEADLINE_S, SIZE, PackedSender, Sender, SplitSender

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN_NS = 100_000_000
SECONDS = 0.6


@contextlib.contextmanager
def running(loop: Loop) -> Iterator[None]:
    """The loop runs on a thread of its own."""
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            loop.run(RUN_NS)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        loop.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@dataclasses.dataclass
class Bench:
    """A rig, and a loop that serves its ring by a port; closed in order."""

    rig: Rig
    loop: Loop
    queue: Queue
    transmits: bool

    @classmethod
    @contextlib.contextmanager
    def made(
        cls,
        poll: Poll | None,
        kick_fd: int,
        port: PortSpec,
        *,
        transmits: bool,
        burst: int = 32,
        packed: bool = False,
        **layout: bool,
    ) -> Iterator[Bench]:
        with contextlib.ExitStack() as stack:
            made = PackedRig(SIZE, **layout) if packed else Rig(SIZE, **layout)
            rig = stack.enter_context(made)
            config = rig.config()._replace(kick_fd=kick_fd)
            queue = stack.enter_context(Queue(config, rig.kernel_map(), DirectionStats()))
            tx, rx = (queue, None) if transmits else (None, queue)
            loop = stack.enter_context(Loop(burst, poll))
            loop.set([Work(tx, rx, stack.enter_context(Port(port)))])
            stack.callback(loop.set, [])
            yield cls(rig, loop, queue, transmits)

    def sender(self, kick_fd: int) -> Sender:
        """VM1 on its ring."""
        direction = 0 if self.transmits else WRITE
        if isinstance(self.rig, PackedRig):
            return PackedSender(self.rig, kick_fd, direction)
        return SplitSender(self.rig, kick_fd, direction)


NULL = PortSpec("null")


def offer(sender: Sender, outside: socket.socket | None, chance: random.Random) -> None:
    """A chain or two for the loop; to receive in them, as many frames come before or after."""
    count, frames_first = chance.randrange(1, 3), chance.random() < 0.5
    for frames in (frames_first, not frames_first):
        if not frames:
            sender.send(count)
        elif outside is not None:
            for _ in range(count):
                outside.send(bytes(60))


def take(outside: socket.socket) -> None:
    """Whatever came out."""
    while select.select([outside], [], [], 0)[0]:
        outside.recv(100)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("poll", [None, Poll(0), Poll(0, 20_000), Poll(30_000)], ids=str)
@pytest.mark.parametrize("transmits", [True, False])
def test_no_wake_up_is_lost(
    *,
    transmits: bool,
    event_idx: bool,
    packed: bool,
    poll: Poll | None,
    kick_fd: int,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """VM1 sleeps until it is called, on either ring; poll: None is a loop that never sleeps."""
    monkeypatch.setenv("PMD_KERNEL_TRUST_WAKES", "1")  # no sleep ends by time
    chance = random.Random(seed)
    features = {"packed": packed, "event_idx": event_idx}
    outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    port = PortSpec("dgram", inside.detach())
    with outside, Bench.made(poll, kick_fd, port, transmits=transmits, **features) as bench:
        sender = bench.sender(kick_fd)
        with running(bench.loop):
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                for _ in range(chance.randrange(1, 4)):
                    offer(sender, outside if not transmits else None, chance)
                sender.wait_used()
                take(outside)
                if chance.random() < 0.3:
                    time.sleep(chance.random() / 2000)
        assert (sender.kicks > 0) == (bench.loop.stats.sleeps > 0) == (poll is not None)
        assert bench.queue.stats.packets == sender.sent
        assert bench.queue.stats.calls > 0


@pytest.mark.parametrize("event_idx", [False, True])
def test_what_comes_before_kicks_are_asked_for_is_seen(event_idx: bool, kick_fd: int) -> None:
    """VM1 sends after its ring was looked at, in the last round before a sleep: no kick comes."""
    rx_desc, rx_avail, rx_used = BIG + 0x10000, BIG + 0x10400, BIG + 0x10800
    with contextlib.ExitStack() as stack:
        rig = stack.enter_context(Rig(SIZE, event_idx=event_idx))
        for ring in (rx_avail, rx_used):
            rig.poke(ring, bytes(4))
        rig.poke(rx_desc, struct.pack("<QIHH", BIG, 2048, 2, 0))
        config = rig.config()._replace(kick_fd=kick_fd)
        rx_config = config._replace(desc=rx_desc, avail=rx_avail, used=rx_used)
        map_ = rig.kernel_map()
        tx = stack.enter_context(Queue(config, map_, DirectionStats()))
        rx = stack.enter_context(Queue(rx_config, map_, DirectionStats()))
        rig.poke(rx_avail + 2, struct.pack("<H", 1))
        port = HoldingPort(lambda _: False)
        loop = stack.enter_context(Loop(32, Poll(0)))
        loop.set([Work(tx, rx, port)])
        stack.callback(loop.set, [])
        sender = SplitSender(rig, kick_fd)

        def send_once() -> None:
            if not sender.sent:
                sender.send(1)

        port.asked = send_once
        loop.run(5_000_000)  # much less than the 40 ms that a sleep without a wake-up takes
        assert (sender.kicks, tx.stats.packets) == (0, 1)


def test_an_idle_loop_sleeps(kick_fd: int) -> None:
    with Bench.made(Poll(0), kick_fd, NULL, transmits=True) as bench:
        with running(bench.loop):
            time.sleep(1)
        # A sleep is cut at some 40 ms, for the heartbeat; a loop that polls has millions of turns.
        assert bench.loop.stats.turns < 200
        assert bench.loop.stats.slept_cycles > 0.9 * bench.loop.stats.cycles


def test_a_busy_loop_asks_for_no_kicks(kick_fd: int) -> None:
    with Bench.made(None, kick_fd, NULL, transmits=True) as bench:
        assert bench.loop.run(1_000_000) == Event.BUDGET
        assert struct.unpack("<H", bench.rig.peek(USED, 2))[0] == 1
        assert bench.loop.stats.sleeps == 0


def test_s35_kicks_for_nothing_cost_nothing_else(kick_fd: int) -> None:
    """2.7.10.2: a notification may be spurious; there may be thousands."""
    with Bench.made(Poll(0), kick_fd, NULL, transmits=True) as bench:
        with running(bench.loop):
            for _ in range(5000):
                os.eventfd_write(kick_fd, 1)
            sender = SplitSender(bench.rig, kick_fd)
            sender.send(1)
            sender.wait_used()
        assert bench.queue.fault == 0
        assert (bench.queue.stats.packets, sum(bench.queue.stats.drops)) == (1, 0)
        assert bench.queue.stats.calls <= 1


def test_stop_ends_a_sleep(kick_fd: int) -> None:
    with Bench.made(Poll(0), kick_fd, NULL, transmits=True) as bench:
        stopper = threading.Timer(0.05, bench.loop.stop)
        stopper.start()
        assert bench.loop.run(10**12) == Event.STOP
        stopper.join()


def test_frames_of_a_port_end_a_sleep(kick_fd: int) -> None:
    outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    port = PortSpec("dgram", inside.detach())
    with outside, Bench.made(Poll(0), kick_fd, port, transmits=False) as bench:
        for head in range(SIZE):
            bench.rig.desc(head, BIG + 0x1000 * head, 2048, 2)
        bench.rig.make_available(*range(SIZE))
        with running(bench.loop):
            for number in range(SIZE):
                outside.send(bytes([number]) * 60)
                deadline = time.monotonic() + DEADLINE_S
                while bench.rig.used_index() != number + 1:
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
        assert bench.rig.peek(BIG + 0x1000 * 5 + 12, 60) == bytes([5]) * 60


def test_calls_are_coalesced(kick_fd: int) -> None:
    poll = Poll(None, 10**12)
    with Bench.made(poll, kick_fd, NULL, transmits=True, burst=1) as bench:
        SplitSender(bench.rig, kick_fd).send(SIZE)
        while bench.queue.stats.packets < SIZE:
            assert bench.queue.stats.calls == 0
            bench.loop.run(50_000_000)  # its end makes the call that waits
        assert (bench.queue.stats.bursts, bench.queue.stats.calls) == (SIZE, 1)
