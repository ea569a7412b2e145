"""Forwarding rate by frame and queue size, beside DPDK's testpmd with the same driver.

The driver is the embedded VM1's replay: its rings are always full (or stocked), and each frame's
descriptor, header and first 64 bytes are written anew. It runs on CPU 0, `pmd` or testpmd on
CPU 1, by turns, so that whatever else the machine does meets both. The figures are VM1's own, in
million frames a second: the best of its slices of 50 ms, because other load only ever makes a
slice worse, and of those the median round. extra_info has all of them, the medians of the slices
too, and the ratio. The times that pytest-benchmark shows are those of whole rounds.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.processes import Device, Pmd, Vm1
from tests.system.testpmd import Testpmd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 5
SAMPLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Case:
    """What moves where.

    vf: our VF. peer: the second port of testpmd, which does the same with VM1's frames; empty: its
    only port gives them back to itself. direction: of VM1's rings.
    """

    vf: str
    peer: str
    direction: str
    size: int
    queue_size: int

    def __str__(self) -> str:
        return f"{self.vf.partition(':')[0]}-{self.size}-{self.queue_size}"

    @property
    def options(self) -> list[str]:
        """VM1's."""
        options = ["--direction", self.direction, "--size", str(self.size)]
        return [*options, "--queue-size", str(self.queue_size), "--seconds", str(SAMPLE_S)]


def _cases() -> Iterator[Case]:
    for size, queue_size in itertools.product([64, 256, 1518], [256, 1024]):
        yield Case("null", "net_null0,no-rx=1", "tx", size, queue_size)
        yield Case("loop", "", "both", size, queue_size)
        yield Case(f"gen:{size}", f"net_null0,size={size}", "rx", size, queue_size)


class Rates:
    """Million frames a second, a figure a round, of both sides."""

    def __init__(self, case: Case) -> None:
        self.best: dict[str, list[float]] = {"ours": [], "peer": []}
        self.median: dict[str, list[float]] = {"ours": [], "peer": []}
        self._counted = "rx" if case.direction == "rx" else "tx"

    def add(self, side: str, result: dict[str, Any]) -> None:
        """Takes over what a VM1 measured."""
        self.best[side].append(result[f"{self._counted}_mpps_best"])
        self.median[side].append(result[f"{self._counted}_mpps_median"])

    def typical(self, side: str) -> float:
        """The median round's best slice."""
        return statistics.median(self.best[side])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", list(_cases()), ids=str)
def test_forwarding_rate(
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    huge_pages: bool,
    case: Case,
) -> None:
    options = case.options + (["--huge-pages"] if huge_pages else [])
    socket = tmp_path / "peer"
    ports = [port for port in (f"net_vhost0,iface={socket},queues=1", case.peer) if port]
    rates = Rates(case)
    with (
        Device(tmp_path) as device,
        Testpmd(ports, cpu=1, queue_size=case.queue_size, huge_pages=huge_pages) as peer,
    ):

        def sample(side: str) -> None:
            with contextlib.ExitStack() as stack:
                if side == "ours":
                    stack.enter_context(Pmd([(device.function, case.vf)], cpu=1))
                else:
                    peer.start("io")
                    stack.callback(peer.stop_forwarding)
                back_end = device.vhost_user if side == "ours" else socket
                vm1 = stack.enter_context(Vm1("replay", back_end, *options))
                rates.add(side, vm1.result())

        turns = itertools.cycle([("ours", "peer"), ("peer", "ours")])

        def both() -> None:
            for side in next(turns):
                sample(side)

        benchmark.pedantic(both, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    ours, theirs = rates.typical("ours"), rates.typical("peer")
    assert min(ours, theirs) > 0
    ratio = round(ours / theirs, 3)
    benchmark.extra_info.update(
        best=rates.best, median=rates.median, ratio=ratio, huge_pages=huge_pages
    )
    with capsys.disabled():
        print(f"\n{case}: {ours:.2f} Mpps, testpmd {theirs:.2f} Mpps, ratio {ratio:.2f}")
