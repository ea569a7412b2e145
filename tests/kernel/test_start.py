"""Where a ring begins, and what cannot be one (docs/device.md 5.3; virtio 1.3, 2.7)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from driver.memory_map import HostRegion
from driver.software_vf import PortSpec
from guest.errors import VhostPciError
from pmd.kernel import DirectionStats, Map, Port, Queue, QueueError, RingFlags, Work
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import (
    AVAIL,
    DATA,
    DATA_END,
    DATA_SEAM,
    DESC,
    READ_ONLY,
    RINGS,
    TOP,
    USED,
    WRITE,
    Rig,
    frames_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.mark.parametrize("start", [0, 7, 65535])
def test_it_begins_at_used_index(start: int) -> None:
    with Rig(8) as rig:
        rig.set_index(start)
        rig.chain(3, [(DATA, 100)])
        queue, port = rig.queue(DirectionStats()), rig.port()
        assert Work(queue, None, port).turn(32) == 1
        assert len(frames_of(port)) == 1
        assert rig.used_index() == (start + 1) % 65536


def test_a_successor_goes_on_where_its_predecessor_was_killed() -> None:
    with Rig(8) as rig:
        port = rig.port()
        for head in range(6):
            rig.chain(head, [(DATA + 64 * head, 64)])
        stats = DirectionStats()
        with Queue(rig.config(), rig.kernel_map(), stats) as queue:
            assert Work(queue, None, port).turn(4) == 4
        with Queue(rig.config(), rig.kernel_map(), stats) as queue:
            assert Work(queue, None, port).turn(4) == 2
        assert frames_of(port) == [rig.peek(DATA + 64 * head + 12, 52) for head in range(6)]
        assert stats.packets == 6


@pytest.mark.parametrize("ahead", [9, 32768, 65535])
def test_s06_an_index_too_far_ahead_cannot_start(ahead: int) -> None:
    with Rig(8) as rig:
        rig.set_index(65530)
        rig.poke(AVAIL + 2, struct.pack("<H", (65530 + ahead) % 65536))
        with pytest.raises(QueueError, match="further than its size") as caught:
            rig.queue(DirectionStats())
        assert caught.value.errno == errno.ERANGE
        with pytest.raises(VhostPciError, match="further than its size"):
            rig.oracle()


def test_a_full_ring_starts() -> None:
    with Rig(8) as rig:
        rig.poke(AVAIL + 2, struct.pack("<H", 8))
        assert rig.queue(DirectionStats()).fault == 0


BAD_LAYOUTS = {
    "size 0": ({"size": 0}, errno.EINVAL),
    "size 3": ({"size": 3}, errno.EINVAL),
    "size 65536": ({"size": 65536}, errno.EINVAL),
    "header of 11 bytes": ({"header_bytes": 11}, errno.EINVAL),
    "S28 unaligned descriptors": ({"desc": DESC + 8}, errno.EINVAL),
    "S28 unaligned available ring": ({"avail": AVAIL + 1}, errno.EINVAL),
    "S28 unaligned used ring": ({"used": USED + 2}, errno.EINVAL),
    "descriptors nowhere": ({"desc": 0}, errno.EFAULT),
    "S28 descriptors past an end": ({"desc": DATA_END - 16 * 7}, errno.EFAULT),
    "S28 available ring past an end": ({"avail": DATA_END - 18}, errno.EFAULT),
    "S28 used ring past an end": ({"used": DATA_END - 64}, errno.EFAULT),
    "a part across the seam": ({"desc": DATA_SEAM - 16}, errno.EFAULT),
    "used ring in read-only memory": ({"used": READ_ONLY}, errno.EFAULT),
}


@pytest.mark.parametrize("name", BAD_LAYOUTS)
def test_s28_impossible_geometry(name: str) -> None:
    change, number = BAD_LAYOUTS[name]
    with Rig(8) as rig:
        config = rig.config()._replace(**change)  # type: ignore[arg-type]
        with pytest.raises(QueueError, match="cannot run ring 1 of VM1") as caught:
            Queue(config, rig.kernel_map(), DirectionStats(), "ring 1 of VM1")
        assert caught.value.errno == number


def test_ring_parts_may_end_where_memory_ends() -> None:
    """And the event field counts only where it was negotiated (2.7.6)."""
    with Rig(8) as rig:
        rig.poke(DATA_END - 20, bytes(20))
        config = rig.config()._replace(avail=DATA_END - 20)
        with Queue(config, rig.kernel_map(), DirectionStats()):
            pass
        with pytest.raises(QueueError):
            Queue(
                config._replace(flags=config.flags | RingFlags.EVENT_IDX),
                rig.kernel_map(),
                DirectionStats(),
            )


@pytest.mark.parametrize("parts", ["available in descriptors", "all the same"])
def test_s28_overlapping_parts_harm_nobody(parts: str) -> None:
    with Rig(8) as rig:
        rig.poke(RINGS, bytes(0x100))
        same = {"avail": DESC, "used": DESC} if parts == "all the same" else {"avail": DESC}
        before = {window: data.copy() for window, data in rig.windows.items()}
        config = rig.config()._replace(**same)  # type: ignore[arg-type]
        with Queue(config, rig.kernel_map(), DirectionStats()) as queue:
            work = Work(queue, None, rig.port())
            for index in range(100):
                rig.poke(DESC + 2, struct.pack("<H", index % 9))
                work.turn(32)
        for run in (rig.memory.translate(RINGS, 0x8000, write=True),):  # type: ignore[arg-type]
            before[run.window][run.offset : run.offset + run.length] = 0
            rig.windows[run.window][run.offset : run.offset + run.length] = 0
        assert all(np.array_equal(before[w], rig.windows[w]) for w in before)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("receives", [False, True])
def test_s28_what_is_used_lies_over_the_data(receives: bool, packed: bool) -> None:
    """VM1 reads and is given what it makes of that; nothing else changes, and no fault is made."""
    rig: Rig = PackedRig(8, mergeable=True) if packed else Rig(8, mergeable=True)
    with rig, Port(PortSpec("gen", frame_bytes=200)) as source:
        before = {window: data.copy() for window, data in rig.windows.items()}
        # Where used elements go, or, packed, what VM1 is told of kicks.
        rig.poke(DATA, bytes(0x1000))
        config = rig.config()._replace(used=DATA)
        with Queue(config, rig.kernel_map(), DirectionStats()) as queue:
            work = Work(None, queue, source) if receives else Work(queue, None, rig.port())
            for head in range(8):
                rig.chain(head, [(DATA + 4 * head, 212)], WRITE if receives else 0)
            for _ in range(100):
                work.turn(32)
            assert (queue.fault, queue.stats.packets) == (0, 8)
        for window, data in rig.windows.items():
            for bus, length, offset, of, _ in rig.regions:
                if of == window and bus in {RINGS, DATA}:
                    before[window][offset : offset + length] = data[offset : offset + length]
            assert np.array_equal(before[window], data)


def test_s37_the_configuration_is_frozen_with_the_queue() -> None:
    with Rig(8) as rig:
        regions = [HostRegion(RINGS, 0x8000, rig.windows[2].ctypes.data + 0x1000, 3)]
        with Map(regions) as map_, Queue(rig.config(), map_, DirectionStats()) as queue:
            regions.clear()  # the map has its own copy
            rig.make_available(0)
            rig.desc(0, RINGS + 0x7000, 100)
            assert Work(queue, None, rig.port()).turn(32) == 1
            assert queue.stats.packets == 1


BAD_TABLES: dict[str, Sequence[tuple[int, int, int, int]]] = {
    "empty region": [(0, 0, 0x1000, 3)],
    "wraps": [(TOP, 0x1001, 0x1000, 3)],
    "out of order": [(0x2000, 16, 0x1000, 3), (0x1000, 16, 0x1000, 3)],
    "overlap": [(0x1000, 17, 0x1000, 3), (0x1010, 16, 0x1000, 3)],
    "twice": [(0x1000, 16, 0x1000, 3), (0x1000, 16, 0x1000, 3)],
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_the_kernel_refuses(name: str) -> None:
    with pytest.raises(VhostPciError, match="memory regions: invalid argument"):
        Map([HostRegion(*each) for each in BAD_TABLES[name]])


def test_translation_by_the_kernel() -> None:
    with Rig(8) as rig:
        map_ = rig.kernel_map()
        base = rig.windows[2].ctypes.data
        assert map_.translate(DATA, 100, 3) == (base + 0x10000, 100)
        assert map_.translate(DATA_SEAM - 30, 100, 1) == (base + 0x14000 - 30, 30)
        assert map_.translate((1 << 64) - 1, 100, 2) == (base + 0x30FFF, 1)
        assert map_.translate(DATA_END, 1, 1) is None
        assert map_.translate(READ_ONLY, 1, 2) is None
        assert map_.translate(DATA, 0, 1) is None


def test_no_memory_at_all() -> None:
    with Map([]) as map_:
        assert map_.translate(0, 1, 1) is None
