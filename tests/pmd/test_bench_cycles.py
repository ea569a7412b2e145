"""Cycles a packet: from which counts, of which turns, and in which order a side is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pmd.bench_case import Case, Direction, Mode
from pmd.bench_cycles import ALL, VAIN, Count, Counts, Cycles, Turn, cycles
from pmd.bench_ours import Ours
from pmd.bench_side import Places, Side, Waiter
from pmd.bench_testpmd import Testpmd

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path

    from pmd.child import Child

CASE = Case(Mode.NULL, Direction.TX, 64)
PLACES = Places((1,), (0,), huge_pages=False, tagged=True)
# What DPDK 22.11 writes for `show fwd stats all`, and what comes before and after it.
ANSWER = """testpmd> show fwd stats all

  ---------------------- Forward statistics for port 0  ----------------------
  RX-packets: 12048640       RX-dropped: 0             RX-total: 12048640
  TX-packets: 0              TX-dropped: 0             TX-total: 0
  ----------------------------------------------------------------------------

  +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
  RX-packets: 12048640       RX-dropped: 0             RX-total: 12048640
  TX-packets: 12000000       TX-dropped: 48640         TX-total: 12048640
  ++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++

  CPU cycles/packet=205.65 (total cycles=2477826482 / total io packets=12048640) at 2500 MHz Clock
testpmd> """


def turn(begin_s: float, packets: int, cycles_counted: int, ran: float = 1.0) -> Turn:
    """A tenth of a second, in which so much was counted beyond what had been."""
    before = Count(1000, 5_000_000)
    after = before + Count(packets, cycles_counted)
    return Turn(begin_s, begin_s + 0.1, ran, {ALL: before}, {ALL: before}, {ALL: after})


def vm1(*stretches: tuple[str, float, float]) -> dict[str, Any]:
    """The result of a VM1 that met these, each from when to when."""
    names = ("tag", "begin_s", "end_s")
    return {"stretches": [dict(zip(names, each, strict=True)) for each in stretches]}


def test_cycles_are_the_differences_of_counts() -> None:
    met = vm1(("far_quiet", 0.0, 9.0))
    turns = [turn(begin_s, 100, 100 * each) for begin_s, each in ((1, 60), (2, 20), (3, 30))]
    assert cycles(turns, [met]) == {"far_quiet": {ALL: Cycles(30.0, 20.0, 60.0)}}
    assert cycles(turns[:2], [met]) == {}
    idle = [*turns[:2], turn(4, 0, 7)]  # nothing to divide by
    assert cycles(idle, [met]) == {}


@pytest.mark.parametrize(("alone", "expected"), [(50, 6.0), (0, 10.0)])
def test_what_is_made_in_vain_is_left_out(alone: int, expected: float) -> None:
    """Each took two cycles while the driver stood still; none was made then: each is a true one."""

    def counted(sent: int, thrown: int, cycles_counted: int) -> Counts:
        return {ALL: Count(sent, cycles_counted), VAIN: Count(thrown, cycles_counted)}

    counts = counted(7, 9, 1000), counted(7, 9 + alone, 1100), counted(107, 209 + alone, 2100)
    assert dict(Turn(1.0, 1.1, 1.0, *counts).per_packet()) == {ALL: expected}


@pytest.mark.parametrize(
    ("spoilt_s", "expected"), [(0.0099, "far_quiet"), (0.0101, None), (0.0901, "near_busy")]
)
def test_a_turn_of_mixed_condition_is_none(spoilt_s: float, expected: str | None) -> None:
    """Nine tenths of it are under one condition, or it is not told."""
    change_s = 5.1 - spoilt_s
    met = vm1(("far_quiet", 0.0, change_s), ("near_busy", change_s, 99.0))
    assert turn(5.0, 1, 1).condition([met]) == expected


def test_a_condition_is_that_of_all_vm1s() -> None:
    quiet, busy = vm1(("far_quiet", 0.0, 9.0)), vm1(("far_busy", 0.0, 9.0))
    assert turn(5.0, 1, 1).condition([quiet, quiet]) == "far_quiet"
    assert turn(5.0, 1, 1).condition([quiet, busy]) is None
    assert turn(5.0, 1, 1).condition([vm1(("far_quiet", 0.0, 5.0))]) is None
    assert turn(5.0, 1, 1).condition([{}]) is None


def test_a_turn_without_its_cpu_is_none() -> None:
    quiet = vm1(("far_quiet", 0.0, 9.0))
    assert turn(5.0, 1, 1, ran=0.91).condition([quiet]) == "far_quiet"
    assert turn(5.0, 1, 1, ran=0.89).condition([quiet]) is None


@pytest.mark.parametrize("cycles_name", ["total", "busy"])  # the latter since DPDK 23.11
def test_testpmd_s_answer(tmp_path: Path, cycles_name: str) -> None:
    """Packets are those that it sent. Any part of the answer is not yet one."""
    side = Testpmd("testpmd", CASE, tmp_path, PLACES, Waiting())
    answer = ANSWER.replace("(total cycles", f"({cycles_name} cycles")
    assert side._read(answer) == {
        ALL: Count(12_000_000, 2_477_826_482),
        VAIN: Count(48_640, 2_477_826_482),
    }
    end = answer.index(" MHz Clock\n") + len(" MHz Clock\n")
    assert all(side._read(answer[:length]) is None for length in range(end))


@pytest.mark.parametrize(
    ("mode", "packets"), [(Mode.NULL, 10), (Mode.GEN, 10), (Mode.LOOP, 4), (Mode.PATCH, 4)]
)
def test_our_answer(tmp_path: Path, mode: Mode, packets: int) -> None:
    """All channels together; what goes in and comes out again is one packet."""
    side = Ours(Case(mode, Direction.BOTH, 64), tmp_path, PLACES, Waiting())
    line = (
        '{"channels": [{"vm1_to_vf": {"packets": 5, "cycles": 50}, "vf_to_vm1": {"packets": 3,'
        ' "cycles": 90}}, {"vm1_to_vf": {"packets": 1, "cycles": 7}, "vf_to_vm1": {"packets": 1,'
        ' "cycles": 2}}]}'
    )
    assert side._read(line) is None
    stages = {"dequeue": Count(6, 57), "enqueue": Count(4, 92)}
    assert side._read(line + "\n") == {ALL: Count(packets, 149), **stages}


class Waiting(Waiter):
    """Waits for nothing."""

    def sleep(self, seconds: float) -> None:
        """Return at once."""

    def until(self, condition: Callable[[], object], operation: str, subject: str) -> None:
        """Return at once."""


class Process:
    """A child's other side: notes what is done to it. Once it goes on, it gets its CPU late."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log, self._looks = name, log, 0
        self.written = 0

    def pause(self) -> None:
        self._log.append(f"{self._name} stops")

    def resume(self) -> None:
        self._log.append(f"{self._name} goes on")

    def signal(self, _number: signal.Signals) -> None:
        """The stop is awaited in any case."""

    def check(self) -> None:
        pass

    @property
    def ran_s(self) -> float:
        self._looks += 1
        if self._looks == 5:
            self._log.append(f"{self._name} runs")
        return 0.0 if self._looks < 5 else 0.01

    def output_from(self, _begin: int) -> str:
        self._log.append(f"{self._name} answers")
        return "10"


class Driven(Side):
    """A side of such processes."""

    def __init__(self, directory: Path, log: list[str]) -> None:
        super().__init__("driven", CASE, directory, PLACES, Waiting())
        self._forwarding = [Process("forwarder", log)]  # type: ignore[list-item]
        driver = type("Driver", (), {"child": Process("driver", log), "idle": False})
        self._vm1s = [driver]  # type: ignore[list-item]

    def _start_back_end(self) -> list[Child]:
        return []

    def _ask(self, forwarding: Child) -> None:
        pass

    def _read(self, answer: str) -> Counts:
        return {ALL: Count(int(answer), 0)}


def test_who_forwards_is_back_on_its_cpu_before_frames_come(tmp_path: Path) -> None:
    """Else the whole stop would count as the time of the first frames that it finds."""
    log: list[str] = []
    side = Driven(tmp_path, log)
    side.turn(0.1)
    assert log == [
        "forwarder goes on",
        "forwarder runs",
        "forwarder answers",
        "forwarder answers",
        "driver goes on",
        "driver stops",
        "forwarder answers",
        "forwarder stops",
    ]
    assert [(each.before, each.after) for each in side.turns] == [
        ({ALL: Count(10, 0)}, {ALL: Count(10, 0)})
    ]
