"""The picture of a benchmark: rates by frame size, ours against peers, one panel a direction."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from guest.errors import UsageError, VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pmd.bench_rate import Rate
    from pmd.bench_result import Row

_PANEL_INCHES = (5.0, 4.0)


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

    series = _series(rows)
    if not series:
        raise VhostPciError("draw", str(path), "nothing was measured")
    panels = sorted({panel for panel, _ in series})
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for (of, label), points in sorted(series.items()):
            if of == panel:
                _draw(axis, label, points)
        axis.set(title=panel, xlabel="frame bytes", ylabel="Mpps", ylim=(0, None))
        axis.set_xscale("log", base=2)
        sizes = sorted(
            {size for (of, _), points in series.items() if of == panel for size in points}
        )
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    try:
        figure.savefig(path, format="svg", metadata={"Date": None})
    except OSError as error:
        raise VhostPciError("write", os.fspath(path), errno_text(error)) from error


def _series(rows: Sequence[Row]) -> dict[tuple[str, str], dict[int, Rate]]:
    """Rates by size, for each panel and line. A refused pair is not drawn side by side."""
    found: dict[tuple[str, str], dict[int, Rate]] = {}
    for row in rows:
        if row.refusal:
            continue
        case = row.case
        panel = f"{case.way}\n{case.ring}, queue {case.queue_size}"
        for name, rate in ("pmd", row.ours), (row.peer, row.theirs):
            if rate is not None:
                line = found.setdefault((panel, f"{name}, {rate.condition}"), {})
                line[case.frame_bytes] = rate
    return found


def _draw(axis: Any, label: str, points: dict[int, Rate]) -> None:  # noqa: ANN401 - Axes is optional
    sizes = sorted(points)
    rates = [points[size] for size in sizes]
    below = [rate.mpps - rate.low for rate in rates]
    above = [rate.high - rate.mpps for rate in rates]
    middle = [rate.mpps for rate in rates]
    axis.errorbar(sizes, middle, yerr=[below, above], marker="o", capsize=3, label=label)
