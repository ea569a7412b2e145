"""VM1 changes what it posts: the ring receives by the VF's DMA where that suits, else by copies.

The oracle of the ring tells what VM1 is to find, in whichever way it came; each frame comes once.
"""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING

import pytest

from pmd.guard import Guard
from pmd.kernel import Event
from pmd.pair_works import PairWorks, Watched
from pmd.ports import Ports
from pmd.receiving import Receiving
from pmd.stats import Receives
from tests.kernel.direct_rig import frame
from tests.kernel.test_vf_buffers import RING, Scene, laid_out

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL, LARGE = 1000, 2048  # too short for any VF; long enough for all
PAGE = 4096


class Redecided(Scene):
    """A scene whose VF is in the hands of `Ports`, as a channel has it."""

    def __init__(self, kind: str, *, packed: bool) -> None:
        super().__init__(kind, packed=packed, shares=True)
        vf = self.vf_rig.vf
        self.vf_rig.port.close()
        vf.close()
        self.ports = Ports(vf)
        self.ports.ensure(1)
        self.ports.share(self.vf_rig.windows)
        self.vf_rig.port = self.ports[0]
        self.receiving = Receiving(self.ports, logging.getLogger("pmd"))
        self._guard = Guard()
        self.wishes = 0
        self.fill(SMALL)  # what it begins with decides first
        self.begin()

    def begin(self) -> None:
        self.queue = self.rig.queue(self.stats)
        watched = Watched(0, 0, 0, self._guard, -1)
        self.works = PairWorks({0: self.queue}, self.ports, watched, self.receiving)
        self.work = self.works.of_pairs[0]

    @property
    def ways(self) -> tuple[str, int]:
        """The way it receives, and how often that changed."""
        return self.receiving.counts(0)

    def step(self) -> bool:
        """Whether anything moved."""
        moved = False
        if not self.work.events:
            moved = bool(self.work.turn(32))
        else:  # a loop passes it over
            assert not self.work.events & ~(Event.SUITED | Event.UNSUITED)
            self.wishes += 1
            assert self.receiving.redecide(self.works)
            assert not self.work.events
            moved = True
        while self._wire and self.vf_rig.model.receive(self._wire[0]):
            del self._wire[0]
            moved = True
        return moved

    def settle(self) -> None:
        idle = 0
        while idle < 3:
            idle = 0 if self.step() else idle + 1

    def asks(self) -> Event:
        """What the ring asks for after a turn."""
        self.work.turn(32)
        return self.work.events

    def come(self, count: int) -> None:
        """The VF has so many frames, and nobody has looked yet."""
        assert self.late == []
        self.late = [frame(number, 900) for number in range(count)]
        assert all(self.vf_rig.model.receive(each) for each in self.late)

    def fill(self, *sizes: int) -> None:
        """As many buffers as there is room for, of these sizes by turns."""
        for number in range(self.free):
            slot = (self._cursor + number) % RING
            self.post(laid_out(sizes[number % len(sizes)], 1, slot))

    def round(self, *sizes: int) -> None:
        """VM1 fills its ring, and a frame comes for each buffer."""
        self.fill(*sizes)
        frames = (frame(number, 60 + 100 * number) for number in range(RING))
        assert self.receive(*frames) == {}
        assert (self.posted, self.late) == ([], [])

    def shrink(self, size: int) -> None:
        """VM1 makes all posted buffers as short, which no driver does."""
        self.posted = [(id_, [(at, size) for at, _ in each]) for id_, each in self.posted]
        for id_, _ in self.posted:
            offset = 16 * id_ + 8
            self.rig.poke(self.rig.layout.desc + offset, struct.pack("<I", size))

    def close(self) -> None:
        self.ports.close()
        self._guard.close()
        super().close()


@pytest.fixture(params=["igbvf", "virtio-net", "virtio-net packed"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def scene(request: pytest.FixtureRequest, kind: str) -> Iterator[Redecided]:
    scene = Redecided(kind, packed=request.param)
    yield scene
    scene.close()


def test_small_large_small_large(scene: Redecided) -> None:
    """A ring's turn of large buffers brings the VF's DMA back; then two; a small one ends it."""
    way = "copy"
    for number, (size, rounds) in enumerate([(SMALL, 3), (LARGE, 1), (SMALL, 1), (LARGE, 2)]):
        for _ in range(rounds):
            assert scene.ways == (way, max(0, number - 1))
            scene.round(size)
        way = "zero-copy" if size == LARGE else "copy"
        assert scene.ways == (way, number)
        direct, _ = scene.port_counts
        scene.round(size)
        assert scene.port_counts[0] - direct == (RING if size == LARGE else 0)
    assert scene.vf_rig.port.rx_missed == 0


@pytest.mark.parametrize("kind", ["igbvf"], indirect=True)
def test_a_ring_that_is_never_full_changes_too(scene: Redecided) -> None:
    scene.round(SMALL)
    posted = 0
    while scene.ways == ("copy", 0):
        assert posted < RING
        for slot in (posted, posted + 1):
            scene.post(laid_out(LARGE, 1, slot))
        posted += 2
        assert scene.receive(frame(1, 60), frame(2, 1514)) == {}
    assert scene.ways == ("zero-copy", 1)


@pytest.mark.parametrize("kind", ["igbvf"], indirect=True)
def test_a_vm1_that_alternates_ends_up_with_copies(scene: Redecided) -> None:
    """Each change takes it twice the buffers of the one before."""
    for _ in range(RING + 1):
        scene.round(LARGE, SMALL)
    assert (scene.wishes, scene.ways) == (0, ("copy", 0))
    posted = 0
    for _ in range(30):
        scene.round(LARGE if scene.ways[0] == "copy" else SMALL)
        posted += RING
    assert 6 <= scene.ways[1] <= 2 * (posted // RING).bit_length()
    assert scene.vf_rig.port.rx_missed == 0


def test_frames_that_wait_are_delivered_before_the_change(scene: Redecided) -> None:
    scene.round(SMALL)
    waiting = [frame(number, 1514) for number in range(RING - 2)]
    assert scene.receive(*waiting) == {}
    assert scene.late == waiting
    scene.fill(LARGE)
    assert scene.receive() == {}
    assert (scene.late, len(scene.posted)) == ([], 2)
    assert scene.ways == ("zero-copy", 1)
    assert scene.receive(frame(20, 60), frame(21, 1514)) == {}
    assert (scene.posted, scene.port_counts[0], scene.vf_rig.port.rx_missed) == ([], 2, 0)


def test_frames_that_come_before_the_vf_stops(scene: Redecided) -> None:
    """Those in its own memory are copied to VM1; those in VM1's it has written."""
    scene.round(SMALL)
    scene.fill(LARGE)
    assert scene.asks() == Event.SUITED
    scene.come(3)
    assert scene.receive() == {}
    assert (scene.ways, scene.port_counts[0]) == (("zero-copy", 1), 0)
    scene.post(laid_out(SMALL, 1, RING))
    assert scene.asks() == Event.UNSUITED
    scene.come(2)
    assert scene.receive() == {}
    assert (scene.ways, scene.port_counts[0]) == (("copy", 2), 2)
    assert scene.receive(*(frame(number, 300) for number in range(len(scene.posted)))) == {}
    assert (scene.posted, scene.late, scene.vf_rig.port.rx_missed) == ([], [], 0)


def test_frames_that_vm1_has_no_buffers_for_are_counted(scene: Redecided) -> None:
    scene.round(SMALL)
    scene.receive(*(frame(number, 700) for number in range(RING + 3)))
    scene.fill(LARGE)
    scene.receive()
    assert scene.late == [frame(number, 700) for number in range(RING, RING + 3)]
    assert scene.ways == ("zero-copy", 1)
    assert scene.vf_rig.port.rx_missed == 3
    scene.late.clear()
    scene.round(LARGE)
    assert scene.port_counts[0] == RING


def test_a_vm1_that_takes_back_what_it_posted(scene: Redecided) -> None:
    """Between the ring's wish and the decision: by what is there then, all is copied."""
    scene.round(SMALL)
    scene.fill(LARGE)
    assert scene.asks() == Event.SUITED
    scene.shrink(SMALL)
    assert scene.receive(*(frame(number, 300) for number in range(RING))) == {}
    assert scene.ways == ("copy", 0)
    scene.round(LARGE)
    scene.round(LARGE)
    assert scene.ways == ("zero-copy", 1)


def test_a_ring_set_up_anew_is_as_it_was(scene: Redecided) -> None:
    """As at another generation: a small buffer of before is not forgotten, until VM1 stops."""
    for size in (SMALL, LARGE, SMALL):
        scene.round(size)
    assert scene.ways == ("copy", 2)
    for forgets in (False, True):
        scene.receiving.end(scene.works.of_pairs)
        scene.receiving.forget(() if forgets else (0,))
        scene.ports.let_go()
        scene.ports.receive_by_copy()
        scene.fill(LARGE)
        scene.begin()
        assert scene.receiving.counts(0) == Receives.of(forgets, 2)
        assert scene.receive(*(frame(number, 900) for number in range(RING))) == {}
    assert scene.port_counts[0] == RING
