"""Where a packed ring begins, what cannot be one, and what VM1 sees of it (docs/device.md 5.6)."""

from __future__ import annotations

import errno
import struct

import pytest

from guest.errors import VhostPciError
from pmd.kernel import DirectionStats, Queue, QueueError, RingFlags, Work
from tests.kernel.packed_driver import WRAP, WRITE
from tests.kernel.packed_rig import DEVICE_EVENT, DISABLE, PackedRig, received
from tests.kernel.rig import (
    AVAIL,
    BIG,
    DATA,
    DATA_END,
    DATA_SEAM,
    DESC,
    READ_ONLY,
    USED,
    frames_of,
    receive,
)


@pytest.mark.parametrize("start", [WRAP, 7 | WRAP, 0, 8])
def test_it_begins_at_its_commit_words(start: int) -> None:
    with PackedRig(9, start) as rig:
        rig.driver.post(3, [(DATA, 100)])
        rig.driver.show()
        queue, port = rig.queue(DirectionStats()), rig.port()
        assert Work(queue, None, port).turn(32) == 1
        assert len(frames_of(port)) == 1
        assert list(rig.commit) == [rig.driver.position] * 2


def test_it_asks_not_to_be_kicked() -> None:
    with PackedRig(9) as rig:
        rig.queue(DirectionStats())
        assert struct.unpack("<HH", rig.peek(DEVICE_EVENT, 4)) == (0, DISABLE)


def test_a_successor_goes_on_where_its_predecessor_stopped() -> None:
    with PackedRig(8) as rig:
        port, stats = rig.port(), DirectionStats()
        for number in range(6):
            rig.driver.post(number, [(DATA + 64 * number, 64)])
        rig.driver.show()
        for count in (4, 2):
            with Queue(rig.config(), rig.kernel_map(), stats) as queue:
                assert Work(queue, None, port).turn(4) == count
        assert frames_of(port) == [rig.peek(DATA + 64 * each + 12, 52) for each in range(6)]
        assert [each.id for each in rig.driver.reap()] == list(range(6))


@pytest.mark.parametrize(
    "words",
    [(9, 9), (WRAP, 9 | WRAP), (0x7FFF, 0x7FFF), (0xFFFF, 0xFFFF), (1, 0), (0, 1 | WRAP)],
)
def test_p15_commit_words_that_are_no_batch_of_the_ring(words: tuple[int, int]) -> None:
    with PackedRig(9) as rig:
        rig.set_commit(*words)
        with pytest.raises(
            QueueError, match="its commit words are no batch of this ring"
        ) as caught:
            rig.queue(DirectionStats())
        assert caught.value.errno == errno.ERANGE
        with pytest.raises(VhostPciError, match="its commit words are no batch of this ring"):
            rig.oracle()


BAD_LAYOUTS = {
    "size 0": ({"size": 0}, errno.EINVAL),
    "size 32769": ({"size": 32769}, errno.EINVAL),
    "P17 no commit words": ({"commit": 0}, errno.EINVAL),
    "S28 unaligned descriptors": ({"desc": DESC + 8}, errno.EINVAL),
    "S28 unaligned driver event": ({"avail": AVAIL + 2}, errno.EINVAL),
    "S28 unaligned device event": ({"used": USED + 2}, errno.EINVAL),
    "descriptors nowhere": ({"desc": 0}, errno.EFAULT),
    "descriptors past an end": ({"desc": DATA_END - 16 * 8}, errno.EFAULT),
    "descriptors across the seam": ({"desc": DATA_SEAM - 16}, errno.EFAULT),
    "descriptors in read-only memory": ({"desc": READ_ONLY}, errno.EFAULT),
    "driver event nowhere": ({"avail": DATA_END}, errno.EFAULT),
    "device event in read-only memory": ({"used": READ_ONLY}, errno.EFAULT),
}


@pytest.mark.parametrize("name", BAD_LAYOUTS)
def test_s28_impossible_geometry(name: str) -> None:
    change, number = BAD_LAYOUTS[name]
    with PackedRig(9) as rig:
        config = rig.config()._replace(**change)  # type: ignore[arg-type]
        with pytest.raises(QueueError) as caught:
            Queue(config, rig.kernel_map(), DirectionStats(), "ring 1 of VM1")
        assert caught.value.errno == number


def test_the_driver_event_may_be_in_read_only_memory() -> None:
    with PackedRig(9) as rig:
        config = rig.config()._replace(avail=READ_ONLY, desc=DATA_END - 16 * 9)
        with Queue(config, rig.kernel_map(), DirectionStats()) as queue:
            assert queue.fault == 0


@pytest.mark.parametrize("combining", [False, True])
def test_write_combining_changes_nothing_but_order(combining: bool) -> None:
    with PackedRig(9) as rig:
        for number in range(5):
            rig.driver.post(number, [(DATA + 64 * number, 64)])
        rig.driver.show()
        flag = RingFlags.COMBINING if combining else RingFlags(0)
        config = rig.config()._replace(flags=rig.config().flags | flag)
        port = rig.port()
        with Queue(config, rig.kernel_map(), DirectionStats()) as queue:
            assert Work(queue, None, port).turn(32) == 5
        assert [each.id for each in rig.driver.reap()] == list(range(5))
        assert frames_of(port) == [rig.peek(DATA + 64 * each + 12, 52) for each in range(5)]


def test_p04_ids_of_buffers_are_echoed_whatever_they_are() -> None:
    with PackedRig(7) as rig:
        ids = [6, 6, 0xFFFF, 7]
        for number, id_ in enumerate(ids):
            rig.driver.post(id_, [(BIG + 256 * number, 256)], WRITE)
        rig.driver.show()
        assert receive(rig, [bytes([number]) * 60 for number in range(4)]).packets == 4
        assert [each.id for each in rig.driver.reap()] == ids


def test_s31_buffers_too_small_for_any_frame_come_back() -> None:
    for mergeable in (False, True):
        with PackedRig(7, mergeable=mergeable) as rig:
            for number, length in enumerate([1, 11, 12, 13, 20, 1, 2]):
                rig.driver.post(number, [(BIG + 64 * number, length)], WRITE)
            rig.driver.show()
            outcome = receive(rig, [bytes(100)] * 3)
            assert outcome.packets == 0
            assert outcome.drops["small_buffer"] == (1 if mergeable else 3)
            back = [(each.id, each.length) for each in rig.driver.reap()]
            assert back == [(number, 0) for number in range(7 if mergeable else 3)]


def test_p09_a_frame_of_several_buffers_of_several_descriptors() -> None:
    with PackedRig(10, 6 | WRAP, mergeable=True) as rig:
        where = {number: BIG + 64 * number for number in range(4)}
        for number, bus in where.items():
            rig.driver.post(number, [(bus, 20), (bus + 20, 20)], WRITE)
        rig.driver.show()
        frames = [bytes(range(1, 101)), bytes(range(50, 70))]
        assert receive(rig, frames).packets == 2
        assert list(rig.commit) == [4] * 2
        assert list(received(rig, where, rig.driver.reap())) == frames


@pytest.mark.parametrize("flags", [0, WRITE])
def test_s16_a_readable_buffer_is_never_written(flags: int) -> None:
    with PackedRig(6) as rig:
        rig.driver.post(1, [(BIG, 200), (BIG + 200, 200)], flags)
        rig.driver.show()
        if flags:
            rig.raw(1, BIG + 200, 200, 1, 1 << 7)  # its second descriptor without WRITE
        before = rig.peek(BIG, 400)
        outcome = receive(rig, [bytes(100)])
        assert outcome.drops == {"bad_direction": 1}
        assert rig.peek(BIG, 400) == before
