"""P13: VM1 rewrites its packed ring while the kernel works on it, as in test_concurrent.py."""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from driver.software_vf import PortSpec
from pmd.kernel import DirectionStats, Event, Loop, Port, Queue, Work, fault_names
from tests.kernel.packed_driver import AVAIL, INDIRECT, NEXT, USED, WRITE
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import DESC, MORE, frames_of
from tests.kernel.test_concurrent import (
    _ADDRESSES,
    _LENGTHS,
    SECRET,
    _seal,
    _unharmed,
    _words,
)
from tests.kernel.witness import SIZE as WITNESS_SIZE
from tests.kernel.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from pmd.handle import Handle

SECONDS = 1.5
TIMEOUT_S = 60.0
WITNESS_SENT = 2 * WITNESS_SIZE
SIZE = 7


def _images(direction: int) -> npt.NDArray[np.uint64]:
    """Descriptor rings of either lap; what is available changes with each."""
    chance = random.Random(1)
    flags = [direction] * 6 + [direction | NEXT] * 2
    flags += [INDIRECT, INDIRECT, direction ^ WRITE, INDIRECT | NEXT]
    words = []
    for _ in range(1000):
        lap = chance.choice([AVAIL, USED])
        for _ in range(SIZE):
            marks = chance.choice([lap] * 9 + [AVAIL | USED])
            words.append(chance.choice(_ADDRESSES))
            rest = (chance.choice(flags) | marks) << 48
            # The table lies where frames are read: no byte of an identifier is SECRET.
            number = chance.randrange(SECRET) << 8 | chance.randrange(SECRET)
            words.append(chance.choice(_LENGTHS) | number << 32 | rest)
    return np.array(words, dtype="<u8").reshape(-1, 2 * SIZE)


@contextmanager
def _rewriting(rig: PackedRig, direction: int) -> Iterator[None]:
    """VM1 changes ring and indirect table all the time, at any time."""
    stop = threading.Event()
    descs, table = (_words(rig, where, 16 * SIZE, "<u8") for where in (DESC, MORE))
    images = _images(direction)

    def rewrite() -> None:
        while not stop.is_set():
            for image in images:
                descs[:] = image
                table[:] = image

    vm1 = threading.Thread(target=rewrite)
    vm1.start()
    try:
        yield
    finally:
        stop.set()
        vm1.join()


@pytest.mark.parametrize("way", ["transmit", "transmit in order", "receive", "receive mergeable"])
def test_nothing_is_read_or_written_that_was_not_granted(way: str) -> None:
    """A quarantined ring is begun anew, from where its commit words say.

    P18: it is full for ever, and the witness beside it has its turns.
    """
    receives = way.startswith("receive")
    features = {"mergeable": "mergeable" in way, "in_order": "order" in way, "indirect": True}
    stats, faults = DirectionStats(), set()
    with (
        PackedRig(SIZE, **features) as rig,
        Port(PortSpec("gen", frame_bytes=1514)) as source,
        Witness() as witness,
    ):
        sink = rig.port()
        port: Handle = source if receives else sink
        secret = _seal(rig)
        read_only = rig.windows[4].copy()
        map_ = rig.kernel_map()
        begin = time.monotonic()

        def goes_on() -> bool:
            """For a while, and on a machine with little time for us until there was something."""
            if time.monotonic() < begin + SECONDS:
                return True
            enough = stats.packets > 0 and sum(stats.drops) > 100 and witness.sent > WITNESS_SENT
            return not enough and time.monotonic() < begin + TIMEOUT_S

        with _rewriting(rig, WRITE if receives else 0), Loop(32) as loop:
            while goes_on():
                with Queue(rig.config(), map_, stats) as queue:
                    work = Work(None, queue, port) if receives else Work(queue, None, port)
                    loop.set([work, witness.work])
                    faulted = False
                    while goes_on() and not faulted:
                        faulted = Event.FAULT in loop.run(5_000_000)
                        witness.look()
                        assert not any(SECRET in each for each in frames_of(sink))
                    loop.set([])
                    faults.add(fault_names()[queue.fault])
                assert not any(SECRET in each for each in frames_of(sink))
        assert stats.packets > 0
        assert sum(stats.drops) > 100
        assert witness.sent > WITNESS_SENT
        assert faults <= {"none", "long_chain"}
        assert _unharmed(rig, secret)
        assert np.array_equal(rig.windows[4], read_only)
