"""`pmd bench` as a command: what it prints, and where."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from pmd import bench_plot
from pmd.bench import run
from pmd.bench_report import table

if TYPE_CHECKING:
    from pathlib import Path

    from pmd.bench_options import BenchOptions


def bench(options: BenchOptions, *, as_json: bool, plot: Path | None) -> None:
    """Measure, and print a table or a JSON list; progress goes to stderr, a line a case.

    Main thread. Raises as pmd/bench.py run, and pmd/bench_plot.py.
    """
    if plot is not None:
        bench_plot.require(plot)
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
        console = Console() if sys.stdout.isatty() else Console(width=160)
        console.print(table(found))
    if plot is not None:
        bench_plot.write(found, plot)


def _say(line: str) -> None:
    print(f"pmd: {line}", file=sys.stderr, flush=True)
