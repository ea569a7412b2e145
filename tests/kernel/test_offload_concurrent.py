"""S26: VM1 rewrites virtio-net headers, frames, descriptors and tables while the kernel reads them.

As in test_concurrent.py, with all offloads negotiated and VM1 a process of its own. Frames that
are made in software have bytes which VM1 did not write (checksums, lengths, numbers), but never so
many SECRET ones in a row as memory that nobody granted has.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from driver.memory_map import BusAddress
from driver.offload import PLAIN
from driver.offloads import NO_OFFLOADS
from pmd.kernel import DirectionStats, Event, Loop, Queue, Work, drop_names, fault_names
from tests.kernel.holding_port import HoldingPort
from tests.kernel.offload_frames import asking, packet
from tests.kernel.offload_port import OffloadPort
from tests.kernel.packed_driver import AVAIL as SHOWN
from tests.kernel.packed_driver import USED as LAP
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import (
    ALL_OFFLOADS,
    AVAIL,
    DATA,
    DATA_END,
    DATA_SEAM,
    DESC,
    INDIRECT,
    MORE,
    NEXT,
    READ_ONLY,
    TOP,
    USED,
    WRITABLE,
    WRITE,
    Rig,
)
from tests.kernel.test_concurrent import SECRET, _seal, _unharmed, _words
from tests.kernel.witness import SIZE as WITNESS_SIZE
from tests.kernel.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from pmd.handle import Handle
    from tests.kernel.offload_port import Told

SECONDS = 0.5
TIMEOUT_S = 60.0
SIZE = 8
HEADER = 12
PLACES = [DATA, DATA_SEAM - 70, DATA_END - 600]  # the last one's frame does not fit
HEADERS_BYTES = 160
SECRETS = bytes([SECRET]) * 4
BAD_OFFLOAD = drop_names().index("bad_offload")


@functools.cache
def _told() -> list[Told]:
    """Everything that can be asked for, of VM1's bytes none SECRET; and what cannot be."""
    chance = random.Random(3)
    payload = bytes(chance.randrange(SECRET) for _ in range(800))
    good = [
        asking(packet(payload, udp=udp, ipv6=ipv6, tags=tags), size, ecn=ecn, fragments=fragments)
        for udp, size, ecn, fragments in (
            (False, 0, False, False),
            (False, 100, False, False),
            (False, 536, True, False),
            (True, 0, False, False),
            (True, 104, False, False),
            (True, 104, False, True),
        )
        for ipv6 in (False, True)
        for tags in (0, 2)
    ]
    lies: list[dict[str, int]] = [
        {"segment_bytes": 1},
        {"segment_bytes": 0xFFFF},
        {"checksum_start": 0xFFFE},
        {"checksum_start": 850, "gso_type": 0},
        {"checksum_offset": 0xFFFF},
        {"header_bytes": 0xFFFF},
        {"gso_type": 4},
        {"flags": 0},
    ]
    return good + [(frame, replace(offload, **lie)) for frame, offload in good for lie in lies]


def _clean(data: bytes) -> bytes:
    return data.replace(bytes([SECRET]), b"\0")


def _headers() -> list[npt.NDArray[np.uint8]]:
    """What VM1 puts in front of its payload."""
    images = []
    for frame, offload in _told():
        data = _clean(offload.pack() + bytes(2) + frame)[:HEADERS_BYTES]
        images.append(np.frombuffer(data.ljust(HEADERS_BYTES, b"\1"), np.uint8))
    return images


def _descriptors(direction: int, *, packed: bool) -> npt.NDArray[np.uint64]:
    """Rings' and tables' contents: mostly of what is granted."""
    chance = random.Random(1)
    kinds = [direction] * 9 + [direction | NEXT] * 4 + [INDIRECT, INDIRECT, direction ^ WRITE]
    addresses = [*PLACES * 6, MORE + 0x800, READ_ONLY - 30, DATA_END, TOP, 0, (1 << 64) - 60]
    lengths = [812, 900, 1600, 60, 200, 100, 40, 12, 1, 16 * SIZE, 0, 0xFFFFFFFF]
    words = []
    for _ in range(400):
        lap = chance.choice([SHOWN, LAP]) if packed else 0
        for _ in range(SIZE):
            kind = chance.choice(kinds) | lap
            address = MORE if kind & INDIRECT else chance.choice(addresses)
            after = chance.randrange(SIZE)
            last = (kind << 48 | after << 32) if packed else (after << 48 | kind << 32)
            words.append(address)
            words.append(chance.choice(lengths) | last)
    return np.array(words, dtype="<u8").reshape(-1, 2 * SIZE)


def _parts(rig: Rig, bus: int, image: npt.NDArray[np.uint8]) -> Iterator[tuple[slice, slice]]:
    """Where in VM1's writable window the image goes, and which part of it."""
    done = 0
    while done < len(image):
        run = rig.memory.translate(BusAddress(bus + done), len(image) - done, write=True)
        yield slice(run.offset, run.offset + run.length), slice(done, done + run.length)
        done += run.length


def _rewrite(
    rig: Rig, headers: Sequence[npt.NDArray[np.uint8]], images: npt.NDArray[np.uint64]
) -> None:
    """VM1, a process of its own: it ends with the one that started it, however that ends."""
    parent = os.getppid()
    packed = isinstance(rig, PackedRig)
    memory = rig.windows[WRITABLE]
    places = [part for place in PLACES for part in _parts(rig, place, headers[0])]
    descs, table = (_words(rig, where, 16 * SIZE, "<u8") for where in (DESC, MORE))
    index, used = _words(rig, AVAIL + 2, 2, "<u2"), _words(rig, USED + 2, 2, "<u2")
    chance = random.Random(2)
    while os.getppid() == parent:
        image = images[chance.randrange(len(images))]
        descs[:] = image
        table[:] = image
        if not packed:
            index[0] = (int(used[0]) + SIZE) % 65536
        for _ in range(chance.randrange(6)):
            header = headers[chance.randrange(len(headers))]
            for where, what in places:
                memory[where] = header[what]


@contextmanager
def _rewriting(rig: Rig, direction: int) -> Iterator[None]:
    images = _descriptors(direction, packed=isinstance(rig, PackedRig))
    fork = multiprocessing.get_context("fork")
    vm1 = fork.Process(target=_rewrite, args=(rig, _headers(), images))
    vm1.start()
    try:
        yield
    finally:
        vm1.kill()
        vm1.join()
        vm1.close()


@dataclass(frozen=True)
class Way:
    """Where frames go or come from: a port, and what is looked at between turns.

    look: Raises what it finds wrong in what the port was given, of which there was so much.
    """

    port: Handle
    look: Callable[[], int]
    receives: bool = False


def _software() -> Way:
    """Nothing is taken: all is cut and summed here."""
    port = OffloadPort(NO_OFFLOADS)

    def look() -> int:
        sent = port.sent[:]
        port.sent.clear()
        assert not any(SECRETS in frame for frame, _ in sent)
        return len(sent)

    return Way(port, look)


def _taken() -> Way:
    """All is left to the port: what a header says is within the frame's bounds."""
    port = OffloadPort(ALL_OFFLOADS)

    def look() -> int:
        sent = port.sent[:]
        port.sent.clear()
        for frame, offload in sent:
            assert offload.segment_bytes <= len(frame) >= offload.header_bytes
            if offload.flags:
                assert offload.checksum_start + offload.checksum_offset + 2 <= len(frame)
            # What nobody takes is cut here.
            assert (SECRETS if offload == PLAIN else SECRETS[:1]) not in frame
        return len(sent)

    return Way(port, look)


def _held() -> Way:
    """Read late, where they are; what is to be done in software is not held."""
    port = HoldingPort(lambda number: number % 4 > 0)
    looked = 0

    def look() -> int:
        nonlocal looked
        port.finish(port.held)
        sent = [frame for frame in port.sent[looked:] if frame]
        port.sent[looked:] = [b""] * (len(port.sent) - looked)
        looked = len(port.sent)
        assert not any(SECRETS in frame for frame in sent)
        return len(sent)

    return Way(port, look)


def _received() -> Way:
    """VM1 is given what it can be asked to do itself; which that is, the ring says."""
    port = OffloadPort(ALL_OFFLOADS)
    told = [each for each in _told() if each[1].gso_type][:20]

    def look() -> int:
        count = 64 - len(port.given)
        port.give(told[number % len(told)] for number in range(count))
        return count

    look()
    return Way(port, look, receives=True)


CASES = {
    "in software": (_software, ALL_OFFLOADS),
    "left to the port": (_taken, ALL_OFFLOADS),
    "held": (_held, ALL_OFFLOADS),
    "received": (_received, ALL_OFFLOADS),
    "received, in software": (_received, NO_OFFLOADS),
}


@pytest.mark.parametrize("layout", [Rig, PackedRig], ids=["split", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_s26_headers_and_chains_change_all_the_time(case: str, layout: type[Rig]) -> None:
    make, offloads = CASES[case]
    way, stats, faults, seen = make(), DirectionStats(), set(), 0
    with (
        way.port,
        Witness() as witness,
        layout(SIZE, indirect=True, mergeable=way.receives, offloads=offloads) as rig,
    ):
        secret = _seal(rig)
        map_ = rig.kernel_map()
        begin = time.monotonic()

        def goes_on() -> bool:
            """For a while, and on a machine with little time for us until there was something."""
            bad = way.receives or stats.drops[BAD_OFFLOAD] > 10
            enough = bad and seen > 10 and witness.sent > 2 * WITNESS_SIZE
            return time.monotonic() < begin + (SECONDS if enough else TIMEOUT_S)

        with _rewriting(rig, WRITE if way.receives else 0), Loop(32) as loop:
            while goes_on():
                with Queue(rig.config(), map_, stats) as queue:
                    tx, rx = (None, queue) if way.receives else (queue, None)
                    work = Work(tx, rx, way.port)
                    loop.set([work, witness.work])
                    faulted = False
                    while goes_on() and not faulted:
                        faulted = Event.FAULT in loop.run(4_000_000)
                        witness.look()
                        seen += way.look()
                    loop.set([])
                    faults.add(fault_names()[queue.fault])
                    way.look()
                    work.drain()
                    queue.abandon()
        assert seen > 10
        assert stats.packets > 0
        assert way.receives or stats.drops[BAD_OFFLOAD] > 10
        assert witness.sent > 2 * WITNESS_SIZE
        assert faults <= {"none", "long_chain"}
        assert _unharmed(rig, secret)
