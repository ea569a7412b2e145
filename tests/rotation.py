"""`python -m tests.rotation --minutes N`: an honest ring beside hostile ones, by turns (S39, P18).

One loop serves both. The neighbour is every ring that the kernel's tests have a name for, broken,
odd or legal, the longest to walk, and rings of noise. The honest one loses nothing, has what it
posts done in two rounds of the loop, in less than 100 ms of its time, and no byte changes that
neither VM1 granted. Nor does any of them cost a thread, or from the second rotation on memory that
stays.
"""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from driver.device_ring import DescFlag
from driver.software_vf import PortSpec
from pmd.kernel import DirectionStats, Loop, Port, Work
from tests.kernel import test_packed_transmit, test_receive, test_transmit
from tests.kernel.packed_driver import WRAP
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import BIG, DATA, NEXT, Rig
from tests.kernel.witness import Witness
from tests.noise import packed_noise, split_noise
from tests.rounds import rounds

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

STALL_MAX_S = 0.1
LONG = 8192
_GROWTH_MAX_BYTES = 4 << 20
_TURNS = 3  # the witness's ring is used up so often beside each


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A ring with what is in it, and whether VM1 receives on it; then: what it writes later."""

    name: str
    rig: Rig
    receives: bool = False
    then: Callable[[Rig], None] | None = None


def _jump(rig: Rig) -> None:
    rig.index += rig.layout.size + 1
    rig.make_available()


def _bad_head(rig: Rig) -> None:
    rig.make_available(rig.layout.size)


def _split() -> Iterator[Neighbour]:
    for name, (poke, _) in (*test_transmit.BROKEN.items(), *test_transmit.LEGAL.items()):
        rig = Rig(8, indirect=True)
        poke(rig)
        rig.make_available(*[0] * 8)
        yield Neighbour(name, rig)
    for name, (desc, _) in test_receive.BROKEN.items():
        rig = Rig(8, mergeable=True)
        rig.desc(0, *desc)
        rig.make_available(*[0] * 8)
        yield Neighbour(name, rig, receives=True)
    yield Neighbour("S05 bad head", Rig(8), then=_bad_head)
    yield Neighbour("S06 index jump", Rig(8), then=_jump)


def _packed() -> Iterator[Neighbour]:
    known = (*test_packed_transmit.BROKEN.items(), *test_packed_transmit.LEGAL.items())
    for name, (case, _) in known:
        rig = PackedRig(test_packed_transmit.SIZE, 3 | WRAP, indirect=True)
        case.post(rig, 1)
        rig.driver.show()
        yield Neighbour(f"packed {name}", rig)
    endless = PackedRig(8)
    for place in range(8):
        endless.driver.put(DATA, 100, 7, NEXT, first=place == 0)
    endless.driver.show()
    yield Neighbour("P02 a list without end", endless)


def _long() -> Iterator[Neighbour]:
    """Each head is a table of as many descriptors as the ring has, which hold nothing."""
    for receives in (False, True):
        rig = Rig(LONG, indirect=True, mergeable=True)
        direction = DescFlag.WRITE if receives else DescFlag(0)
        more = [(DATA, 0, direction | NEXT, 1 + number) for number in range(LONG - 1)]
        rig.table(BIG, *more, (DATA, 0, direction, 0))
        rig.desc(0, BIG, 16 * LONG, DescFlag.INDIRECT)
        rig.poke(rig.layout.avail + 4, bytes(2 * LONG))
        rig.index = LONG
        rig.make_available()
        yield Neighbour(f"long tables, {'receiving' if receives else 'sending'}", rig, receives)


def neighbours(chance: random.Random) -> Iterator[Neighbour]:
    """All of them once, and two rings of noise; each belongs to who takes it."""
    yield from _split()
    yield from _packed()
    yield from _long()
    for make in (split_noise, packed_noise):
        seed = chance.randrange(1 << 40)
        rig, receives = make(seed)
        yield Neighbour(f"{make.__name__}({seed})", rig, receives)


def _outside(rig: Rig) -> list[npt.NDArray[np.uint8]]:
    """Copies of what VM1 did not grant to be written."""
    granted = {window: np.zeros(len(data), dtype=bool) for window, data in rig.windows.items()}
    for _, length, offset, window, permission in rig.regions:
        granted[window][offset : offset + length] = permission & 2
    return [data[~granted[window]] for window, data in rig.windows.items()]


def stand(witness: Witness, neighbour: Neighbour) -> None:
    """The witness beside it for a while.

    Raises:
        AssertionError: The witness lost a frame or waited too long, or a byte changed that was not
            granted.
    """
    with neighbour.rig as rig, Loop(32) as loop, Port(PortSpec("gen", frame_bytes=200)) as source:
        before = _outside(rig)
        queue = rig.queue(DirectionStats())
        port = source if neighbour.receives else rig.port()
        work = Work(None, queue, port) if neighbour.receives else Work(queue, None, port)
        loop.set([work, witness.work])
        if neighbour.then:
            neighbour.then(rig)
        try:
            for _ in range(_TURNS):
                stall_s = witness.go(loop)
                assert stall_s < STALL_MAX_S, f"{neighbour.name}: others wait {stall_s} s"
        finally:
            loop.set([])
        for now, was in zip(_outside(rig), before, strict=True):
            assert np.array_equal(now, was), f"{neighbour.name}: written where nothing was granted"


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def resident() -> int:
    """This process's memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def rotate(chance: random.Random) -> int:
    """The witness beside each neighbour once; how many frames it had."""
    with Witness() as witness:
        threads = _threads()
        for neighbour in neighbours(chance):
            stand(witness, neighbour)
            assert _threads() <= threads, f"{neighbour.name}: there are more threads now"
        return witness.sent


def check_growth(resident_bytes: int) -> None:
    """That this process has no more memory than so much, as it had once, and a little."""
    grown_bytes = resident() - resident_bytes
    assert grown_bytes < _GROWTH_MAX_BYTES, f"{grown_bytes} bytes more since the first rotation"


def main() -> int:
    """Rotations until the time is over."""
    count = frames = resident_bytes = 0
    for chance in rounds("tests.rotation", "An honest ring beside hostile ones.", minutes=10):
        frames += rotate(chance)
        count += 1
        resident_bytes = resident_bytes or resident()
    check_growth(resident_bytes)
    print(f"{count} rotations, {frames} frames of the witness, none lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
