"""What makes two rates comparable, and what is shown of them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pmd.bench_case import Case, Direction, Mode, Ring, cases, full, quick
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
    return Measured("pmd", each, 20.0, 62.5, {"dequeue": 8.0, "enqueue": 12.0})


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
        pair.append(Measured(name, found, None, None))
    (row,) = rows(CASE, pair[0], pair[1:])
    assert row.ratio is None
    assert row.refusal.startswith(f"there are not {SLICES_MIN} slices on each side under one con")
    assert row.json_object()["ratio"] is None
    shown = text([row])
    assert "refused" in shown
    assert "null-tx-64B-split-q256-b32-c1-t1: no ratio: there" in shown.replace("\n", " ")


def test_cycles_are_of_one_condition() -> None:
    """A run's count is one figure: where it met other conditions too, or is refused, it is none."""

    def met(quiet: int, busy: int) -> Measured:
        each = {"far_quiet": quiet, "far_busy": busy}
        found = {tag: Rate(tag, 30.0, 29.0, 31.0, count) for tag, count in each.items()}
        return Measured("pmd", found, 20.0, None)

    def told(ours: Measured, theirs: Measured) -> list[tuple[float | None, float | None]]:
        return [(row.ours_cycles, row.peer_cycles) for row in rows(CASE, ours, [theirs])]

    assert told(met(900, 100), met(100, 900)) == [(20.0, None), (None, 20.0)]
    assert told(met(899, 101), met(500, 500)) == [(None, None)] * 2
    assert told(met(1000, 0), met(0, 1000)) == [(None, None)]
    assert rows(CASE, met(500, 500), [])[0].ours_cycles is None
    assert rows(CASE, met(950, 50), [])[0].ours_cycles == 20.0


def text(rows: list[Row]) -> str:
    console = Console(file=io.StringIO(), width=400)
    console.print(table(rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table() -> None:
    (row,) = rows(CASE, side(near_quiet=30.0), [side(near_quiet=12.0)])
    shown = text([row])
    for cell in ("VM1 -> VF", "near_quiet 62 ns", "30.00 -1.50 +1.50", "12.00 -0.60 +0.60", "2.50"):
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
    row = LatencyRow(CASE, 1_000_000, "testpmd 22.11", 0.75, 0.5, figures)
    console = Console(file=io.StringIO(), width=400)
    console.print(latency_table([row]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for cell in ("1,000,000", "testpmd 22.11", "75.0%", "50%", "1.5 (1.0..2.0)", "9.0 (8.0..10.0)"):
        assert cell in shown
    assert row.json_object()["p99_ns_spread"] == [8000, 10000]
