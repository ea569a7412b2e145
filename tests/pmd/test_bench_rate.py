"""What makes two rates comparable, and what is shown of them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pmd.bench_case import Case, Direction, Mode, Ring, cases, full, quick
from pmd.bench_cycles import ALL, Cycles
from pmd.bench_latency import Figure, LatencyRow
from pmd.bench_rate import SLICES_MIN, Rate, best, common, one_way_ns, rates
from pmd.bench_report import latency_table, table
from pmd.bench_result import Measured, Row, rows

CASE = Case(Mode.NULL, Direction.TX, 64)


def slices(tag: str, tx: float, rx: float = 0.0, count: int = 100) -> dict[str, Any]:
    """One tag of a VM1's result; percentiles a tenth around the median."""
    found: dict[str, Any] = {"tag": tag, "slices": count}
    for way, mpps in ("tx", tx), ("rx", rx):
        found |= {f"{way}_mpps_median": mpps, f"{way}_mpps_p10": 0.9 * mpps}
        found[f"{way}_mpps_p90"] = 1.1 * mpps
    return found


def result(*tags: dict[str, Any]) -> dict[str, Any]:
    return {"slices": list(tags)}


def side(**mpps: float) -> Measured:
    """A side with enough slices of each condition, that spread by a tenth."""
    each = {
        name: Rate(name, value, 0.95 * value, 1.05 * value, 100) for name, value in mpps.items()
    }
    taken = {
        ALL: Cycles(20.0, 19.0, 22.0),
        "dequeue": Cycles(8.0, 7.0, 9.0),
        "enqueue": Cycles(12.0, 11.0, 13.0),
    }
    return Measured("pmd", each, dict.fromkeys(mpps, taken), 62.5)


def test_a_direction_is_one_way_or_the_mean_of_both() -> None:
    found = [result(slices("near_quiet", 30.0, 20.0))]
    expected = {Direction.TX: 30.0, Direction.RX: 20.0, Direction.BOTH: 25.0}
    for direction, mpps in expected.items():
        (rate,) = rates(found, direction, 1).values()
        assert rate.mpps == mpps
        assert rate.low == pytest.approx(0.9 * mpps)
        assert rate.high == pytest.approx(1.1 * mpps)
        assert rate.spread == pytest.approx(0.2)


def test_vm1s_that_share_cpus_take_turns() -> None:
    found = [result(slices("near_quiet", mpps)) for mpps in (10.0, 20.0, 30.0)]
    for cpus, mpps in (1, 20.0), (2, 40.0), (3, 60.0), (8, 60.0):
        assert rates(found, Direction.TX, cpus)["near_quiet"].mpps == mpps
    assert rates(found, Direction.TX, 1)["near_quiet"].slices == 300


def test_the_way_between_the_cpus() -> None:
    probed = [{"probe": {"one_way_ns_median": ns}} for ns in (50.0, 60.0, 150.0)]
    assert one_way_ns(probed) == 60.0
    assert one_way_ns([result()]) is None


def test_a_condition_that_one_vm1_missed_is_none() -> None:
    both = result(slices("near_quiet", 10.0), slices("far_busy", 5.0))
    one = result(slices("far_busy", 7.0))
    assert set(rates([both, one], Direction.TX, 2)) == {"far_busy"}
    assert rates([result()], Direction.TX, 1) == {}


def test_conditions_are_compared_with_themselves_only() -> None:
    ours, theirs = side(near_quiet=30.0, far_busy=9.0), side(far_busy=6.0, near_busy=20.0)
    (row,) = rows(CASE, ours, [theirs])
    assert (row.ratio, row.refusal) == (1.5, "")
    assert row.ours is not None
    assert row.ours.condition == "far_busy"


def test_a_row_for_each_common_condition_the_cleanest_first() -> None:
    both = side(near_busy=1.0, far_quiet=2.0, near_quiet=3.0)
    assert common(both.rates, both.rates) == ["near_quiet", "far_quiet", "near_busy"]
    assert len(rows(CASE, both, [both, both])) == 6


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"near_quiet": 100}, {"far_quiet": 100}),
        ({"near_quiet": 100}, {"near_quiet": SLICES_MIN - 1}),
        ({"near_quiet": SLICES_MIN - 1}, {"near_quiet": 100}),
        ({"untagged": 100}, {"untagged": 100}),
        ({}, {"near_quiet": 100}),
        ({"near_quiet": -100}, {"near_quiet": 100}),
    ],
)
def test_a_ratio_is_refused(ours: dict[str, int], theirs: dict[str, int]) -> None:
    """Other conditions, too few slices, or (negative numbers) slices that vary too much."""
    pair = []
    for name, counts in ("pmd", ours), ("testpmd", theirs):
        found = {
            tag: Rate(tag, 9.0, 8.0 if count > 0 else 6.0, 10.0, abs(count))
            for tag, count in counts.items()
        }
        pair.append(Measured(name, found, {}, None))
    (row,) = rows(CASE, pair[0], pair[1:])
    assert row.ratio is None
    assert row.refusal.startswith(f"there are not {SLICES_MIN} slices on each side under one con")
    assert row.json_object()["ratio"] is None
    shown = text([row])
    assert "refused" in shown
    assert "null-tx-64B-split-q256-b32-c1-t1: no ratio: there" in shown.replace("\n", " ")


def test_cycles_are_of_the_row_s_condition() -> None:
    """A side that met several has cycles of each; a pair of different ones has none."""

    def met(**cycles: float) -> Measured:
        found = {tag: Rate(tag, 30.0, 29.0, 31.0, 100) for tag in cycles}
        return Measured(
            "pmd",
            found,
            {tag: {ALL: Cycles(each, each, each)} for tag, each in cycles.items() if each},
            None,
        )

    def told(ours: Measured, theirs: Measured) -> list[tuple[float | None, float | None]]:
        objects = [row.json_object() for row in rows(CASE, ours, [theirs])]
        return [(o["ours_cycles_per_packet"], o["peer_cycles_per_packet"]) for o in objects]

    ours, theirs = met(far_quiet=20.0, far_busy=30.0), met(far_busy=90.0, far_quiet=0.0)
    assert told(ours, theirs) == [(20.0, None), (30.0, 90.0)]
    assert told(met(far_quiet=20.0), met(far_busy=90.0)) == [(None, None)]
    (alone,) = rows(CASE, ours, [])
    assert alone.ours_cycles[ALL].middle == 20.0


def test_a_refused_row_of_one_condition_has_cycles() -> None:
    """They do not vary as rates do, which the slices' spread is for."""
    rate = Rate("far_busy", 9.0, 6.0, 10.0, 100)
    each = Measured("pmd", {"far_busy": rate}, {"far_busy": {ALL: Cycles(50.0, 49.0, 51.0)}}, None)
    (row,) = rows(CASE, each, [each])
    assert row.refusal
    assert row.peer_cycles == {ALL: Cycles(50.0, 49.0, 51.0)}
    # A condition that is cleaner, but has no turns, is not the one to show then.
    wide = Rate("far_quiet", 12.0, 8.0, 13.0, 100)
    other = Measured("pmd", {"far_quiet": wide, "far_busy": rate}, each.cycles, None)
    (row,) = rows(CASE, other, [other])
    assert row.refusal
    assert row.ours == row.theirs == rate
    assert row.ours_cycles == row.peer_cycles == each.cycles["far_busy"]


def text(rows: list[Row]) -> str:
    console = Console(file=io.StringIO(), width=400)
    console.print(table(rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table() -> None:
    (row,) = rows(CASE, side(near_quiet=30.0), [side(near_quiet=12.0)])
    shown = text([row])
    for cell in (
        "VM1 -> VF",
        "near_quiet 62 ns",
        "30.00 -1.50 +1.50",
        "12.00 -0.60 +0.60",
        "2.50",
        "20.0 -1.0 +2.0",
    ):
        assert cell in shown
    (alone,) = rows(CASE, side(far_quiet=30.0), [])
    assert "ratio" not in text([alone])


def test_the_cleanest_rate_stands_alone() -> None:
    few = Rate("near_quiet", 9.0, 8.0, 10.0, 1)
    assert best({"near_quiet": few}) == few
    many = Rate("far_busy", 5.0, 4.0, 6.0, 100)
    assert best({"near_quiet": few, "far_busy": many}) == many
    assert best({}) is None


def test_the_json_object() -> None:
    (row,) = rows(CASE, side(near_quiet=30.0), [side(near_quiet=12.0)])
    assert row.json_object() == {
        "case": "null-tx-64B-split-q256-b32-c1-t1",
        "mode": "null",
        "direction": "tx",
        "frame_bytes": 64,
        "ring": "split",
        "queue_size": 256,
        "burst": 32,
        "channels": 1,
        "idle": 0,
        "touch": 1,
        "feature": None,
        "placement": "near_quiet",
        "one_way_ns": 62.5,
        "ours_mpps": 30.0,
        "ours_cycles_per_packet": 20.0,
        "ours_cycles_by_stage": {"dequeue": 8.0, "enqueue": 12.0},
        "peer": "pmd",
        "peer_placement": "near_quiet",
        "peer_mpps": 12.0,
        "peer_cycles_per_packet": 20.0,
        "ratio": 2.5,
        "spread": {"ours": [28.5, 31.5], "peer": [11.4, 12.6]},
        "cycles_spread": {"ours": [19.0, 22.0], "peer": [19.0, 22.0]},
        "refusal": None,
    }


def test_tables_of_cases() -> None:
    assert len(quick([Ring.SPLIT])) == 4
    everything = full([Ring.SPLIT, Ring.PACKED])
    assert len({case.name for case in everything}) == len(everything)
    combined = cases(
        modes=list(Mode),
        directions=[],
        sizes=[64, 9000],
        queue_sizes=[256],
        rings=[Ring.SPLIT],
        bursts=[1, 32],
        channels=[1],
    )
    assert len(combined) == len(Mode) * 2 * 2
    assert all(case in everything for case in quick([Ring.SPLIT]))


def test_the_latency_table() -> None:
    figures = {"p50": Figure(1500.0, 1000.0, 2000.0), "p99": Figure(9e3, 8e3, 1e4)}
    row = LatencyRow(CASE, 1_000_000, "testpmd 22.11", 0.75, 0.5, 0.0123, figures)
    console = Console(file=io.StringIO(), width=400)
    console.print(latency_table([row]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    told = ("75.0%", "50%", "1.230%", "1.5 (1.0..2.0)", "9.0 (8.0..10.0)")
    for cell in ("1,000,000", "testpmd 22.11", *told):
        assert cell in shown
    assert row.json_object()["p99_ns_spread"] == [8000, 10000]
