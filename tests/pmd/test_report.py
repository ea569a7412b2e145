"""Statistics as people and programs see them: exact figures from known counters."""

from __future__ import annotations

import fcntl
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pmd import kernel, live_table, report
from pmd.stats import AtVf, Channel, Direction, Lcore, Pair, Receives, Snapshot

if TYPE_CHECKING:
    import pytest

SLOTS = 16


def direction(packets: int, dropped: int = 0) -> Direction:
    """Frames of 100 bytes, 200 cycles each, drops of enum rk_drop 2."""
    drops = tuple(dropped if reason == 2 else 0 for reason in range(SLOTS))
    return Direction(packets, 100 * packets, drops, packets // 32, 200 * packets, 7, 5)


def snapshot(time_s: float, scale: int) -> Snapshot:
    pairs = (
        Pair(
            direction(1_000_000 * scale, 3 * scale),
            direction(500_000 * scale),
            AtVf(scale),
            Receives("zero-copy", 5),
        ),
        Pair(direction(0), direction(1_000_000 * scale), AtVf(), Receives("copy", 2)),
    )
    counters = {"received": 5 * scale, "sent": 0}
    more = (4, 1, "packed rings", counters)
    channel = Channel("vfio-user:[a]", "loop", "forwarding", pairs, *more)
    return Snapshot(time_s, (channel,), (Lcore(1, 100 * scale, 50, 1000 * scale, 250 * scale),))


def test_json_object_counts_everything_since_start() -> None:
    found = json.loads(json.dumps(report.json_object(snapshot(10.0, 0), snapshot(12.0, 4))))
    assert found["duration_s"] == 2.0
    assert found["tsc_hz"] == kernel.tsc_hz()
    (channel,) = found["channels"]
    assert (channel["device"], channel["vf"]) == ("vfio-user:[a]", "loop")
    assert (channel["reconfigurations"], channel["quarantines"]) == (4, 1)
    assert channel["vm1_to_vf"] == {
        "packets": 4_000_000,
        "bytes": 400_000_000,
        "drops": {"bad_next": 12},
        "mpps": 2.0,
        "gbps": 1.6,
        "bursts": 125_000,
        "calls": 14,
        "flushed": 10,
        "cycles": 800_000_000,
        "cycles_per_packet": 200.0,
    }
    assert channel["vf_to_vm1"]["packets"] == 6_000_000
    assert channel["vf_to_vm1"]["drops"] == {}
    assert (channel["rx_missed"], channel["tx_zero_copy"], channel["rx_zero_copy"]) == (4, 0, 0)
    assert (channel["vf_mode"], channel["vf_counters"]) == (
        "packed rings",
        {"received": 20, "sent": 0},
    )
    assert (channel["rx_mode"], channel["rx_redecided"]) == ("mixed", 7)
    ways = [(pair["rx_mode"], pair["rx_redecided"]) for pair in channel["queue_pairs"]]
    assert ways == [("zero-copy", 5), ("copy", 2)]
    assert channel["cycles_per_packet"] == 200.0
    assert [pair["vm1_to_vf"]["packets"] for pair in channel["queue_pairs"]] == [4_000_000, 0]
    assert found["lcores"] == [
        {
            "cpu": 1,
            "turns": 400,
            "busy_turns": 50,
            "busy_ratio": 0.25,
            "sleeps": 0,
            "slept_ratio": 0.0,
        }
    ]


def test_every_counter_is_explained() -> None:
    explained = (Path(__file__).parents[2] / "docs/deploy.md").read_text(encoding="utf-8")
    channel = report.json_object(snapshot(10.0, 0), snapshot(12.0, 4))["channels"][0]
    channel_keys = set(channel) - {"device", "vf", "vm1_to_vf", "vf_to_vm1", "queue_pairs"}
    for name in {*kernel.drop_names()[1:], *channel_keys, *channel["vm1_to_vf"]}:
        assert f"`{name}`" in explained, name


def test_nothing_moved_is_no_division_by_zero() -> None:
    nothing = snapshot(1.0, 0)
    found = report.json_object(nothing, nothing)
    assert found["channels"][0]["vm1_to_vf"]["mpps"] == 0.0
    assert found["channels"][0]["cycles_per_packet"] == 0.0


def test_lines_show_the_last_period(capfd: pytest.CaptureFixture[str]) -> None:
    report.Lines().show(snapshot(10.0, 1), snapshot(10.5, 2))
    assert capfd.readouterr().out == (
        "vfio-user:[a]: VM1->VF 2.000 Mpps 1.600 Gbit/s 3 drops, VF->VM1 3.000 Mpps 2.400 Gbit/s "
        "0 drops, 200 cycles/packet, forwarding\n"
    )


def test_a_reader_that_stopped_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "w") as written:
        monkeypatch.setattr(sys, "stdout", written)
        capacity = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
        for _ in range(capacity // 100):
            report.Lines().show(snapshot(10.0, 1), snapshot(10.5, 2))
        assert not report.takes(written)
        lines = os.read(reader, 2 * capacity)
        assert len(lines) <= capacity
        assert lines.endswith(b"forwarding\n")
        report.Lines().show(snapshot(10.0, 1), snapshot(10.5, 2))
        assert read.readline().endswith(b"forwarding\n")


def test_table_has_a_row_for_each_direction() -> None:
    out = io.StringIO()
    table = live_table.table(snapshot(10.0, 1), snapshot(10.5, 2))
    Console(file=out, width=120).print(table)
    text = out.getvalue()
    assert "vfio-user:[a]" in text
    rows = [line.split("│")[1:-1] for line in text.splitlines() if "VM1" in line]
    assert [[cell.strip() for cell in row[1:]] for row in rows] == [
        ["VM1 -> loop", "2.000", "1.600", "6", "200", "forwarding"],
        ["loop -> VM1", "3.000", "2.400", "0", "200", "forwarding"],
    ]
    assert "lcores busy: 1 25%" in text


def test_summary_names_each_reason_for_a_drop() -> None:
    lines = report.summary(snapshot(10.0, 0), snapshot(12.0, 4)).splitlines()
    assert lines[0] == "2.000 s"
    assert lines[1] == "vfio-user:[a] - loop (forwarding)"
    assert lines[2] == (
        "  VM1 -> VF: 4000000 packets, 400000000 bytes, 2.000 Mpps, 1.600 Gbit/s, "
        "200 cycles/packet, 12 dropped"
    )
    assert lines[3] == "    dropped bad_next: 12"
    assert lines[-2] == ("  VF: packed rings, VM1 receives: mixed, changed 7 times, received 20")
    assert lines[-1] == "lcore 1: 25.0% busy"


def test_view_follows_stdout() -> None:
    assert isinstance(report.view(json=True), report.Silent)
    assert isinstance(report.view(json=False), report.Lines)
