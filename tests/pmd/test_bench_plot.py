"""The picture of a benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from guest.errors import VhostPciError
from pmd import bench_plot
from pmd.bench_case import Case, Direction, Mode
from pmd.bench_result import rows
from tests.pmd.test_bench_rate import CASE, side

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True, scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps the fonts open that it has ever used: no leak of a test's."""
    figure = Figure()
    figure.subplots().set(title="0", xlabel="0")
    figure.savefig(tmp_path_factory.mktemp("fonts") / "0.svg")


def test_the_picture_has_a_panel_a_way_and_a_line_a_side(tmp_path: Path) -> None:
    ways = (Mode.NULL, Direction.TX), (Mode.GEN, Direction.RX)
    found = [
        row
        for mode, direction in ways
        for size in (64, 1518)
        for row in rows(Case(mode, direction, size), side(near_quiet=9.0), [side(near_quiet=3.0)])
    ]
    path = tmp_path / "rates.svg"
    bench_plot.require(path)
    with rc_context({"svg.fonttype": "none"}):  # letters as letters, to be found
        bench_plot.write(found, path)
    picture = path.read_text()
    for words in (
        "VM1 -&gt; VF",
        "VF -&gt; VM1",
        "pmd, near_quiet",
        "frame bytes",
        "1518",
        "cycles a",
        "pmd, dequeue",
        "pmd, enqueue",
    ):
        assert words in picture


def test_a_refused_pair_is_not_drawn(tmp_path: Path) -> None:
    refused = rows(CASE, side(near_quiet=9.0), [side(far_quiet=3.0)])
    with pytest.raises(VhostPciError, match="nothing was measured"):
        bench_plot.write(refused, tmp_path / "rates.svg")
