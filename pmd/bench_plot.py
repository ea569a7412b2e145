"""The picture of a benchmark: rates, and cycles by stage, by frame size; ours against peers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from guest.errors import UsageError, VhostPciError, errno_text
from pmd.bench_cycles import ALL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pmd.bench_rate import Rate
    from pmd.bench_result import Row

_PANEL_INCHES = (5.0, 3.5)


def require(path: Path) -> None:
    """See that the picture can be made, before anything is measured.

    Raises:
        UsageError: matplotlib is not installed, or path is no SVG's, or in no folder.
    """
    if path.suffix != ".svg":
        raise UsageError("use", f"--plot {path}", "the picture is an SVG", "end its name in .svg")
    if not path.absolute().parent.is_dir():
        raise UsageError("use", f"--plot {path}", "there is no such folder")
    try:
        import matplotlib.figure  # noqa: F401, PLC0415 - optional, and slow to load
    except ImportError as error:
        cause = "it needs matplotlib, which is not installed"
        remedy = "pip install 'vhost-pci-toolkit[bench]'"
        raise UsageError("use", f"--plot {path}", cause, remedy) from error


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the SVG.

    Raises:
        VhostPciError: There is nothing to draw, or the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to load

    panels = _panels([row for row in rows if not row.refusal])
    if not panels:
        raise VhostPciError("draw", str(path), "nothing was measured that can be compared")
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), 2 * height), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False)
    for index, (title, shown) in enumerate(panels.items()):
        above, below = axes[0][index], axes[1][index]
        _draw_rates(above, shown)
        _draw_cycles(below, shown)
        above.set(title=title, ylabel="Mpps", ylim=(0, None))
        below.set(ylabel="TSC cycles a packet, forwarding CPU", ylim=(0, None))
        for axis in above, below:
            _finish(axis, sorted({row.case.frame_bytes for row in shown}))
    try:
        figure.savefig(path, format="svg", metadata={"Date": None})
    except OSError as error:
        raise VhostPciError("write", os.fspath(path), errno_text(error)) from error


def _panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what they have in common but the size; those of one size only if there are no others.

    A refused pair is not drawn: it would be compared all the same.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        title = f"{row.case.way}\n{row.case.ring}, queue {row.case.queue_size}"
        found.setdefault(title, []).append(row)
    long = {
        title: shown
        for title, shown in found.items()
        if len({row.case.frame_bytes for row in shown}) > 1
    }
    return long or found


def _draw_rates(axis: Any, rows: Sequence[Row]) -> None:  # noqa: ANN401 - Axes is optional
    """A line for each side and condition, with the 10th and 90th percentile."""
    lines: dict[str, dict[int, Rate]] = {}
    for row in rows:
        for name, rate in ("pmd", row.ours), (row.peer, row.theirs):
            if rate is not None:
                points = lines.setdefault(f"{name}, {rate.condition}", {})
                points[row.case.frame_bytes] = rate
    for label, points in lines.items():
        rates = list(points.values())
        below = [rate.mpps - rate.low for rate in rates]
        above = [rate.high - rate.mpps for rate in rates]
        middle = [rate.mpps for rate in rates]
        axis.errorbar(list(points), middle, [below, above], marker="o", capsize=3, label=label)


def _draw_cycles(axis: Any, rows: Sequence[Row]) -> None:  # noqa: ANN401 - Axes is optional
    """A line for each stage of ours, one for all of them where there are two, one for each peer."""
    lines: dict[str, dict[int, float]] = {}
    for row in rows:
        told = {f"pmd, {stage}": cycles for stage, cycles in row.stages.items()}
        if len(told) != 1 and ALL in row.ours_cycles:
            told["pmd"] = row.ours_cycles[ALL]
        if ALL in row.peer_cycles:
            told[row.peer] = row.peer_cycles[ALL]
        for name, cycles in told.items():
            lines.setdefault(name, {})[row.case.frame_bytes] = cycles.middle
    for label, points in lines.items():
        axis.plot(list(points), list(points.values()), marker="o", label=label)


def _finish(axis: Any, sizes: Sequence[int]) -> None:  # noqa: ANN401 - Axes is optional
    axis.set(xlabel="frame bytes")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
