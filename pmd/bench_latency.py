"""How long frames are under way from VM1 through the back-end and back, by offered rate.

Sides take turns by whole rounds: each is a VM1 that offers every rate once. A side whose round it
is not is stopped. Figures are those of rounds; no ratio is told, because a latency has no slices.
Left out is, on either side alike, what came while a thread that matters had to make way for
another: the scheduler's doing (tools/vm1/latency.py).
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError
from pmd.bench import place, sides_of
from pmd.bench_case import Ring
from pmd.child import Child

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pmd.bench_case import Case
    from pmd.bench_options import BenchOptions
    from pmd.bench_side import Places, Side, Waiter

ROUNDS = 5
PERCENTILES = ("p50", "p99", "p999", "max")
_END_TIMEOUT_S = 20.0
_LOOK_S = 0.05
# After VM1 left, a channel acknowledges that; stopped before it can, it would be taken for dead.
_SETTLE_S = 0.2


@dataclass(frozen=True, slots=True)
class Figure:
    """A percentile in ns: the median round's, the best and the worst round's."""

    middle: float
    best: float
    worst: float


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One rate on one side.

    Attributes:
        sent: Which part of the frames offered could be sent, in the median round.
        kept: Which part of the time is in the figures, in all rounds.
        lost: Which part of the frames did not come back, the rest of the time too.
        figures: By name, of the rounds of which something is.
    """

    case: Case
    rate_pps: int
    side: str
    sent: float
    kept: float
    lost: float
    figures: dict[str, Figure]

    def json_object(self) -> dict[str, Any]:
        """Percentiles in ns: the median round's, and [best, worst]."""
        found: dict[str, Any] = {
            "case": f"latency-{self.case.frame_bytes}B-{self.case.ring}-{self.case.poll}",
            "mode": "latency",
            "frame_bytes": self.case.frame_bytes,
            "ring": str(self.case.ring),
            "poll": str(self.case.poll),
            "rate_pps": self.rate_pps,
            "side": self.side,
            "sent": round(self.sent, 4),
            "kept": round(self.kept, 4),
            "lost": round(self.lost, 6),
        }
        for name, figure in self.figures.items():
            found[f"{name}_ns"] = round(figure.middle)
            found[f"{name}_ns_spread"] = [round(figure.best), round(figure.worst)]
        return found


def latencies(options: BenchOptions, say: Callable[[str], None]) -> list[LatencyRow]:
    """Measure all cases; a row for each rate and side, pmd's first.

    Main thread, no other threads. Raises and leaves as pmd/bench.py run does.
    """
    found = []
    with place(options, say) as (places, waiter):
        for case in options.cases:
            with sides_of(case, options.peers, places, waiter) as sides:
                found += _measure(case, options, places, sides, waiter)
    return found


def _measure(
    case: Case, options: BenchOptions, places: Places, sides: Sequence[Side], waiter: Waiter
) -> list[LatencyRow]:
    for side in sides:
        side.start_back_end()
        side.pause()
    rounds: list[list[dict[str, Any]]] = [[] for _ in sides]
    step_s = options.seconds / ROUNDS / len(options.rates_pps)
    for turn in range(ROUNDS):
        order = list(zip(sides, rounds, strict=True))
        for side, found in order if turn % 2 else reversed(order):
            side.resume()
            found.append(_round(_command(case, options, places, side, step_s), side, waiter))
            if len(found[-1]["latency"]) != len(options.rates_pps):
                raise VhostPciError("measure", f"latency of {side.name}", "VM1 left out a rate")
            waiter.sleep(_SETTLE_S)
            side.pause()
    return [
        _row(case, rate_pps, side.label, [found["latency"][index] for found in each])
        for index, rate_pps in enumerate(options.rates_pps)
        for side, each in zip(sides, rounds, strict=True)
    ]


def _command(
    case: Case, options: BenchOptions, places: Places, side: Side, step_s: float
) -> list[str]:
    """A VM1 that offers all rates, each for step_s."""
    command = [
        *(sys.executable, "-m", "tools.vm1.cli", "latency", "--json"),
        *("--vhost-user", str(side.socket(0)), "--cpu", str(places.vm1_cpus[0])),
        *("--size", str(case.frame_bytes), "--queue-size", str(case.queue_size)),
        *("--peer-pid", str(side.forwarding_pid)),
        *("--rates", ",".join(map(str, options.rates_pps)), "--seconds", str(step_s)),
    ]
    command += ["--huge-pages"] if places.huge_pages else []
    return [*command, "--packed"] if case.ring == Ring.PACKED else command


def _round(command: Sequence[str], side: Side, waiter: Waiter) -> dict[str, Any]:
    """Run such a VM1 to its end; its JSON object."""
    vm1 = Child(f"VM1 of {side.name}", command, first=True)
    try:
        while vm1.running:
            side.check()
            waiter.sleep(_LOOK_S)
        found: dict[str, Any] = json.loads(vm1.end(_END_TIMEOUT_S))
    except ValueError as error:
        raise VhostPciError("read", f"the result of {vm1.name}", str(error)) from error
    finally:
        vm1.close()
    return found


def _row(case: Case, rate_pps: int, side: str, rounds: Sequence[dict[str, Any]]) -> LatencyRow:
    figures = {}
    for name in PERCENTILES:
        values = [found[f"{name}_ns"] for found in rounds if found[f"{name}_ns"] is not None]
        if values:
            figures[name] = Figure(statistics.median(values), min(values), max(values))
    shares = [min(1.0, found["sent_pps"] / rate_pps) for found in rounds if found["sent"]]
    sent = statistics.median(shares) if shares else 0.0
    pieces = sum(found["pieces"] for found in rounds)
    kept = 1 - sum(found["pieces_dropped"] for found in rounds) / pieces
    lost = statistics.fmean(found["lost"] for found in rounds)
    return LatencyRow(case, rate_pps, side, sent, kept, lost, figures)
