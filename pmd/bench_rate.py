"""Rates by the conditions they were taken under, as `vhost-pci-vm1 replay --json` tells them.

VM1 cuts its run into slices of 500 us, and tags each with the machine's state: how far apart its
CPU and the forwarding one were (near: a cache line goes one way in 45 ns or less; far), and whether
both had their core for themselves (quiet; busy). Slices in which either side stood still are out.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pmd.bench_case import Direction

if TYPE_CHECKING:
    from collections.abc import Sequence

# The cleaner a condition, the earlier it is looked for. Of "untagged" nobody knows how it was.
CONDITIONS = ("near_quiet", "far_quiet", "near_busy", "far_busy")
UNTAGGED = "untagged"
SLICES_MIN = 40
# "busy" is many states; two medians of rates that vary more than this are of different ones.
SPREAD_MAX = 0.25


@dataclass(frozen=True, slots=True)
class Rate:
    """Mpps of one condition's slices: median, 10th and 90th percentile, number of slices."""

    condition: str
    mpps: float
    low: float
    high: float
    slices: int

    @property
    def spread(self) -> float:
        """From the 10th to the 90th percentile, as a part of the median."""
        return (self.high - self.low) / self.mpps if self.mpps else 0.0


Rates = dict[str, Rate]


def rates(results: Sequence[dict[str, Any]], direction: Direction, vm1_cpus: int) -> Rates:
    """The rate of all VM1s together for each condition that all of them met.

    VM1s that share CPUs take turns: a slice is one in which its VM1 ran, so as many VM1s move
    frames at any time as there are CPUs for them, each at its slices' rate.

    Args:
        results: The JSON object of each VM1.
        direction: Of the rings. Of both, the mean is told: each way's rate.
        vm1_cpus: How many CPUs the VM1s share.
    """
    each = [_of_one(result, direction) for result in results]
    at_once = min(len(each), vm1_cpus)
    found = {}
    for condition in (*CONDITIONS, UNTAGGED):
        met = [rates[condition] for rates in each if condition in rates]
        if met and len(met) == len(each):
            found[condition] = Rate(
                condition,
                at_once * statistics.fmean(rate.mpps for rate in met),
                at_once * statistics.fmean(rate.low for rate in met),
                at_once * statistics.fmean(rate.high for rate in met),
                sum(rate.slices for rate in met),
            )
    return found


def one_way_ns(results: Sequence[dict[str, Any]]) -> float | None:
    """A cache line's way between VM1's CPU and the forwarding one: the VM1s' median, of medians.

    None where nobody probed.
    """
    probes = [result["probe"] for result in results if "probe" in result]
    return statistics.median(probe["one_way_ns_median"] for probe in probes) if probes else None


def _of_one(result: dict[str, Any], direction: Direction) -> Rates:
    ways = ("tx", "rx") if direction == Direction.BOTH else (str(direction),)

    def value(slices: dict[str, Any], name: str) -> float:
        return statistics.fmean(float(slices[f"{way}_mpps_{name}"]) for way in ways)

    return {
        str(each["tag"]): Rate(
            str(each["tag"]),
            value(each, "median"),
            value(each, "p10"),
            value(each, "p90"),
            int(each["slices"]),
        )
        for each in result.get("slices", ())
    }


def common(ours: Rates, theirs: Rates) -> list[str]:
    """Under which conditions two sides can be compared, the cleanest first."""
    return [each for each in CONDITIONS if _steady(ours, each) and _steady(theirs, each)]


def _steady(side: Rates, condition: str) -> bool:
    return _enough(side, condition) and side[condition].spread <= SPREAD_MAX


def _enough(side: Rates, condition: str) -> bool:
    return condition in side and side[condition].slices >= SLICES_MIN


def best(side: Rates) -> Rate | None:
    """The cleanest rate with enough slices; else the one with most; None: nothing was measured."""
    for condition in CONDITIONS:
        if _enough(side, condition):
            return side[condition]
    return max(side.values(), key=lambda rate: rate.slices, default=None)


def told(side: Rates) -> str:
    """How many slices of each condition there are, and how far they spread, for people."""
    each = [f"{r.slices} {r.condition} spread {r.spread:.0%}" for r in side.values()]
    return ", ".join(each) or "none"
