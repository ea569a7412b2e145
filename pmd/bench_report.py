"""A benchmark's rows for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from pmd.bench_cycles import ALL, TURNS_MIN
from pmd.bench_latency import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pmd.bench_cycles import CyclesByName
    from pmd.bench_latency import Figure, LatencyRow
    from pmd.bench_rate import Rate
    from pmd.bench_result import Row


def table(rows: Sequence[Row]) -> Table:
    """One line a row; a peer's columns only where there is one. Refusals stand below."""
    peers = any(row.peer for row in rows)
    shown = Table(caption=caption(rows))
    shown.add_column("frames")
    for name in ("bytes", "queue"):
        shown.add_column(name, justify="right")
    shown.add_column("ring")
    shown.add_column("taken")
    for name in ("pmd Mpps", "cycles", *(("peer Mpps", "cycles", "ratio") if peers else ())):
        shown.add_column(name, justify="right")
    if peers:
        shown.add_column("peer")
    for row in rows:
        cells = [*_what(row), _rate(row.ours), _cycles(row.ours_cycles)]
        if peers:
            cells += [_rate(row.theirs), _cycles(row.peer_cycles), _ratio(row), row.peer]
        shown.add_row(*cells)
    return shown


def _what(row: Row) -> list[str]:
    case = row.case
    taken = "?" if row.ours is None else row.ours.condition
    if row.theirs is not None and row.ours is not None and row.theirs.condition != taken:
        taken = f"{taken} / {row.theirs.condition}"
    if row.one_way_ns is not None:
        taken = f"{taken} {row.one_way_ns:.0f} ns"
    return [case.way, str(case.frame_bytes), str(case.queue_size), str(case.ring), taken]


def _rate(rate: Rate | None) -> str:
    """The median, and the 10th and 90th percentile as differences from it."""
    if rate is None:
        return "-"
    low, high = rate.mpps - rate.low, rate.high - rate.mpps
    return f"{rate.mpps:.2f} -{low:.2f} +{high:.2f}"


def _cycles(cycles: CyclesByName) -> str:
    """The median, and the least and the most as differences from it."""
    if ALL not in cycles:
        return "-"
    found = cycles[ALL]
    less, more = found.middle - found.least, found.most - found.middle
    return f"{found.middle:.1f} -{less:.1f} +{more:.1f}"


def _ratio(row: Row) -> str:
    return "refused" if row.ratio is None else f"{row.ratio:.2f}"


def caption(rows: Sequence[Row]) -> str:
    """What the columns are, and why a ratio is not told."""
    lines = [
        "Mpps: median of slices of 0.5 ms, with 10th and 90th percentile.",
        "taken: how far apart the CPUs were, who else used them, a cache line's way between them.",
        "cycles: TSC cycles a packet of the forwarding CPUs' busy rounds: the median turn's, with",
        f"the least and the most, if {TURNS_MIN} turns were under the row's condition.",
    ]
    lines += [f"{row.case.name}: no ratio: {row.refusal}" for row in rows if row.refusal]
    return "\n".join(lines)


def latency_table(rows: Sequence[LatencyRow]) -> Table:
    """One line a rate and side; microseconds."""
    shown = Table(
        caption="us from VM1 through the back-end and back, 64 bytes: the median round's, "
        "with the best and the worst round's.\nkept: the part of the time in which no thread that "
        "matters had to make way for another, of which the figures are.\n"
        "lost: the part of all frames, in the rest of the time too, that did not come back."
    )
    shown.add_column("ring")
    shown.add_column("poll")
    shown.add_column("offered a second", justify="right")
    shown.add_column("side")
    for name in ("sent", "kept", "lost", *PERCENTILES):
        shown.add_column(name, justify="right")
    for row in rows:
        cells = [str(row.case.ring), str(row.case.poll), f"{row.rate_pps:,}"]
        cells += [row.side, f"{row.sent:.1%}", f"{row.kept:.0%}", f"{row.lost:.3%}"]
        for name in PERCENTILES:
            figure = row.figures.get(name)
            cells.append("-" if figure is None else _microseconds(figure))
        shown.add_row(*cells)
    return shown


def _microseconds(figure: Figure) -> str:
    return f"{figure.middle / 1e3:.1f} ({figure.best / 1e3:.1f}..{figure.worst / 1e3:.1f})"
