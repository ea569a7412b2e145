"""When VM1 is called (virtio 1.3, 2.7.7.2) and what tells it not to kick (2.7.10)."""

from __future__ import annotations

import os
import struct
import tempfile
import threading

import pytest

from pmd.kernel import DirectionStats, Map, Queue, Work
from tests.kernel.rig import AVAIL, DATA, USED, Rig, transmit

FRAME = (DATA, 100)


def _used_event(rig: Rig, event: int) -> None:
    rig.poke(AVAIL + 4 + 2 * rig.layout.size, struct.pack("<H", event % 65536))


@pytest.mark.parametrize("start", [0, 100, 65534])
@pytest.mark.parametrize("event", range(-3, 6))
def test_event_index_calls_when_it_is_crossed(start: int, event: int) -> None:
    with Rig(8, event_idx=True) as rig:
        rig.set_index(start)
        _used_event(rig, start + event)
        for head in range(3):
            rig.chain(head, [FRAME])
        assert transmit(rig).calls == (1 if 0 <= event < 3 else 0)


@pytest.mark.parametrize("burst", [1, 2, 3])
def test_event_index_calls_once_however_the_turns_are_cut(burst: int) -> None:
    with Rig(8, event_idx=True) as rig:
        _used_event(rig, 1)
        for head in range(3):
            rig.chain(head, [FRAME])
        assert transmit(rig, burst).calls == 1


@pytest.mark.parametrize("event", [3, 1000, 40000, 65535])
def test_s30_used_event_far_away_never_calls(event: int) -> None:
    with Rig(8, event_idx=True) as rig:
        _used_event(rig, event)
        rig.chain(0, [FRAME])
        assert transmit(rig).calls == 0


@pytest.mark.parametrize(("flags", "calls"), [(0, 1), (1, 0), (0xFFFE, 1), (0xFFFF, 0)])
def test_without_event_index_the_flag_decides(flags: int, calls: int) -> None:
    with Rig(8) as rig:
        rig.poke(AVAIL, struct.pack("<H", flags))
        rig.chain(0, [FRAME])
        assert transmit(rig).calls == calls


@pytest.mark.parametrize("event_idx", [False, True])
def test_no_kicks_are_wanted(event_idx: bool) -> None:
    with Rig(8, event_idx=event_idx) as rig:
        rig.poke(USED, struct.pack("<H", 0xFFFF))
        avail_event = rig.peek(USED + 4 + 8 * 8, 2)
        rig.queue(DirectionStats())
        assert struct.unpack("<H", rig.peek(USED, 2)) == (0 if event_idx else 1,)
        assert rig.peek(USED + 4 + 8 * 8, 2) == avail_event


def test_an_empty_turn_calls_nobody() -> None:
    with Rig(8) as rig:
        queue = rig.queue(DirectionStats())
        assert Work(queue, None, rig.port()).turn(32) == 0
        assert queue.stats.calls == 0


def test_call_whatever_suppression_says() -> None:
    with Rig(8) as rig:
        rig.poke(AVAIL, struct.pack("<H", 1))
        queue = rig.queue(DirectionStats())
        queue.call()
        assert os.eventfd_read(rig.call_fd) == 1
        assert queue.stats.calls == 1


def test_a_register_is_written_where_there_is_no_eventfd() -> None:
    with Rig(8) as rig, tempfile.TemporaryFile(buffering=0) as bar:
        bar.write(bytes(range(16)))
        config = rig.config()._replace(call_fd=bar.fileno(), call_offset=8)
        with Queue(config, rig.kernel_map(), DirectionStats()) as queue:
            queue.call()
        assert os.pread(bar.fileno(), 16, 0) == bytes([*range(8), 1, 0, 0, 0, *range(12, 16)])


def test_a_full_eventfd_does_not_block() -> None:
    with Rig(8) as rig:
        os.eventfd_write(rig.call_fd, 0xFFFFFFFFFFFFFFFE)
        rig.queue(DirectionStats()).call()
        assert os.eventfd_read(rig.call_fd) >= 0xFFFFFFFFFFFFFFFE


def test_a_ring_without_call_descriptor_calls_nobody() -> None:
    with Rig(8) as rig:
        rig.chain(0, [FRAME])
        config = rig.config()._replace(call_fd=-1)
        map_: Map = rig.kernel_map()
        with Queue(config, map_, DirectionStats()) as queue:
            work = Work(queue, None, rig.port())
            assert work.turn(32) == 1
            assert queue.stats.calls == 0


def test_an_eventfd_that_vm1_made_blocking_and_filled_keeps_nobody() -> None:
    with Rig(8) as rig:
        os.set_blocking(rig.call_fd, True)
        os.eventfd_write(rig.call_fd, (1 << 64) - 2)
        rig.chain(0, [FRAME])
        stats = DirectionStats()
        work = Work(rig.queue(stats), None, rig.port())
        turn = threading.Thread(target=work.turn, args=(32,))
        turn.start()
        turn.join(10)
        kept = turn.is_alive()
        os.eventfd_read(rig.call_fd)
        turn.join()
        assert not kept
        assert (stats.packets, stats.calls) == (1, 1)


def test_thousands_of_calls_by_several_threads_are_all_counted() -> None:
    def call(queue: Queue) -> None:
        for _ in range(2000):
            queue.call()

    with Rig(8) as rig:
        queues = [rig.queue(DirectionStats()) for _ in range(3)]
        threads = [threading.Thread(target=call, args=(queue,)) for queue in queues]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.eventfd_read(rig.call_fd) == 6000
