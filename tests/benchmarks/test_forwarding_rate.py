"""`pmd bench` by its quick table, beside DPDK's testpmd: the same code, with its rows kept.

The times that pytest-benchmark shows are those of whole cases; extra_info has what was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pmd.bench import run
from pmd.bench_case import Case, Ring, quick
from pmd.bench_options import BenchFlags

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.parametrize("case", quick([Ring.SPLIT]), ids=lambda case: case.name)
def test_forwarding_rate(
    benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    benchmark.group = "forwarding rate"
    flags = BenchFlags(
        peer=["testpmd"], mode=case.mode, direction=case.direction, size=str(case.frame_bytes)
    )
    rows = benchmark.pedantic(lambda: list(run(flags.options(), print)), rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info["rows"] = [row.json_object() for row in rows]
    assert rows
    for row in rows:
        assert row.case == case
        assert row.ours is not None
        assert row.ours.mpps > 0
        with capsys.disabled():
            print(f"\n{row.case.name}: {row.json_object()}")
