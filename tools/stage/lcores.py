"""Two lcores at once beside one alone: what the second one gains where no front-end is in the way.

    python -m tools.stage.lcores [SECONDS]      so long a row, 5 by default

Each lcore has a loop, a ring of its own and its VM1 on the same thread and CPU (lcore.c), which
makes no difference to what two lcores share. A triple is a slice of the first one, one of both at
once and one of the second, in this order or the other way round, 1 ms in all; before and after it
both CPUs are probed (tools/vm1/probe.py), and triples are told apart by the machine's condition as
a replay's slices are (tools/vm1/slices.py): only `far_quiet` ones had two whole cores. Those in
which a CPU was taken away for more than 12 us are dropped. Printed are, of each condition that
was met 40 times, TSC cycles a packet (median) and how many times one lcore's rate both have at
once: the 10th percentile, the median and the 90th.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.cpus import default_lcores, pin_current_thread
from guest.errors import UsageError, VhostPciError
from pmd.bench_rate import SLICES_MIN
from pmd.kernel import tsc_hz
from tools.stage.build import build, kernel_path
from tools.vm1.probe import Probe, Reading
from tools.vm1.slices import STILL_S, Block, alu_best_of

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE_SIZE = 256
BURST = 32
ROUNDS = 48  # of a slice: each fills and empties the ring
CASES = [(kind, packed) for packed in (False, True) for kind in ("null", "copy", "gen", "loop")]


class _SliceStructure(ctypes.Structure):
    """struct lcore_slice."""

    _fields_ = (
        ("packets", ctypes.c_uint64),
        ("cycles", ctypes.c_uint64),
        ("longest", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class LcoreSlice:
    """What one lcore did in a slice: packets, TSC cycles of its loop's turns, its longest round."""

    packets: int
    cycles: int
    longest_cycles: int

    @property
    def cost(self) -> float:
        """Cycles a packet."""
        return self.cycles / self.packets


@dataclass(frozen=True, slots=True)
class Triple:
    """Each lcore alone, and both at once; the probes before and after."""

    alone: tuple[LcoreSlice, LcoreSlice]
    both: tuple[LcoreSlice, LcoreSlice]
    before: Reading
    after: Reading

    @property
    def gain(self) -> float:
        """The rate of both at once by that of one alone, the mean of the two."""
        at_once = sum(1 / each.cost for each in self.both)
        return 2 * at_once / sum(1 / each.cost for each in self.alone)

    @property
    def longest_cycles(self) -> int:
        """Of the four slices' rounds."""
        return max(each.longest_cycles for each in (*self.alone, *self.both))


class Lcores(Closing):
    """Two lcores on two CPUs: the caller's thread, which is pinned, and one of its own.

    Thread rule: the thread that made it.

    Args:
        library: Of tools.stage.build, shared.
        kind: "null", "copy", "gen" or "loop".
        packed: The rings' layout.
        cpus: Two.

    Raises:
        VhostPciError: No memory; this process may not run there.
    """

    def __init__(self, library: Path, kind: str, cpus: tuple[int, ...], *, packed: bool) -> None:
        self._library = _load(library)
        self._handles: list[int] = []
        pin_current_thread(cpus[0])
        _hurry()
        self._second = ThreadPoolExecutor(1, initializer=_hurry)
        try:
            self._second.submit(pin_current_thread, cpus[1]).result()
            self._handles += [self._new(kind, number, packed=packed) for number in range(2)]
        except BaseException:
            self.close()
            raise

    def _new(self, kind: str, number: int, *, packed: bool) -> int:
        found = self._library.lcore_new(kind.encode(), QUEUE_SIZE, BURST, packed, number)
        if not found:
            raise VhostPciError("make", "an lcore", os.strerror(ctypes.get_errno()).lower())
        return int(found)

    def alone(self, number: int, rounds: int = ROUNDS) -> LcoreSlice:
        """Let the first or the second one run, the other CPU asleep."""
        if number:
            return self._second.submit(self._run, 1, rounds, at_once=False).result()
        return self._run(0, rounds, at_once=False)

    def both(self, rounds: int = ROUNDS) -> tuple[LcoreSlice, LcoreSlice]:
        """Let both run, each round at the same moment."""
        second = self._second.submit(self._run, 1, rounds, at_once=True)
        return self._run(0, rounds, at_once=True), second.result()

    def _run(self, number: int, rounds: int, *, at_once: bool) -> LcoreSlice:
        found = _SliceStructure()
        other = self._handles[1 - number] if at_once else None
        mine = self._handles[number]
        if not self._library.lcore_run(mine, other, rounds, ctypes.byref(found)):
            raise VhostPciError("run", f"lcore {number}", "a ring of it is at fault")
        return LcoreSlice(found.packets, found.cycles, found.longest)

    def close(self) -> None:
        """End the thread and free all. Twice is fine."""
        self._second.shutdown()
        while self._handles:
            self._library.lcore_free(self._handles.pop())


def _hurry() -> None:
    """Nothing else of this machine runs instead of this thread, where that may be asked for."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path), use_errno=True)
    library.lcore_new.restype = ctypes.c_void_p
    library.lcore_new.argtypes = [ctypes.c_char_p, *[ctypes.c_uint32] * 4]
    library.lcore_free.restype = None
    library.lcore_free.argtypes = [ctypes.c_void_p]
    library.lcore_run.restype = ctypes.c_uint32
    library.lcore_run.argtypes = [
        *[ctypes.c_void_p] * 2,
        ctypes.c_uint32,
        ctypes.POINTER(_SliceStructure),
    ]
    return library


def measure(lcores: Lcores, probe: Probe, seconds: float) -> Iterator[Triple]:
    """Triples, for so long; those whose probe did not get its CPU are left out."""
    end = time.monotonic() + seconds
    turns = False
    before = probe.read()
    while time.monotonic() < end:
        first = lcores.alone(turns)
        both = lcores.both()
        last = lcores.alone(not turns)
        after = probe.read()
        if before is not None and after is not None:
            yield Triple((last, first) if turns else (first, last), both, before, after)
        before, turns = after, not turns


def by_condition(triples: list[Triple], alu_best: float) -> dict[str, list[Triple]]:
    """Those in which no CPU was taken away, by the machine's condition: `Block.tag`."""
    found = defaultdict(list)
    quickest = min((each.longest_cycles for each in triples), default=0)
    for each in triples:
        if each.longest_cycles <= quickest * 3 + STILL_S * tsc_hz():
            found[Block((), each.before, each.after).tag(tsc_hz(), alu_best)].append(each)
    return found


def line(name: str, condition: str, triples: list[Triple]) -> str:
    """A row: the condition, triples, cycles a packet of each alone and at once, the gain."""
    gains = statistics.quantiles((each.gain for each in triples), n=10)
    costs = [
        statistics.median(getattr(each, which)[number].cost for each in triples)
        for which in ("alone", "both")
        for number in range(2)
    ]
    told = f"{name:14} {condition:11} {len(triples):6}" + "".join(f"{each:8.1f}" for each in costs)
    return (
        told
        + f"{gains[0]:10.2f}{statistics.median(each.gain for each in triples):6.2f}{gains[-1]:6.2f}"
    )


def main() -> int:
    """The command; its exit status."""
    try:
        try:
            seconds = float(*sys.argv[1:] or ["5"])
        except (TypeError, ValueError) as error:
            raise UsageError("use", " ".join(sys.argv[1:]), "it takes seconds a row") from error
        _tell(seconds)
    except VhostPciError as error:
        print(f"lcores: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _tell(seconds: float) -> None:
    cpus = default_lcores(2)
    measured = {}
    with tempfile.TemporaryDirectory(prefix="lcores-") as folder:
        library = Path(folder) / "libstage.so"
        build(library, kernel_path(), shared=True)
        pin_current_thread(cpus[0])
        with Probe(cpus[1]) as probe:
            for kind, packed in CASES:
                with Lcores(library, kind, cpus, packed=packed) as lcores:
                    name = f"{kind}{', packed' * packed}"
                    measured[name] = list(measure(lcores, probe, seconds))
    readings = [
        end for all_ in measured.values() for each in all_ for end in (each.before, each.after)
    ]
    alu_best = alu_best_of(readings)
    print(f"{'':32}  cycles alone, each; at once, each      times one's rate, p10 p50 p90")
    for name, triples in measured.items():
        for condition, some in sorted(by_condition(triples, alu_best).items()):
            if len(some) >= SLICES_MIN:
                print(line(name, condition, some))


if __name__ == "__main__":
    sys.exit(main())
