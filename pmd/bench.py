"""`pmd bench`: cases measured one after another, ours and peers by turns in each."""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from guest.huge_pages import HugePageReserve
from guest.kernel_facts import may_run_in_real_time
from pmd.bench_cycles import cycles
from pmd.bench_feature import require_agreed
from pmd.bench_options import is_kernel
from pmd.bench_ours import Ours
from pmd.bench_rate import one_way_ns, rates
from pmd.bench_result import Measured, rows
from pmd.bench_side import Places, Waiter
from pmd.bench_testpmd import MEMORY_MIB, Testpmd
from pmd.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from pmd.bench_case import Case
    from pmd.bench_options import BenchOptions
    from pmd.bench_result import Row
    from pmd.bench_side import Side

# Short: a machine that changes meanwhile meets all sides, and few turns. Three blocks of 20 ms.
_TURN_S = 0.06
_DEADLINE_S = 30.0
_LOOK_S = 0.02
_SLOT_BYTES = 1 << 12  # of VM1's memory for a buffer, whatever is less


class SignalWaiter(Waiter):
    """Waits that a signal ends with SystemExit. Main thread."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def sleep(self, seconds: float) -> None:
        """See Waiter."""
        select.select([self._signals.fileno()], [], [], seconds)
        if self._signals.received:
            raise SystemExit(self._signals.exit_status)

    def until(self, condition: Callable[[], object], operation: str, subject: str) -> None:
        """See Waiter."""
        deadline = time.monotonic() + _DEADLINE_S
        while not condition():
            if time.monotonic() > deadline:
                raise VhostPciError(operation, subject, f"none came in {_DEADLINE_S:g} s")
            self.sleep(_LOOK_S)


def run(options: BenchOptions, say: Callable[[str], None]) -> Generator[Row]:
    """Measure case by case; the rows of each as soon as it is done.

    Main thread, no other threads. Whatever ends it, the generator's close() included, no process,
    socket, huge page or file stays behind.

    Args:
        options: What and where.
        say: Told what the user should know, one line each.

    Raises:
        VhostPciError: A process ended by itself, or nothing moves.
        SystemExit: A signal came.
    """
    with place(options, say) as (places, waiter):
        for case in options.cases:
            yield from _measure(case, options, places, waiter)


@contextlib.contextmanager
def place(options: BenchOptions, say: Callable[[str], None]) -> Iterator[tuple[Places, Waiter]]:
    """Where to measure, huge pages included, and how to wait there. Main thread."""
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        signals.serve()
        pages = stack.enter_context(HugePageReserve(_memory_bytes(options)))
        if not pages.enough:
            say("huge pages: not enough, and none can be reserved; all memory is of small pages")
        stack.enter_context(_promptly())
        tagged = may_run_in_real_time()
        if not tagged:
            say("placement: not told, and so no ratio, without CAP_SYS_NICE or a real-time limit")
        places = Places(options.lcores, options.vm1_cpus, pages.enough, tagged)
        yield places, SignalWaiter(signals)


@contextlib.contextmanager
def _promptly() -> Iterator[None]:
    """Run before those that are measured, for they leave no CPU idle; as far as this process may.

    Nearly all it does is sleep, and turns begin and end when they are to.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, policy, os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO)))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, *before)


def _memory_bytes(options: BenchOptions) -> int:
    """What VM1s and peers of one case take at most, and a page each for rounding up."""
    sides = 1 + len(options.peers) + any(case.feature for case in options.cases)
    vm1 = max(
        case.functions * (2 * case.queue_size * max(_SLOT_BYTES, 2 * case.frame_bytes) + (4 << 20))
        for case in options.cases
    )
    return sides * vm1 + len(options.peers) * (MEMORY_MIB << 20)


@contextlib.contextmanager
def sides_of(
    case: Case, peers: Sequence[str], places: Places, waiter: Waiter
) -> Iterator[list[Side]]:
    """Ours, ours without the case's feature, each peer's; not yet started, closed at the end."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pmd-bench-")))
        folders = [root / str(index) for index in range(2 + len(peers))]
        for folder in folders:
            folder.mkdir()
        sides: list[Side] = [Ours(case, folders[0], places, waiter)]
        if case.feature is not None:
            sides.append(Ours(case.counterpart, folders[-1], places, waiter))
        for program, folder in zip(peers, folders[1:-1], strict=True):
            if is_kernel(program):
                sides.append(Ours(case, folder, places, waiter, Path(program)))
            else:
                sides.append(Testpmd(program, case, folder, places, waiter))
        for side in sides:
            stack.callback(side.close)
        yield sides


def _measure(case: Case, options: BenchOptions, places: Places, waiter: Waiter) -> Sequence[Row]:
    with sides_of(case, options.peers, places, waiter) as sides:
        for side in sides:
            side.start()
            side.pause()
        _take_turns(sides, options.seconds)
        ours, *peers = [_finish(side, len(places.vm1_cpus)) for side in sides]
        return rows(case, ours, peers)


def _take_turns(sides: Sequence[Side], seconds: float) -> None:
    """Let each run for so long in all, none at the same time, and each as often first as last."""
    turns = max(2, round(seconds / _TURN_S))
    for turn in range(turns):
        for side in sides if turn % 2 else reversed(sides):
            side.turn(seconds / turns)


def _finish(side: Side, vm1_cpus: int) -> Measured:
    label, case = side.label, side.case
    results = side.results()
    if case.feature is not None:
        require_agreed(case.feature, results, without=case.without)
    found = Measured(
        label,
        rates(results, case.direction, vm1_cpus),
        cycles(side.turns, results),
        one_way_ns(results),
    )
    side.close()
    return found
