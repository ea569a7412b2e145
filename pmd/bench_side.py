"""One side of a comparison: a back-end and the VM1s that drive it, which run by turns with others.

A side whose turn it is not is stopped (SIGSTOP), so sides share CPUs and never run at once.
"""

from __future__ import annotations

import abc
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError
from pmd.bench_cycles import Turn
from pmd.bench_vm1 import BenchVm1, Vm1Place

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pmd.bench_case import Case
    from pmd.bench_cycles import Counts
    from pmd.child import Child

_END_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 10.0
_ANSWER_LOOK_S = 0.0001
# CPU time of each forwarding CPU: what a ring of long frames takes. A forwarder that was stopped in
# their midst, or finds some as soon as it is back on its CPU, counts all the time between for them.
_SETTLE_S = 0.002
_SETTLE_TIMEOUT_S = 0.1


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything runs.

    Attributes:
        lcores: Forwarding CPUs.
        vm1_cpus: VM1s' CPUs.
        huge_pages: Whether memory is of huge pages.
        tagged: Whether VM1s may tell the placement of their CPUs.
    """

    lcores: tuple[int, ...]
    vm1_cpus: tuple[int, ...]
    huge_pages: bool
    tagged: bool


class Waiter(abc.ABC):
    """Lets time pass, and ends the wait when the user wants no more."""

    @abc.abstractmethod
    def sleep(self, seconds: float) -> None:
        """Return after so long, or raise SystemExit on a signal."""

    @abc.abstractmethod
    def until(self, condition: Callable[[], object], operation: str, subject: str) -> None:
        """Return once it holds; VhostPciError if that takes too long, SystemExit on a signal."""


class Side(abc.ABC):
    """Start it, let it run by turns, take its result; close it in any case.

    Thread rule: one thread. Whoever calls is to have all other sides paused.

    Args:
        name: For messages.
        directory: An empty one of its own for sockets, which stays its owner's.
        waiter: Lets time pass.
    """

    def __init__(
        self, name: str, case: Case, directory: Path, places: Places, waiter: Waiter
    ) -> None:
        self.name = name
        self.turns: list[Turn] = []
        self.case = case
        self._directory = directory
        self._places = places
        self._waiter = waiter
        self._children: list[Child] = []
        self._forwarding: list[Child] = []
        self._vm1s: list[BenchVm1] = []

    @property
    def label(self) -> str:
        """Its name, as precise as it is known."""
        return self.name

    @abc.abstractmethod
    def _start_back_end(self) -> list[Child]:
        """Start it, listening at `socket` of each channel; the processes that forward."""

    @abc.abstractmethod
    def _ask(self, forwarding: Child) -> None:
        """Have a process tell what it counted so far."""

    @abc.abstractmethod
    def _read(self, answer: str) -> Counts | None:
        """The counts of what it wrote then; None: that is not all of it yet."""

    def start_back_end(self) -> None:
        """Bring the back-end up, which waits for a VM1 at `socket` when this returns."""
        self._forwarding = self._start_back_end()

    def start(self) -> None:
        """Bring all of it up; it runs, and frames move on every channel, when this returns.

        Raises:
            VhostPciError: A process of it ended, or nothing moves.
        """
        places, name = self._places, self.name
        self.start_back_end()
        for index in range(self.case.channels + self.case.idle):
            cpu = places.vm1_cpus[index % len(places.vm1_cpus)]
            lcore = places.lcores[index % len(places.lcores)]
            place = Vm1Place(cpu, lcore if places.tagged else None, places.huge_pages)
            control = self._directory / f"{index}.control"
            sockets = [self.socket(each) for each in self.case.functions_of(index)]
            idle = index >= self.case.channels
            vm1 = BenchVm1(name, self.case, sockets, control, place, idle=idle)
            self._vm1s.append(vm1)
            self._keep(vm1.child)
        for vm1 in self._vm1s:
            self._wait(vm1.ready, "frames")

    def turn(self, seconds: float) -> None:
        """Let it run for so long, and keep what it counted meanwhile. It is paused, and again then.

        Raises:
            VhostPciError: A part of it has ended, or does not answer.
        """
        self._resume_forwarding()
        self._settle()
        alone = self._count()
        self._settle()
        before = self._count()
        begin_s, ran_s = time.monotonic(), self._ran_s
        for vm1 in self._vm1s:
            vm1.child.resume()
        self._waiter.sleep(seconds)
        self._pause_vm1s()
        end_s = time.monotonic()
        ran = (self._ran_s - ran_s) / (end_s - begin_s)
        self.turns.append(Turn(begin_s, end_s, ran, alone, before, self._count()))
        self._pause_forwarding()

    def pause(self) -> None:
        """Stop the drivers, then what forwards, once that has done what was in their rings.

        Raises:
            VhostPciError: A part of it has ended.
        """
        self._pause_vm1s()
        self._pause_forwarding()

    def resume(self) -> None:
        """Let it go on."""
        self._resume_forwarding()
        for vm1 in self._vm1s:
            vm1.child.resume()

    def _pause_vm1s(self) -> None:
        self.check()
        for vm1 in self._vm1s:
            vm1.child.signal(signal.SIGSTOP)  # all at once: each has to get its CPU for it
        for vm1 in self._vm1s:
            vm1.child.pause()

    def _pause_forwarding(self) -> None:
        for child in self._forwarding:
            child.pause()

    def _resume_forwarding(self) -> None:
        for child in self._forwarding:
            child.resume()

    @property
    def _ran_s(self) -> float:
        """CPU time so far of each forwarding CPU that has a channel."""
        (forwarding,) = self._forwarding
        channels = self.case.channels + self.case.idle
        return forwarding.ran_s / min(len(self._places.lcores), channels)

    def _settle(self) -> None:
        """Wait until what forwards has done all that was in the rings, and looks for more."""
        enough_s = self._ran_s + _SETTLE_S
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while self._ran_s < enough_s and time.monotonic() < deadline:
            self._waiter.sleep(_ANSWER_LOOK_S)

    def _count(self) -> Counts:
        """What the process that forwards counted so far."""
        (forwarding,) = self._forwarding
        begin = forwarding.written
        self._ask(forwarding)
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while (counts := self._read(forwarding.output_from(begin))) is None:
            self.check()
            if time.monotonic() > deadline:
                cause = f"it does not answer in {_ANSWER_TIMEOUT_S:g} s"
                raise VhostPciError("ask", self.name, cause)
            self._waiter.sleep(_ANSWER_LOOK_S)
        return counts

    def check(self) -> None:
        """VhostPciError, with its last line, if a process of it has ended."""
        for child in self._children:
            child.check()

    @property
    def forwarding_pid(self) -> int:
        """Of the process that forwards; there is one once the back-end is up."""
        return self._forwarding[0].pid

    def results(self) -> list[dict[str, Any]]:
        """End it: what each VM1 that was not idle found."""
        self.resume()
        found = [vm1.result() for vm1 in self._vm1s if not vm1.idle]
        for child in self._forwarding:
            child.end(_END_TIMEOUT_S)
        return found

    def close(self) -> None:
        """End what still runs, drivers first. Twice is fine."""
        self.resume()  # a driver that ends asks its back-end to stop, and waits for the answer
        for vm1 in self._vm1s:
            vm1.child.ask_to_end()  # all at once
        while self._children:
            self._children.pop().close()
        self._vm1s.clear()

    def _keep(self, child: Child) -> Child:
        self._children.append(child)
        return child

    def _said(self) -> str:
        return "".join(child.output + child.log for child in self._forwarding)

    def socket(self, index: int) -> Path:
        """The vhost-user socket of a function."""
        return self._directory / f"{index}.vhost-user"

    def _wait_for_socket(self, path: Path) -> None:
        self._wait(path.is_socket, "a socket")

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        def checked() -> object:
            self.check()
            return condition()

        self._waiter.until(checked, f"get {what} from", self.name)
