"""VM1 rewrites its ring while the kernel works on it: nothing outside the grants is touched.

All bytes that VM1 did not grant are SECRET, and no other byte is: one that comes out in a frame was
read where it must not be (S26), one that changes was written where it must not be.
"""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from driver.memory_map import BusAddress
from driver.software_vf import PortSpec
from pmd.kernel import DirectionStats, Event, Loop, Port, Queue, QueueError, Work
from tests.kernel.rig import (
    AVAIL,
    BIG,
    DATA,
    DATA_END,
    DATA_SEAM,
    DESC,
    INDIRECT,
    MORE,
    NEXT,
    READ_ONLY,
    RINGS,
    RINGS_SIZE,
    TABLE,
    TOP,
    USED,
    WRITE,
    Rig,
    frames_of,
)
from tests.kernel.witness import SIZE as WITNESS_SIZE
from tests.kernel.witness import Witness
from tests.rotation import check_growth, resident, rotate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from pmd.handle import Handle

SECONDS = 2.0
SIZE = 8
SECRET = 0xA5
_ADDRESSES = [DATA, DATA_SEAM - 30, DATA_END - 60, DATA_END, READ_ONLY - 30, BIG, TOP, 0, MORE]
_ADDRESSES += [(1 << 64) - 60, 1 << 63]
_LENGTHS = [0, 12, 60, 61, 1514, 16 * SIZE, 0x4000, 65574, 0xFFFFFFFF]


def _seal(rig: Rig) -> dict[int, npt.NDArray[np.bool_]]:
    """SECRET wherever VM1 granted nothing and nowhere else; returns where it is."""
    secret = {window: np.ones(len(data), dtype=bool) for window, data in rig.windows.items()}
    for _, length, offset, window, _ in TABLE:
        secret[window][offset : offset + length] = False
    for window, data in rig.windows.items():
        data[data == SECRET] = 0
        data[secret[window]] = SECRET
    rig.poke(RINGS, bytes(RINGS_SIZE))
    return secret


def _words(rig: Rig, bus: int, length: int, dtype: str) -> npt.NDArray[np.uint64]:
    run = rig.memory.translate(BusAddress(bus), length, write=True)
    return rig.windows[run.window][run.offset : run.offset + length].view(dtype)


def _images(direction: int) -> npt.NDArray[np.uint64]:
    """Descriptor tables, made beforehand so that VM1 can rewrite a ring within a microsecond."""
    chance = random.Random(1)
    flags = [direction] * 4 + [direction | NEXT] * 2
    flags += [INDIRECT, direction ^ WRITE, INDIRECT | NEXT]
    words = []
    for _ in range(1000 * SIZE):
        after = chance.choice([*range(SIZE + 1), 0xFFFF])
        words.append(chance.choice(_ADDRESSES))
        words.append(chance.choice(_LENGTHS) | chance.choice(flags) << 32 | after << 48)
    return np.array(words, dtype="<u8").reshape(-1, 2 * SIZE)


def _rewrite(rig: Rig, direction: int, stop: threading.Event) -> None:
    """VM1: descriptors, an indirect table and heads change all the time, at any time."""
    chance = random.Random(2)
    descs, table = (_words(rig, where, 16 * SIZE, "<u8") for where in (DESC, MORE))
    heads = _words(rig, AVAIL + 4, 2 * SIZE, "<u2")
    index, used = _words(rig, AVAIL + 2, 2, "<u2"), _words(rig, USED + 2, 2, "<u2")
    images = _images(direction)
    while not stop.is_set():
        heads[chance.randrange(SIZE)] = chance.choice([*range(SIZE)] * 999 + [SIZE])
        # Mostly a full ring; sometimes one whose index goes back during a burst (S27).
        index[0] = (int(used[0]) + chance.choice([SIZE] * 99 + [1, 0])) % 65536
        for image in images[: chance.randrange(40)]:
            descs[:] = image
            table[:] = image
        images = np.roll(images, 17, axis=0) if chance.random() < 0.01 else images


@contextmanager
def _rewriting(rig: Rig, direction: int) -> Iterator[None]:
    stop = threading.Event()
    vm1 = threading.Thread(target=_rewrite, args=(rig, direction, stop))
    vm1.start()
    try:
        yield
    finally:
        stop.set()
        vm1.join()


def _poll(
    rig: Rig,
    port: Handle,
    direction: int,
    stats: DirectionStats,
    between: Callable[[], None],
    *,
    witness: Sequence[Work] = (),
) -> None:
    """Poll while VM1 rewrites; a quarantined ring, or one that cannot start, is begun anew.

    witness: Works of others, polled by the same loop after the hostile one.
    """
    map_ = rig.kernel_map()
    deadline = time.monotonic() + SECONDS
    with _rewriting(rig, direction), Loop(32) as loop:
        while time.monotonic() < deadline:
            try:
                queue = Queue(rig.config(), map_, stats)
            except QueueError:
                continue  # its index is too far ahead, at this moment
            work = Work(None, queue, port) if direction else Work(queue, None, port)
            loop.set([work, *witness])
            while Event.FAULT not in loop.run(20_000_000) and time.monotonic() < deadline:
                between()
            loop.set([])
            queue.close()
            between()


def _unharmed(rig: Rig, secret: dict[int, npt.NDArray[np.bool_]]) -> bool:
    return all((rig.windows[window][mask] == SECRET).all() for window, mask in secret.items())


@pytest.mark.parametrize("indirect", [False, True])
def test_transmit(indirect: bool) -> None:
    with Rig(SIZE, indirect=indirect) as rig:
        secret = _seal(rig)
        port, stats = rig.port(), DirectionStats()

        def between() -> None:
            assert not any(SECRET in frame for frame in frames_of(port))

        _poll(rig, port, 0, stats, between)
        assert stats.packets > 0
        assert sum(stats.drops) > 100
        assert _unharmed(rig, secret)


@pytest.mark.parametrize("mergeable", [False, True])
def test_receive(mergeable: bool) -> None:
    with Rig(SIZE, indirect=True, mergeable=mergeable) as rig:
        secret = _seal(rig)
        read_only = rig.windows[4].copy()
        stats = DirectionStats()
        with Port(PortSpec("gen", frame_bytes=1514)) as port:
            _poll(rig, port, WRITE, stats, lambda: None)
        assert stats.packets > 0
        assert sum(stats.drops) > 100
        assert _unharmed(rig, secret)
        assert np.array_equal(rig.windows[4], read_only)


def test_s39_an_honest_ring_beside_it_loses_nothing() -> None:
    """I2, I5: each frame of the witness comes out once, in order, whatever its neighbour does."""
    with Rig(SIZE, indirect=True) as rig, Witness() as witness, Port(PortSpec("null")) as sink:
        _seal(rig)
        _poll(rig, sink, 0, DirectionStats(), witness.look, witness=[witness.work])
        with Loop(32) as loop:
            loop.set([witness.work])
            witness.go(loop)
            loop.set([])
        assert witness.sent > 2 * WITNESS_SIZE


def test_s39_beside_every_kind_of_ring(seed: int) -> None:
    """Turns of `python -m tests.rotation`; the second leaves no memory behind (I6)."""
    chance = random.Random(seed)
    assert rotate(chance) > 100 * WITNESS_SIZE
    if "libasan" in os.environ.get("LD_PRELOAD", ""):  # it keeps what was freed
        return
    resident_bytes = resident()
    rotate(chance)
    check_growth(resident_bytes)
