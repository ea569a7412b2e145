"""Cycles a packet, by the conditions they were taken under.

A forwarder is asked what it counted when a turn of its side begins and when it ends, with the
drivers stopped. VM1 tells which conditions it met when (tools/vm1/slices.py, "stretches"). A turn
that was nearly all under one condition is that condition's.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TURNS_MIN = 3
SHARE_MIN = 0.9  # of a turn: two probes of a block that differ spoil 20 ms
RAN_MIN = 0.9  # likewise: the probes take two or three hundredths
ALL = "all"  # beside stages: the forwarder as a whole
VAIN = "vain"  # packets that it made and threw away, and all its cycles


@dataclass(frozen=True, slots=True)
class Count:
    """Packets, and TSC cycles of the forwarding CPUs' busy turns, that went into them."""

    packets: int
    cycles: int

    def __add__(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.cycles + other.cycles)

    def __sub__(self, other: Count) -> Count:
        return Count(self.packets - other.packets, self.cycles - other.cycles)


Counts = dict[str, Count]  # ALL; stages, VAIN where the forwarder has such


@dataclass(frozen=True, slots=True)
class Turn:
    """A piece of a side's run.

    Attributes:
        begin_s, end_s: Of CLOCK_MONOTONIC, while drivers ran.
        ran: The part of it for which the forwarding CPUs were the forwarder's. One that has to make
            way for another counts that time for the frames that it has in hand.
        before, after: What was counted until then.
        alone: What was counted somewhat earlier; from then to before drivers stood still.
    """

    begin_s: float
    end_s: float
    ran: float
    alone: Counts
    before: Counts
    after: Counts

    def per_packet(self) -> Iterator[tuple[str, float]]:
        """Cycles a packet by name; nothing of what no packet came to."""
        for name, after in self.after.items():
            count = after - self.before[name]
            if count.packets > 0 and name != VAIN:
                cycles = count.cycles - (self._vain_cycles() if name == ALL else 0.0)
                yield name, cycles / count.packets

    def _vain_cycles(self) -> float:
        """What packets took that were thrown away: each as much as with nobody there."""
        if VAIN not in self.after:
            return 0.0
        alone = self.before[VAIN] - self.alone[VAIN]
        thrown = self.after[VAIN] - self.before[VAIN]
        return thrown.packets * alone.cycles / alone.packets if alone.packets > 0 else 0.0

    def condition(self, results: Sequence[dict[str, Any]]) -> str | None:
        """The one that SHARE_MIN of it was under, by all VM1s together.

        None: there is none such, or the forwarder was kept from its CPUs.

        Args:
            results: The JSON object of each VM1.
        """
        if self.ran < RAN_MIN:
            return None
        met: dict[str, float] = defaultdict(float)
        for result in results:
            for stretch in result.get("stretches", ()):
                begin_s, end_s = float(stretch["begin_s"]), float(stretch["end_s"])
                shared_s = min(end_s, self.end_s) - max(begin_s, self.begin_s)
                met[str(stretch["tag"])] += max(0.0, shared_s)
        longest = max(met, key=lambda tag: met[tag], default=None)
        if longest is None or not met[longest] or met[longest] < SHARE_MIN * sum(met.values()):
            return None
        return longest


@dataclass(frozen=True, slots=True)
class Cycles:
    """A packet's: the median turn's, the least and the most of any turn."""

    middle: float
    least: float
    most: float


CyclesByName = dict[str, Cycles]


def cycles(turns: Sequence[Turn], results: Sequence[dict[str, Any]]) -> dict[str, CyclesByName]:
    """For each condition that TURNS_MIN turns were under: cycles a packet by name (ALL, stages).

    Args:
        turns: Of one side.
        results: The JSON object of each of its VM1s.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in turns:
        condition = turn.condition(results)
        if condition is not None:
            for name, value in turn.per_packet():
                found[condition][name].append(value)
    return {
        condition: {
            name: Cycles(statistics.median(values), min(values), max(values))
            for name, values in names.items()
            if len(values) >= TURNS_MIN
        }
        for condition, names in found.items()
        if len(names[ALL]) >= TURNS_MIN
    }
