"""The patch port: frames of one VM1 into the buffers of another, by one copy."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.offload import PLAIN, Offload
from driver.offloads import NO_OFFLOADS, Offloads
from driver.software_vf import PortSpec, parse_vf
from guest.errors import VhostPciError
from pmd.kernel import DirectionStats, Event, Loop, Port, Queue, QueueError, Work
from tests.kernel.hostile import Program, rings
from tests.kernel.hostile_packed import PackedProgram, packed_rings
from tests.kernel.offload_frames import asking, packet, unnumbered
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import (
    ALL_OFFLOADS,
    BIG,
    BIG_SIZE,
    DATA,
    RINGS,
    RINGS_SIZE,
    WRITE,
    Rig,
    agree,
    begin,
)
from tests.kernel.test_concurrent import SECRET, SIZE, _rewriting, _seal, _unharmed
from tests.kernel.test_offload import _frames, done, drops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.kernel.offload_port import Told

ENDLESS = 1 << 30
SECONDS = 2.0
FRAME = bytes(range(100))


def ends(count: int = 2) -> list[Port]:
    """Ports at the two ends of a patch, by turns."""
    vfs = [parse_vf("patch:lan"), parse_vf("patch:lan")]
    return [Port(vfs[index % 2].open(1)[0]) for index in range(count)]


@contextlib.contextmanager
def joined(*queues: tuple[Queue | None, Queue | None]) -> Iterator[list[Work]]:
    """A loop's works: transmit and receive queue of each, at the two ends by turns."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(port) for port in ends(len(queues))]
        works = [Work(tx, rx, port) for (tx, rx), port in zip(queues, ports, strict=True)]
        loop = stack.enter_context(Loop(32))
        loop.set(works)
        yield works


def send(rig: Rig, frames: Sequence[Told]) -> None:
    """VM1 makes a chain of each frame."""
    at = BIG
    for index, (frame, offload) in enumerate(frames):
        data = offload.pack() + b"\0\0" + frame
        rig.poke(at, data)
        rig.chain(index % rig.layout.size, [(at, len(data))])
        at += len(data)
    assert at <= BIG + BIG_SIZE


def stock(rig: Rig, count: int, size: int = 1600) -> None:
    """VM1 posts count buffers."""
    for index in range(count):
        rig.chain(index, [(BIG + size * index, size)], WRITE)


def received(rig: Rig, count: int, size: int = 1600) -> list[Told]:
    """The frames in the last count used buffers."""
    return _frames(rig, rig.used(count), size)


# ---- against the oracle -----------------------------------------------------------------------

_SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_SENDERS = st.one_of(rings(write=False), packed_rings(write=False))
_RECEIVERS = st.one_of(rings(write=True), packed_rings(write=True))


def _publish(program: Program | PackedProgram) -> Callable[[Rig], None] | None:
    return program.publish if isinstance(program, Program) else None


@_SETTINGS
@given(sends=_SENDERS, receives=_RECEIVERS, plain=st.booleans())
def test_hostile_rings_at_both_ends(
    sends: Program | PackedProgram, receives: Program | PackedProgram, plain: bool
) -> None:
    """Each ring is what it would be if the oracle's frames had come from, or gone to, any port."""
    with sends.rig() as sender, receives.rig() as receiver:
        sender.plain = receiver.plain = plain
        source, source_copies, tx = begin(sender, _publish(sends))
        sink, sink_copies, rx = begin(receiver, _publish(receives))
        with joined((tx, None), (None, rx)) as (work, _):
            while work.turn(1):
                pass
        lost, index = 0, -1
        while index != source.completed:
            index = source.completed
            frames = source.transmit(1)
            lost += len(frames) - (sink.receive(frames, ENDLESS) if frames else 0)
        agree(receiver, sink, sink_copies, rx, [])
        counted = drops(tx.stats)
        assert counted.pop("vf_full", 0) + counted.pop("vf_down", 0) == lost
        assert counted == {verdict.value: count for verdict, count in source.drops.items()}
        assert tx.stats.packets == source.packets - lost
        sender.check_alike(source_copies)


_FRAMES = st.lists(
    st.tuples(
        st.integers(600, 3000).map(lambda n: bytes(i * 7 & 0xFF for i in range(n))),
        st.booleans(),
        st.booleans(),
        st.sampled_from([None, 0, 536, 540]),  # 540: fragments
    ),
    min_size=1,
    max_size=8,
)


@settings(_SETTINGS, max_examples=60)
@given(
    shapes=_FRAMES,
    takes=st.integers(0, 63).map(lambda bits: Offloads(bits << 8)),
    mergeable=st.booleans(),
    burst=st.sampled_from([1, 3, 32]),
)
def test_what_the_receiver_did_not_negotiate_is_done_here(
    shapes: list[tuple[bytes, bool, bool, int | None]],
    takes: Offloads,
    mergeable: bool,
    burst: int,
) -> None:
    frames: list[Told] = []
    for payload, udp, ipv6, segment in shapes:
        frame = packet(payload, udp=udp, ipv6=ipv6)
        frames.append(
            (bytes(frame), PLAIN)
            if segment is None
            else asking(frame, segment, fragments=segment == 540)
        )
    size = BIG_SIZE // 64
    with (
        Rig(64, offloads=ALL_OFFLOADS) as sender,
        Rig(64, offloads=takes, mergeable=mergeable) as receiver,
    ):
        send(sender, frames)
        for index in range(64 if mergeable else 16):
            length = size if mergeable else BIG_SIZE // 16
            receiver.chain(index, [(BIG + length * index, length)], WRITE)
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        with joined((tx, None), (None, rx)) as (work, _):
            turns = 0
            while sender.used_index() != len(frames):
                work.turn(burst)
                turns += 1
                assert turns < 100
        expected = [each for told in frames for each in done(told, ALL_OFFLOADS, takes)]
        found = received(receiver, receiver.used_index(), size if mergeable else BIG_SIZE // 16)
        found = [(unnumbered(data), offload) for data, offload in found]
        assert found == expected[: len(found)]
        assert (len(found) == len(expected)) == (not drops(tx.stats))
        assert set(drops(tx.stats)) <= {"vf_full"}


# ---- a receiver that is full, small, broken, or not there ----------------------------------------


def test_what_finds_no_buffer_is_dropped_and_the_sender_goes_on() -> None:
    with Rig(16) as sender, Rig(16) as receiver:
        send(sender, [(FRAME, PLAIN)] * 5)
        stock(receiver, 3)
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        with joined((tx, None), (None, rx)) as (work, other):
            assert work.turn(32) == 5
            assert (tx.stats.packets, drops(tx.stats)) == (3, {"vf_full": 2})
            assert (rx.stats.packets, drops(rx.stats)) == (3, {})
            assert received(receiver, 3) == [(FRAME, PLAIN)] * 3
            send(sender, [(FRAME, PLAIN)] * 5)
            assert work.turn(32) == 5
            assert other.turn(32) == 0
            assert drops(tx.stats) == {"vf_full": 7}
            assert not (work.events | other.events)


def test_buffers_too_small_are_the_receivers_loss() -> None:
    with Rig(16) as sender, Rig(16) as receiver:
        send(sender, [(FRAME, PLAIN)] * 4)
        stock(receiver, 4, 50)
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        with joined((tx, None), (None, rx)) as (work, _):
            assert work.turn(32) == 4
        assert (tx.stats.packets, drops(tx.stats)) == (4, {})
        assert (rx.stats.packets, drops(rx.stats)) == (0, {"small_buffer": 4})


@pytest.mark.parametrize("way", ["disabled", "absent", "gone", "unjoined"])
def test_without_a_receiver_frames_are_dropped(way: str) -> None:
    with Rig(16) as sender, Rig(16, enabled=way != "disabled") as receiver:
        send(sender, [(FRAME, PLAIN)] * 4)
        stock(receiver, 4)
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        other = None if way == "absent" else rx
        with joined((tx, None), (None, other)) as (work, receiving), Loop(1) as loop:
            if way == "gone":
                receiving.structure.events = int(Event.GENERATION)
            if way == "unjoined":
                loop.set([work])
            assert work.turn(32) == 4
            loop.set([])
        assert drops(tx.stats) == {"vf_down": 4}
        assert receiver.used_index() == 0


def test_a_broken_ring_stops_its_own_work_only() -> None:
    with Rig(16) as sender, Rig(16) as receiver:
        send(sender, [(FRAME, PLAIN)] * 2)
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        receiver.make_available(99)
        with Loop(32) as loop, contextlib.ExitStack() as stack:
            ports = [stack.enter_context(port) for port in ends()]
            works = [Work(tx, None, ports[0]), Work(None, rx, ports[1])]
            loop.set(works)
            assert loop.run(60_000_000_000) == Event.FAULT
            assert [work.events for work in works] == [Event(0), Event.FAULT]
            send(sender, [(FRAME, PLAIN)] * 2)
            assert loop.run(1_000_000) == Event.BUDGET
            assert drops(tx.stats) == {"vf_full": 2, "vf_down": 2}
            loop.set([])


def test_bad_buffers_without_end_do_not_hold_the_sender_up() -> None:
    """Each turn finds nothing but bad buffers, more than it looks at: it gets on all the same."""
    with Rig(256, indirect=True) as sender, Rig(256, indirect=True) as receiver:
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        with joined((tx, None), (None, rx)) as (work, _):
            for _ in range(4):
                send(sender, [(FRAME, PLAIN)] * 32)
                for index in range(256):
                    receiver.desc(index, 0, 2000, WRITE)
                receiver.make_available(*range(256))
                assert work.turn(32) == 32
        assert drops(tx.stats) == {"vf_full": 128}
        assert drops(rx.stats) == {"bad_address": 4 * 256}


def test_many_descriptors_are_walked_in_several_turns() -> None:
    """A receiver whose buffers are in many pieces is no reason to drop."""
    pieces = 100
    with Rig(512) as sender, Rig(512, indirect=True, mergeable=True) as receiver:
        send(sender, [(FRAME, PLAIN)] * 64)
        table = [(BIG + 2 * i, 2, WRITE | (1 if i + 1 < pieces else 0), i + 1) for i in range(100)]
        receiver.table(DATA, *table)
        for index in range(64):
            receiver.desc(index, DATA, 16 * pieces, 4)
        receiver.make_available(*range(64))
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        with joined((tx, None), (None, rx)) as (work, _):
            turns = 0
            while sender.used_index() < 64:
                assert work.turn(256)
                turns += 1
        assert turns > 1
        assert (tx.stats.packets, drops(tx.stats)) == (64, {})


# ---- who is joined to whom ---------------------------------------------------------------------


def test_both_ways_and_layouts() -> None:
    with Rig(16) as split_tx, Rig(16) as split_rx, PackedRig(16) as tx, PackedRig(16) as rx:
        send(split_tx, [(b"s" * 60, PLAIN)])
        send(tx, [(b"p" * 60, PLAIN)])
        stock(split_rx, 2)
        stock(rx, 2)
        queues = [rig.queue(DirectionStats()) for rig in (split_tx, split_rx, tx, rx)]
        with joined((queues[0], queues[1]), (queues[2], queues[3])) as works:
            assert [work.turn(32) for work in works] == [1, 1]
        assert received(split_rx, 1) == [(b"p" * 60, PLAIN)]
        assert rx.peek(BIG + 12, 60) == b"s" * 60


def test_surplus_pairs_share_the_others_in_turn() -> None:
    """Three queue pairs send to an end that receives by two; its third is not enabled."""
    with contextlib.ExitStack() as stack:
        senders = [stack.enter_context(Rig(8)) for _ in range(3)]
        receivers = [stack.enter_context(Rig(8, enabled=n != 1)) for n in range(3)]
        for number, rig in enumerate(senders):
            send(rig, [(bytes([number]) * 60, PLAIN)])
        for rig in receivers:
            stock(rig, 3)
        queues: list[tuple[Queue | None, Queue | None]] = []
        for sender, receiver in zip(senders, receivers, strict=True):
            queues += [
                (sender.queue(DirectionStats()), None),
                (None, receiver.queue(DirectionStats())),
            ]
        with joined(*queues) as works:
            for work in works:
                work.turn(32)
        found = [[frame[:1] for frame, _ in received(r, r.used_index())] for r in receivers]
    assert found == [[b"\0", b"\2"], [], [b"\1"]]


def test_another_patch_is_another() -> None:
    with Rig(8) as sender, Rig(8) as receiver, Loop(32) as loop:
        send(sender, [(FRAME, PLAIN)])
        stock(receiver, 1)
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        a, b = (Port(parse_vf(f"patch:{name}").open(1)[0]) for name in "ab")
        with a, b:
            works = [Work(tx, None, a), Work(None, rx, b)]
            loop.set(works)
            assert works[0].turn(32) == 1
            loop.set([])
    assert drops(tx.stats) == {"vf_down": 1}


@pytest.mark.parametrize("spec", [PortSpec("patch"), PortSpec("patch", input="lan")])
def test_an_end_without_a_name_is_refused(spec: PortSpec) -> None:
    with pytest.raises(VhostPciError, match="a patch needs a name and an end"):
        Port(spec)


# ---- both sides rewrite their rings while they run -----------------------------------------------


@pytest.mark.parametrize("mergeable", [False, True])
def test_nothing_gets_out_of_a_grant_or_into_one(mergeable: bool) -> None:
    features: dict[str, Any] = {"indirect": True}
    with Rig(SIZE, **features) as sender, Rig(SIZE, mergeable=mergeable, **features) as receiver:
        secrets = _seal(sender), _seal(receiver)
        read_only = receiver.windows[4].copy()
        stats = DirectionStats(), DirectionStats()
        maps = sender.kernel_map(), receiver.kernel_map()
        deadline = time.monotonic() + SECONDS
        with contextlib.ExitStack() as stack:
            ports = [stack.enter_context(port) for port in ends()]
            stack.enter_context(_rewriting(sender, 0))
            stack.enter_context(_rewriting(receiver, WRITE))
            loop = stack.enter_context(Loop(32))
            while time.monotonic() < deadline or not stats[1].packets:
                assert time.monotonic() < deadline + 60
                with contextlib.ExitStack() as queues:
                    try:
                        tx = queues.enter_context(Queue(sender.config(), maps[0], stats[0]))
                        rx = queues.enter_context(Queue(receiver.config(), maps[1], stats[1]))
                    except QueueError:
                        continue
                    loop.set([Work(tx, None, ports[0]), Work(None, rx, ports[1])])
                    loop.run(20_000_000)
                    loop.set([])
        assert sum(stats[0].drops) > 100
        for rig, secret in zip((sender, receiver), secrets, strict=True):
            assert _unharmed(rig, secret)
        assert np.array_equal(receiver.windows[4], read_only)
        receiver.poke(RINGS, bytes(RINGS_SIZE))  # where an index may have any value
        for window, data in receiver.windows.items():
            assert SECRET not in data[~secrets[1][window]]


def test_offload_of_a_plain_sender_is_no_offload() -> None:
    """A header that nobody negotiated is not looked at (5.1.6.2.2), and not passed on."""
    with Rig(8, offloads=NO_OFFLOADS) as sender, Rig(8, offloads=ALL_OFFLOADS) as receiver:
        send(sender, [(FRAME, Offload(flags=1, checksum_start=20, checksum_offset=4))])
        stock(receiver, 1)
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        with joined((tx, None), (None, rx)) as (work, _):
            assert work.turn(32) == 1
        assert received(receiver, 1) == [(FRAME, PLAIN)]
