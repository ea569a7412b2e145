"""A case measured on both sides: its figures, and their ratio or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pmd.bench_cycles import ALL
from pmd.bench_rate import CONDITIONS, SLICES_MIN, SPREAD_MAX, best, common, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pmd.bench_case import Case
    from pmd.bench_cycles import CyclesByName
    from pmd.bench_rate import Rate, Rates


@dataclass(frozen=True, slots=True)
class Measured:
    """One side's figures of a case.

    Attributes:
        cycles: A packet's, by condition and name (pmd/bench_cycles.py).
        one_way_ns: Of a cache line between the CPUs, in the whole run, or None.
    """

    label: str
    rates: Rates
    cycles: dict[str, CyclesByName]
    one_way_ns: float | None

    def cycles_under(self, rate: Rate | None) -> CyclesByName:
        """Cycles a packet under the condition of rate; empty where that is not known."""
        return {} if rate is None else self.cycles.get(rate.condition, {})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a case, a peer or none, one condition.

    Attributes:
        ours, theirs: Taken under the same condition where refusal is empty.
        ours_cycles, peer_cycles: By name (pmd/bench_cycles.py); empty where they are not known, or
            the conditions are not the same.
        refusal: Why there is no ratio although there is a peer.
        one_way_ns: Measured.one_way_ns of our side.
    """

    case: Case
    ours: Rate | None
    ours_cycles: CyclesByName
    peer: str
    theirs: Rate | None
    peer_cycles: CyclesByName
    refusal: str
    one_way_ns: float | None

    @property
    def ratio(self) -> float | None:
        """Our rate by the peer's; None without a peer, or refused."""
        if self.refusal or self.ours is None or self.theirs is None or not self.theirs.mpps:
            return None
        return self.ours.mpps / self.theirs.mpps

    @property
    def stages(self) -> CyclesByName:
        """Our cycles without those of all stages together."""
        return {name: each for name, each in self.ours_cycles.items() if name != ALL}

    def json_object(self) -> dict[str, Any]:
        """Rates in million frames a second, sizes in bytes.

        spread is [10th, 90th] percentile; cycles_spread [least, most] of a turn.
        """
        return {
            "case": self.case.name,
            "mode": str(self.case.mode),
            "direction": str(self.case.direction),
            "frame_bytes": self.case.frame_bytes,
            "ring": str(self.case.ring),
            "queue_size": self.case.queue_size,
            "burst": self.case.burst,
            "channels": self.case.channels,
            "idle": self.case.idle,
            "touch": self.case.touch,
            "feature": self.case.feature,
            "placement": self.ours.condition if self.ours else None,
            "one_way_ns": _round(self.one_way_ns),
            "ours_mpps": _round(self.ours.mpps if self.ours else None),
            "ours_cycles_per_packet": _middle(self.ours_cycles),
            "ours_cycles_by_stage": {
                name: _round(each.middle) for name, each in self.stages.items()
            },
            "peer": self.peer or None,
            "peer_placement": self.theirs.condition if self.theirs else None,
            "peer_mpps": _round(self.theirs.mpps if self.theirs else None),
            "peer_cycles_per_packet": _middle(self.peer_cycles),
            "ratio": _round(self.ratio),
            "spread": {"ours": _spread(self.ours), "peer": _spread(self.theirs)},
            "cycles_spread": {
                "ours": _ends(self.ours_cycles),
                "peer": _ends(self.peer_cycles),
            },
            "refusal": self.refusal or None,
        }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _spread(rate: Rate | None) -> list[float] | None:
    return None if rate is None else [round(rate.low, 3), round(rate.high, 3)]


def _middle(cycles: CyclesByName) -> float | None:
    return _round(cycles[ALL].middle) if ALL in cycles else None


def _ends(cycles: CyclesByName) -> list[float] | None:
    return [round(cycles[ALL].least, 3), round(cycles[ALL].most, 3)] if ALL in cycles else None


def rows(case: Case, ours: Measured, peers: Sequence[Measured]) -> list[Row]:
    """A row for each peer and condition that both sides met often enough; else one that says why.

    Without peers, a row for the cleanest condition.
    """
    if not peers:
        return [_row(case, ours, (best(ours.rates), None), None, "")]
    found = []
    for peer in peers:
        conditions = common(ours.rates, peer.rates)
        for condition in conditions:
            pair = ours.rates[condition], peer.rates[condition]
            found.append(_row(case, ours, pair, peer, ""))
        if not conditions:
            found.append(_row(case, ours, _without_ratio(ours, peer), peer, _refusal(ours, peer)))
    return found


def _without_ratio(ours: Measured, peer: Measured) -> tuple[Rate | None, Rate | None]:
    """What a refused pair is shown by: a condition that has cycles of both, if there is any."""
    for condition in CONDITIONS:
        sides = [(side.rates.get(condition), side.cycles.get(condition)) for side in (ours, peer)]
        if all(rate and cycles for rate, cycles in sides):
            return sides[0][0], sides[1][0]
    return best(ours.rates), best(peer.rates)


def _row(
    case: Case,
    ours: Measured,
    rates: tuple[Rate | None, Rate | None],
    peer: Measured | None,
    refusal: str,
) -> Row:
    alike = peer is None or len({rate.condition for rate in rates if rate}) == 1
    return Row(
        case,
        ours=rates[0],
        ours_cycles=ours.cycles_under(rates[0]) if alike else {},
        peer=peer.label if peer else "",
        theirs=rates[1],
        peer_cycles=peer.cycles_under(rates[1]) if alike and peer else {},
        refusal=refusal,
        one_way_ns=ours.one_way_ns,
    )


def _refusal(ours: Measured, peer: Measured) -> str:
    counts = f"{ours.label} {told(ours.rates)}; {peer.label} {told(peer.rates)}"
    wanted = (
        f"{SLICES_MIN} slices on each side under one condition, spread {SPREAD_MAX:.0%} or less"
    )
    return f"there are not {wanted} ({counts})"
