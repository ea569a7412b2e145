"""A case measured on both sides: its figures, and their ratio or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pmd.bench_rate import SLICES_MIN, SPREAD_MAX, best, common, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pmd.bench_case import Case
    from pmd.bench_rate import Rate, Rates


# A back-end's count of cycles is not cut into slices: so much of its run was under a condition.
CYCLES_SHARE_MIN = 0.9


@dataclass(frozen=True, slots=True)
class Measured:
    """One side's figures of a case.

    Attributes:
        cycles_per_packet: Of the whole run, or None.
        one_way_ns: Of a cache line between the CPUs, in the whole run, or None.
        stages: cycles_per_packet by stage, of those that the back-end tells.
    """

    label: str
    rates: Rates
    cycles_per_packet: float | None
    one_way_ns: float | None
    stages: dict[str, float] = field(default_factory=dict)

    def cycles_under(self, rate: Rate | None) -> float | None:
        """The run's cycles a packet, if nearly all of it was under the condition of rate."""
        slices = sum(each.slices for each in self.rates.values())
        if rate is None or rate.slices < CYCLES_SHARE_MIN * slices:
            return None
        return self.cycles_per_packet


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a case, a peer or none, one condition.

    Attributes:
        ours, theirs: Taken under the same condition where refusal is empty.
        ours_cycles, peer_cycles: Of those conditions; None where they are not known, or refused.
        refusal: Why there is no ratio although there is a peer.
        one_way_ns: Measured.one_way_ns of our side.
        ours_stages: ours_cycles by stage; empty where that is None.
    """

    case: Case
    ours: Rate | None
    ours_cycles: float | None
    peer: str
    theirs: Rate | None
    peer_cycles: float | None
    refusal: str
    one_way_ns: float | None
    ours_stages: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Our rate by the peer's; None without a peer, or refused."""
        if self.refusal or self.ours is None or self.theirs is None or not self.theirs.mpps:
            return None
        return self.ours.mpps / self.theirs.mpps

    def json_object(self) -> dict[str, Any]:
        """Rates in million frames a second, sizes in bytes, spread as [10th, 90th] percentile."""
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
            "ours_cycles_per_packet": _round(self.ours_cycles),
            "ours_cycles_by_stage": {name: _round(each) for name, each in self.ours_stages.items()},
            "peer": self.peer or None,
            "peer_placement": self.theirs.condition if self.theirs else None,
            "peer_mpps": _round(self.theirs.mpps if self.theirs else None),
            "peer_cycles_per_packet": _round(self.peer_cycles),
            "ratio": _round(self.ratio),
            "spread": {"ours": _spread(self.ours), "peer": _spread(self.theirs)},
            "refusal": self.refusal or None,
        }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _spread(rate: Rate | None) -> list[float] | None:
    return None if rate is None else [round(rate.low, 3), round(rate.high, 3)]


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
            cleanest = best(ours.rates), best(peer.rates)
            found.append(_row(case, ours, cleanest, peer, _refusal(ours, peer)))
    return found


def _row(
    case: Case,
    ours: Measured,
    rates: tuple[Rate | None, Rate | None],
    peer: Measured | None,
    refusal: str,
) -> Row:
    mine = None if refusal else ours.cycles_under(rates[0])
    return Row(
        case,
        ours=rates[0],
        ours_cycles=mine,
        peer=peer.label if peer else "",
        theirs=rates[1],
        peer_cycles=None if refusal or peer is None else peer.cycles_under(rates[1]),
        refusal=refusal,
        one_way_ns=ours.one_way_ns,
        ours_stages={} if mine is None else ours.stages,
    )


def _refusal(ours: Measured, peer: Measured) -> str:
    counts = f"{ours.label} {told(ours.rates)}; {peer.label} {told(peer.rates)}"
    wanted = (
        f"{SLICES_MIN} slices on each side under one condition, spread {SPREAD_MAX:.0%} or less"
    )
    return f"there are not {wanted} ({counts})"
