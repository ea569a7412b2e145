"""VM1 posts buffers of any size, in any number, wherever they lie: what both VFs make of them.

The oracle of the ring tells what VM1 is to find in its memory, whether the VF's DMA wrote it there
or a copy did.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from driver.igbvf.device import FRAME_BYTES_MAX
from driver.memory_map import TranslationError
from driver.virtio_net.features import Feature
from driver.virtio_net.queue import FRAME_OVERHEAD, MTU_UNTOLD
from pmd.kernel import DirectionStats, Event, Queue, Work, drop_names
from tests.driver.igb_model import IgbModel
from tests.driver.virtio_net_model import OFFER
from tests.kernel.direct_rig import LEAST, ORDINARY, DirectRig, IgbRig, frame
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import (
    BIG,
    DATA_END,
    DATA_SEAM,
    NEXT,
    READ_ONLY,
    RINGS,
    RINGS_SIZE,
    TABLE,
    WINDOWS,
    WRITABLE,
    WRITE,
    Rig,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from driver.device_ring import DeviceRing

RING = 8
SIZES = [1, 13, 64, 1526, 2048, 65550]
COUNTS = [1, 2, 3, RING]
GUARD = 64  # between buffers
WIDE = 0x400000  # room for a ring full of the largest, in two regions that the bus joins
WIDE_SEAM = WIDE + 0x48000
WIDE_END = WIDE_SEAM + 0x48000
IGBVF_LEAST = 12 + 1522  # what its PF lets it receive of an MTU of 1500
FRAMES = (60, 1514, 14)
Buffers = list[tuple[int, int]]


class Wide:
    """More memory than other tests need."""

    regions = [  # noqa: RUF012 - a constant, as its base's
        *TABLE[:-1],
        (WIDE, WIDE_SEAM - WIDE, 0x80000, WRITABLE, 3),
        (WIDE_SEAM, WIDE_END - WIDE_SEAM, 0xD0000, WRITABLE, 3),
        TABLE[-1],
    ]
    window_bytes = {**WINDOWS, WRITABLE: 0x120000}  # noqa: RUF012 - a constant


class WideRig(Wide, Rig):
    """With a split ring."""


class WidePackedRig(Wide, PackedRig):
    """With a packed ring."""


class Scene:
    """VM1's ring at a VF: what VM1 posts, what it has back, what its memory is to be.

    Args:
        shares: Whether the VF reaches VM1's memory; else all is copied.
    """

    def __init__(self, kind: str, *, packed: bool, shares: bool, mergeable: bool = True) -> None:
        make = WidePackedRig if packed else WideRig
        self.rig: Rig = make(RING, mergeable=mergeable)
        self.vf_rig: DirectRig | IgbRig
        if kind == "igbvf":
            self.vf_rig, self.least = IgbRig(self.rig, IgbModel()), IGBVF_LEAST
        else:
            more = Feature.RING_PACKED if "packed" in kind else 0
            self.vf_rig, self.least = DirectRig(self.rig, OFFER | more), LEAST
        self.kind, self.shares = kind, shares
        if not shares:
            self.vf_rig.vf.unshare()
        self.stats = DirectionStats()
        self.posted: list[tuple[int, Buffers]] = []  # id, buffers: not yet back
        self.late: list[bytes] = []  # frames that wait for buffers
        self._wire: list[bytes] = []  # of those, what the VF has not taken
        self._cursor = 0
        self._taken = 0
        self.queue: Queue | None = None
        self.work: Work

    # ---- VM1

    @property
    def free(self) -> int:
        """Descriptors VM1 may write."""
        return RING - sum(len(buffers) for _, buffers in self.posted)

    def post(self, buffers: Buffers, flags: int = WRITE) -> None:
        """One chain, wherever the table goes on."""
        assert len(buffers) <= self.free
        head = self._cursor % RING
        self.posted.append((head, buffers))
        self._cursor += len(buffers)
        if isinstance(self.rig, PackedRig):
            self.rig.chain(head, buffers, flags)
            return
        for number, (address, length) in enumerate(buffers):
            slot = (head + number) % RING
            more = NEXT if number + 1 < len(buffers) else 0
            self.rig.desc(slot, address, length, flags | more, (slot + 1) % RING)
        self.rig.make_available(head)

    def post_ordinary(self) -> None:
        """As many as there is room for, two at most."""
        for number in range(min(2, self.free)):
            self.post([(BIG + (ORDINARY + GUARD) * number, ORDINARY)])

    def reap(self) -> None:
        """Each buffer comes back once, in order."""
        if isinstance(self.rig, PackedRig):
            back = [each.id for each in self.rig.driver.reap()]
        else:
            count = (self.rig.used_index() - self._taken) % 65536
            self._taken += count
            back = [id_ for id_, _ in self.rig.used(count)]
        assert back == [id_ for id_, _ in self.posted[: len(back)]]
        del self.posted[: len(back)]

    # ---- the device's side

    def start(self) -> bool:
        """A queue from what the last one left; whether the VF fills VM1's buffers itself.

        Plain chains go the short way, and the long one, by turns: it is to make no difference.
        """
        self.rig.plain = not self.rig.plain
        self.vf_rig.vf.stop_receiving(0)
        if self.queue is not None:
            self.work.drain()
            self.queue.close()
        self.queue = self.rig.queue(self.stats)
        self.work = Work(None, self.queue, self.vf_rig.port)
        direct = self.queue.set_direct(self.vf_rig.port)
        self.vf_rig.vf.start_receiving(0)
        self.vf_rig.port.set_direct(direct)
        return direct

    def settle(self) -> None:
        """All that can move has moved."""
        idle = 0
        while idle < 3:
            moved = self.work.turn(32)
            if self.work.events & Event.UNSUITED:
                self.start()
                moved = 1
            if self._wire and self.vf_rig.model.receive(self._wire[0]):
                del self._wire[0]
                moved = 1
            idle = 0 if moved else idle + 1

    def receive(self, *frames: bytes) -> dict[str, int]:
        """Frames come; VM1's memory is then as the oracle has it. What was dropped, and why."""
        ring, copies = self.rig.oracle()
        outside = {window: bytearray(copy) for window, copy in copies.items()}
        before = list(self.stats.drops)
        self._wire += frames
        self.late += frames
        self.settle()
        completed = -1
        while completed != ring.completed:
            completed = ring.completed
            del self.late[: ring.receive(self.late, 256)]
        return self._compare(ring, copies, outside, before)

    def _compare(
        self,
        ring: DeviceRing,
        copies: dict[int, bytearray],
        outside: dict[int, bytearray],
        before: Sequence[int],
    ) -> dict[str, int]:
        self.rig.check_alike(copies)
        for bus, length in [(RINGS, RINGS_SIZE), *(b for _, each in self.posted for b in each)]:
            try:
                self.rig.copy_into(outside, bus, length)
            except TranslationError:
                continue  # it is not to be written at all
        self.rig.check_alike(outside)  # nothing else was written
        now = zip(drop_names(), self.stats.drops, before, strict=False)
        drops = {name: after - first for name, after, first in now if after != first}
        assert drops == {verdict.value: count for verdict, count in ring.drops.items()}
        assert self.queue is not None
        assert self.queue.fault == 0
        self.reap()
        return drops

    def transmit(self) -> tuple[list[bytes], dict[str, int]]:
        """What VM1 posted is sent, or dropped as told; no byte of its memory changes."""
        ring, copies = self.rig.oracle()
        stats = DirectionStats()
        queue = self.rig.queue(stats)
        work = Work(queue, None, self.vf_rig.port)
        model = self.vf_rig.model
        done = len(self._sent())
        for _ in range(4):
            work.turn(32)
            model.run()
        queue.close()
        expected = ring.transmit(256)
        self.rig.check_alike(copies)
        longest = FRAME_BYTES_MAX if self.kind == "igbvf" else FRAME_OVERHEAD + MTU_UNTOLD
        fits = [each for each in expected if len(each) <= longest]
        drops = {verdict.value: count for verdict, count in ring.drops.items()}
        if len(fits) < len(expected):
            drops["oversize"] = drops.get("oversize", 0) + len(expected) - len(fits)
        named = zip(drop_names(), stats.drops, strict=False)
        assert {name: count for name, count in named if count} == drops
        if self.kind == "igbvf":
            fits = [each.ljust(60, b"\0") for each in fits]
        assert self._sent()[done:] == fits
        self.reap()
        assert self.posted == []
        return fits, drops

    def _sent(self) -> list[bytes]:
        model = self.vf_rig.model
        return model.wire if isinstance(model, IgbModel) else model.sent

    @property
    def port_counts(self) -> tuple[int, int]:
        """Frames that the VF wrote to VM1's memory, and those that it read there."""
        return self.vf_rig.port.rx_direct, self.vf_rig.port.tx_held

    def go_on(self) -> None:
        """Ordinary buffers, until all VM1's are back and none waits; then one of each more."""
        for number in range(4 * RING):
            if not self.posted and not self.late:
                break
            if self.late:
                self.post_ordinary()
            self.receive(*([] if self.late else [frame(number, 100)]))
        assert (self.posted, self.late) == ([], [])
        self.post_ordinary()
        assert self.receive(frame(1, 1000), frame(2, 60)) == {}
        assert (self.posted, self.late) == ([], [])

    def close(self) -> None:
        self.vf_rig.close()
        self.rig.close()


def laid_out(size: int, count: int, number: int = 0) -> Buffers:
    """A chain's buffers, with noise between them."""
    first = WIDE + GUARD + number * count * (size + GUARD)
    return [(first + (size + GUARD) * at, size) for at in range(count)]


@pytest.fixture(params=["igbvf", "virtio-net"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["VM1 split", "VM1 packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[True, False], ids=["DMA", "copies"])
def scene(request: pytest.FixtureRequest, kind: str, packed: bool) -> Iterator[Scene]:
    scene = Scene(kind, packed=packed, shares=request.param)
    yield scene
    scene.close()


def received_into(scene: Scene, chains: Sequence[Buffers]) -> dict[str, int]:
    """The chains come after ordinary ones, which a VF that reaches VM1's memory fills itself."""
    scene.post_ordinary()
    assert scene.start() is scene.shares
    scene.receive(frame(7, 500), frame(8, 600))
    for each in chains:
        scene.post(each)
    drops = scene.receive(*(frame(number, size) for number, size in enumerate(FRAMES)))
    scene.go_on()
    return drops


def test_buffers_of_every_size_receive(scene: Scene) -> None:
    for size, count in itertools.product(SIZES, COUNTS):
        before, _ = scene.port_counts
        drops = received_into(scene, [laid_out(size, count, n) for n in range(1 + (count < 4))])
        after, _ = scene.port_counts
        assert set(drops) <= {"small_buffer"}
        suits = scene.shares and count == 1 and size >= scene.least
        assert after - before >= (4 if suits else 2 if scene.shares else 0)
        assert scene.shares or after == 0


def test_a_vm1_that_wants_no_merged_frames_receives(kind: str, packed: bool) -> None:
    scene = Scene(kind, packed=packed, shares=False, mergeable=False)
    for size, count in itertools.product(SIZES, COUNTS):
        drops = received_into(scene, [laid_out(size, count)])
        whole = size * count >= 12 + FRAMES[0]
        assert drops == ({} if whole else {"small_buffer": 1})
    scene.close()


SEAMS = {
    "the frame crosses": (DATA_SEAM - 700, {}),
    "its header crosses": (DATA_SEAM - 5, {}),
    "it begins behind": (DATA_SEAM, {}),
    "it ends there": (DATA_SEAM - 2048, {}),
    "its first part would do": (DATA_SEAM - 1600, {}),
    "each part would do, but for a byte": (DATA_SEAM - 1525, {}),
    "a hole": (DATA_END - 600, {"bad_address": 1}),
    "its last byte in a hole": (DATA_END - 2047, {"bad_address": 1}),
    "all but the hole": (DATA_END - 2048, {}),
    "read-only memory": (READ_ONLY - 600, {"bad_address": 1}),
    "wholly read-only": (READ_ONLY + 64, {"bad_address": 1}),
}


def test_a_regions_end_receives(scene: Scene) -> None:
    for where, (address, drops) in SEAMS.items():
        assert received_into(scene, [[(address, 2048)]]) == drops, where
        assert received_into(scene, [[(BIG + 0x8000, 30), (address, 2048)]]) == drops, where


def test_buffers_of_every_size_send(scene: Scene) -> None:
    for size, count in itertools.product(SIZES, COUNTS):
        _, before = scene.port_counts
        for number in range(1 + (count < 4)):
            scene.post(laid_out(size, count, number), 0)
        fits, drops = scene.transmit()
        assert set(drops) <= {"runt", "oversize"}
        assert sum(drops.values()) + len(fits) == 1 + (count < 4)
        _, after = scene.port_counts
        if not scene.shares:
            assert after == 0
        elif size >= 1526:  # a short frame is copied, and one in short pieces
            assert after - before == len(fits)
        scene.post([(BIG, 12 + 1000)], 0)
        assert [len(each) for each in scene.transmit()[0]] == [1000]


def test_a_regions_end_sends(scene: Scene) -> None:
    """What VM1 lets us only read is sent as all else; the hole is not."""
    for where, (address, drops) in SEAMS.items():
        inside = "hole" not in where or not drops
        for chain in ([(address, 2048)], [(BIG, 30), (address, 2048)]):
            scene.post(chain, 0)
            fits, dropped = scene.transmit()
            assert (len(fits), dropped) == (inside, {} if inside else drops), where
    scene.post([(BIG, 12 + 1000)], 0)
    assert [len(each) for each in scene.transmit()[0]] == [1000]


def test_read_only_memory_is_never_received_into(kind: str, packed: bool) -> None:
    """It is mapped so for DMA: the VF sends from it without a copy, and the model bites a write."""
    scene = Scene(kind, packed=packed, shares=True)
    read_only = scene.rig.windows[4]
    model = scene.vf_rig.model
    mapped = {address: iova in model.read_only for iova, (address, _) in model.dma.items()}
    assert mapped[read_only.ctypes.data] is True
    assert mapped[scene.rig.windows[WRITABLE].ctypes.data] is False
    content = read_only.tobytes()
    scene.post([(READ_ONLY, 12 + 1000)], 0)
    assert scene.transmit()[0] == [content[0x1000 + 12 :][:1000]]
    assert scene.port_counts == (0, 1)
    scene.post([(READ_ONLY, ORDINARY)])
    assert not scene.start()  # as the first buffer there is
    assert scene.receive(frame(1, 1000)) == {"bad_address": 1}
    scene.go_on()
    assert received_into(scene, [[(READ_ONLY, ORDINARY)]]) == {"bad_address": 1}
    assert read_only.tobytes() == content
    scene.close()
