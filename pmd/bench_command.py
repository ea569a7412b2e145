"""`pmd bench` as a command: what it prints, and where."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from guest.errors import UsageError
from pmd import bench_plot
from pmd.bench import run
from pmd.bench_latency import latencies
from pmd.bench_report import latency_table, table

if TYPE_CHECKING:
    from pathlib import Path

    from pmd.bench_options import BenchOptions


def bench(options: BenchOptions, *, as_json: bool, plot: Path | None) -> None:
    """Measure, and print a table or a JSON list; progress goes to stderr, a line a case.

    Main thread. Raises as pmd/bench.py run, and pmd/bench_plot.py.
    """
    if plot is not None:
        bench_plot.require(plot)
    if options.rates_pps:
        if plot is not None:
            raise UsageError("use", f"--plot {plot}", "it draws rates, and --latency is there")
        _show_latencies(options, as_json=as_json)
        return
    found = []
    with contextlib.closing(run(options, _say)) as rows:
        for row in rows:
            found.append(row)
            if sys.stderr.isatty():
                _say(f"{len(found)}: {row.case.name}")
    if as_json:
        print(json.dumps([row.json_object() for row in found]), flush=True)
    else:
        # A pipe has no width: nothing is to be cut off for one.
        console = Console() if sys.stdout.isatty() else Console(width=200)
        console.print(table(found))
    if plot is not None:
        bench_plot.write(found, plot)


def _show_latencies(options: BenchOptions, *, as_json: bool) -> None:
    found = latencies(options, _say)
    if as_json:
        print(json.dumps([row.json_object() for row in found]), flush=True)
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(latency_table(found))


def _say(line: str) -> None:
    print(f"pmd: {line}", file=sys.stderr, flush=True)
