"""Translations that are not there yet: the chain waits, and is served once (docs/device.md 5.8)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from driver.memory_map import MappedArea, Miss
from driver.offload import PLAIN
from pmd.kernel import DirectionStats, Event, Map, QueueError, RingFlags, Work, drop_names
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import (
    BIG,
    DATA,
    INDIRECT,
    MORE,
    READ_ONLY,
    RINGS,
    TOP,
    WRITE,
    Rig,
    frames_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.memory_map import HostRegion
    from pmd.kernel import Queue, RingConfig

READ_MISS, WRITE_MISS = 1, 2
FRAME = bytes(range(60))


class SplitBehind(Rig):
    """A split ring of a VM1 that is behind an IOMMU."""

    def config(self) -> RingConfig:
        config = super().config()
        return config._replace(flags=config.flags | RingFlags.TRANSLATED)


class PackedBehind(PackedRig):
    """A packed one."""

    def config(self) -> RingConfig:
        config = super().config()
        return config._replace(flags=config.flags | RingFlags.TRANSLATED)


class Scene:
    """A queue and its map, which lacks what the test says."""

    def __init__(self, rig: Rig, stack: ExitStack) -> None:
        self.rig, self._stack = rig, stack
        self.port = rig.port()
        self.stats = DirectionStats()
        self.queue: Queue = rig.queue(self.stats)

    def regions(self, *lacking: int) -> list[HostRegion]:
        """Those of the rig, without the ones that begin at these addresses."""
        areas = {
            window: [MappedArea(0, len(data), data.ctypes.data)]
            for window, data in self.rig.windows.items()
        }
        return [each for each in self.rig.memory.regions(areas) if each.bus not in lacking]

    def map(self, *lacking: int) -> None:
        self.queue.remap(self._stack.enter_context(Map(self.regions(*lacking))))

    def transmit(self) -> Work:
        return Work(self.queue, None, self.port)

    def receive(self, *frames: bytes) -> Work:
        self.port.give((frame, PLAIN) for frame in frames)
        return Work(None, self.queue, self.port)

    def send(self, head: int, bus: int, number: int) -> None:
        """A frame of one buffer, filled with its number."""
        self.rig.poke(bus, bytes(12) + bytes([number]) * 60)
        self.rig.chain(head, [(bus, 72)])

    @property
    def drops(self) -> dict[str, int]:
        return {n: c for n, c in zip(drop_names(), self.stats.drops, strict=False) if c}


@pytest.fixture(params=[SplitBehind, PackedBehind], ids=["split", "packed"])
def kind(request: pytest.FixtureRequest) -> type[Rig]:
    chosen: type[Rig] = request.param
    return chosen


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def make(kind: type[Rig], stack: ExitStack, *lacking: int, **features: bool) -> Scene:
    maps = stack.enter_context(ExitStack())  # freed after the queue that has them
    scene = Scene(stack.enter_context(kind(16, far=True, **features)), maps)
    scene.map(*lacking)
    return scene


def numbers(frames: list[bytes]) -> list[int]:
    assert all(frame == frame[:1] * 60 for frame in frames)
    return [frame[0] for frame in frames]


def test_a_chain_waits_until_its_buffer_is_known(kind: type[Rig], stack: ExitStack) -> None:
    scene = make(kind, stack, BIG)
    for number, bus in enumerate((DATA, BIG, DATA + 0x1000)):
        scene.send(number, bus, number)
    work = scene.transmit()
    assert work.turn(32) == 1
    assert numbers(frames_of(scene.port)) == [0]
    assert work.events == Event.MISSING
    assert scene.queue.waits
    assert scene.queue.fault == 0
    assert scene.queue.misses() == [Miss(BIG, 72, READ_MISS)]
    assert scene.queue.misses() == []
    work.structure.events = 0
    assert work.turn(32) == 0
    assert work.events == Event(0)  # it has been told
    scene.map()
    assert not scene.queue.waits
    assert work.turn(32) == 2
    assert numbers(frames_of(scene.port)) == [1, 2]
    assert scene.stats.packets == 3
    assert scene.drops == {}


def test_what_is_refused_is_dropped(kind: type[Rig], stack: ExitStack) -> None:
    scene = make(kind, stack, BIG)
    scene.send(0, BIG, 0)
    scene.send(1, DATA, 1)
    work = scene.transmit()
    assert work.turn(32) == 0
    assert scene.queue.misses() == [Miss(BIG, 72, READ_MISS)]
    work.structure.events = 0
    scene.map(BIG)
    scene.queue.refuse([Miss(BIG - 0x1000, 0x1000, 3), Miss(BIG, 0x1000, WRITE_MISS)])
    assert work.turn(32) == 0  # other addresses, another permission
    assert scene.queue.misses() == [Miss(BIG, 72, READ_MISS)]
    work.structure.events = 0
    scene.map(BIG)
    scene.queue.refuse([Miss(BIG, 0x1000, READ_MISS)])
    assert work.turn(32) == 2
    assert numbers(frames_of(scene.port)) == [1]
    assert scene.drops == {"bad_address": 1}
    # It says nothing of later.
    scene.queue.refuse([])
    scene.send(2, BIG, 2)
    assert work.turn(32) == 0
    assert scene.queue.misses() == [Miss(BIG, 72, READ_MISS)]


def test_all_that_a_burst_lacks_is_told_at_once(kind: type[Rig], stack: ExitStack) -> None:
    scene = make(kind, stack, BIG, MORE, TOP)
    rig = scene.rig
    rig.chain(0, [(DATA, 100), (BIG, 5000), (MORE, 30)])
    rig.chain(3, [(BIG + 0x8000, 72)])
    rig.chain(4, [(DATA, 100)])
    rig.chain(5, [(TOP, 72)])
    work = scene.transmit()
    assert work.turn(32) == 0
    assert scene.queue.misses() == [
        Miss(BIG, 5000, READ_MISS),
        Miss(MORE, 30, READ_MISS),
        Miss(BIG + 0x8000, 72, READ_MISS),
        Miss(TOP, 72, READ_MISS),
    ]
    work.structure.events = 0
    scene.map()
    assert work.turn(32) == 4
    assert len(frames_of(scene.port)) == 4


def test_a_storm_of_misses_is_told_as_far_as_there_is_room(
    kind: type[Rig], stack: ExitStack
) -> None:
    scene = make(kind, stack, BIG)
    for head in (0, 8):
        scene.rig.chain(head, [(BIG + 0x1000 * head + 16 * n, 16) for n in range(8)])
    work = scene.transmit()
    assert work.turn(32) == 0
    assert len(scene.queue.misses()) == 16


def test_an_indirect_table_may_be_missing(kind: type[Rig], stack: ExitStack) -> None:
    scene = make(kind, stack, MORE, BIG, indirect=True)
    rig = scene.rig
    rig.poke(BIG, bytes(12) + bytes([7]) * 60)
    rig.table(MORE, (BIG, 72, 0, 0))
    rig.chain(0, [(MORE, 16)], INDIRECT)
    work = scene.transmit()
    assert work.turn(32) == 0
    assert scene.queue.misses() == [Miss(MORE, 16, READ_MISS)]
    work.structure.events = 0
    scene.map(BIG)
    assert work.turn(32) == 0
    assert scene.queue.misses() == [Miss(BIG, 72, READ_MISS)]
    work.structure.events = 0
    scene.map()
    assert work.turn(32) == 1
    assert numbers(frames_of(scene.port)) == [7]


def test_a_frame_for_vm1_waits_and_is_written_once(kind: type[Rig], stack: ExitStack) -> None:
    scene = make(kind, stack, BIG)
    for number, bus in enumerate((DATA, BIG, DATA + 0x1000)):
        scene.rig.chain(number, [(bus, 200)], WRITE)
    work = scene.receive(*(bytes([n]) * 60 for n in range(3)))
    assert work.turn(32) == 1
    assert work.events == Event.MISSING
    assert scene.queue.misses() == [Miss(BIG, 200, WRITE_MISS)]
    work.structure.events = 0
    assert work.turn(32) == 0
    assert numbers(frames_of(scene.port)) == [1, 2]
    scene.port.give((bytes([n]) * 60, PLAIN) for n in (1, 2))
    scene.map()
    assert work.turn(32) == 2
    assert [scene.rig.peek(bus + 12, 60)[0] for bus in (DATA, BIG, DATA + 0x1000)] == [0, 1, 2]
    assert frames_of(scene.port) == []
    assert (scene.stats.packets, scene.drops) == (3, {})


def test_a_frame_of_several_buffers_takes_none_before_all_are_known(
    kind: type[Rig], stack: ExitStack
) -> None:
    scene = make(kind, stack, BIG, mergeable=True)
    rig = scene.rig
    for number, bus in enumerate((DATA, BIG, DATA + 0x1000)):
        rig.chain(number, [(bus, 32)], WRITE)
    noise = rig.peek(DATA, 32)
    work = scene.receive(FRAME)
    assert work.turn(32) == 0
    assert rig.peek(DATA, 32) == noise
    assert scene.queue.misses() == [Miss(BIG, 32, WRITE_MISS)]
    work.structure.events = 0
    scene.map()
    assert work.turn(32) == 3
    data = b"".join(rig.peek(bus, 32) for bus in (DATA, BIG, DATA + 0x1000))
    assert data[12:72] == FRAME
    assert data[10:12] == b"\x03\x00"


def test_a_permission_may_be_missing(kind: type[Rig], stack: ExitStack) -> None:
    scene = make(kind, stack)
    scene.rig.chain(0, [(READ_ONLY, 200)], WRITE)
    scene.rig.chain(1, [(DATA, 200)], WRITE)
    work = scene.receive(FRAME)
    assert work.turn(32) == 0
    assert scene.queue.misses() == [Miss(READ_ONLY, 200, WRITE_MISS)]
    work.structure.events = 0
    scene.map()
    scene.queue.refuse([Miss(READ_ONLY, 0x1000, WRITE_MISS)])
    assert work.turn(32) == 2
    assert scene.rig.peek(DATA + 12, 60) == FRAME
    assert scene.drops == {"bad_address": 1}


def test_a_broken_chain_is_dropped_whatever_it_lacks(kind: type[Rig], stack: ExitStack) -> None:
    scene = make(kind, stack, BIG)
    scene.rig.chain(0, [(BIG, 72)], WRITE)
    scene.send(1, DATA, 1)
    work = scene.transmit()
    assert work.turn(32) == 2
    assert scene.drops == {"bad_direction": 1}
    assert work.events == Event(0)


def test_the_end_of_the_address_space_is_no_miss(kind: type[Rig], stack: ExitStack) -> None:
    scene = make(kind, stack, TOP)
    scene.rig.chain(0, [(TOP + 0x800, 0x1000)])
    scene.send(1, DATA, 1)
    assert scene.transmit().turn(32) == 2
    assert scene.drops == {"bad_address": 1}


def test_a_map_without_the_ring_is_refused_and_the_old_one_stays(
    kind: type[Rig], stack: ExitStack
) -> None:
    scene = make(kind, stack)
    with pytest.raises(QueueError, match="outside the memory"):
        scene.map(RINGS)
    scene.send(0, DATA, 4)
    assert scene.transmit().turn(32) == 1
    assert numbers(frames_of(scene.port)) == [4]


@pytest.mark.parametrize("room", [0, 1])
def test_a_port_that_is_full_hides_no_miss(kind: type[Rig], stack: ExitStack, room: int) -> None:
    """The ring waits for translations only once all before that chain has gone."""
    scene = make(kind, stack, BIG)
    for number, bus in enumerate((DATA, DATA + 0x1000, BIG)):
        scene.send(number, bus, number)
    work = scene.transmit()
    scene.port.room = room
    assert work.turn(32) == room
    assert not scene.queue.waits
    scene.port.room = 8
    assert work.turn(32) == 2 - room
    assert scene.queue.waits
    assert scene.queue.misses() == [Miss(BIG, 72, READ_MISS)]
    scene.map()
    work.structure.events = 0
    assert work.turn(32) == 1
    assert numbers(frames_of(scene.port)) == [0, 1, 2]
