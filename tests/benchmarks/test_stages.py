"""The kernel's stages timed by themselves, on rings that another core has just written.

VM1 is a thread on CPU 0, the kernel runs on CPU 1: each round VM1 fills the ring, which is not
timed, then the kernel empties it. The times shown are of a whole ring; extra_info has TSC cycles a
packet, the best round's and the median round's.
"""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING

import pytest

from guest.cpus import pin_current_thread
from tools.stage.budget import Scenario
from tools.stage.build import build, kernel_path
from tools.stage.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 400
WARM_UP = 40

STAGES = {
    "dequeue": [Scenario(kind, size) for kind in ("null", "copy", "held") for size in (64, 1518)],
    "enqueue": [Scenario(kind, size) for kind in ("gen", "direct") for size in (64, 1518)],
    "both ways": [Scenario("loop", size) for size in (64, 1518)],
    "packed": [Scenario(kind, packed=True) for kind in ("null", "gen", "direct", "loop")],
    "batch": [Scenario("null", burst=burst) for burst in (1, 8, 32, 128, 256)],
    "copy or hold": [
        Scenario(kind, size)
        for kind in ("vf-copied", "vf-held")
        for size in (64, 128, 256, 512, 1024, 1518)
    ],
    "queue size": [Scenario("null", queue_size=size) for size in (128, 1024, 4096)],
    # "spread": each buffer in another region than the one before; "clustered": 64 side by side.
    "memory table, spread": [
        Scenario(kind, regions=count) for kind in ("null", "gen") for count in (1, 2, 8, 4000)
    ],
    "memory table, clustered": [
        Scenario(kind, regions=count, run=64) for kind in ("null", "gen") for count in (2, 4000)
    ],
}
ALL = [
    pytest.param(group, each, id=f"{each.name}, queue {each.queue_size}, burst {each.burst}")
    for group, scenarios in STAGES.items()
    for each in scenarios
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stage") / "libstage.so"
    build(path, kernel_path(), shared=True)
    return path


@pytest.fixture(autouse=True)
def on_a_cpu_of_its_own() -> Iterator[int]:
    """Pins this thread to the last CPU; the first one is VM1's."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("VM1 needs a CPU of its own")
    pin_current_thread(max(allowed))
    yield min(allowed)
    os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(("group", "scenario"), ALL)
def test_stage(
    benchmark: BenchmarkFixture,
    library: Path,
    on_a_cpu_of_its_own: int,
    group: str,
    scenario: Scenario,
) -> None:
    benchmark.group = group
    each = []
    with Stage(library, scenario, on_a_cpu_of_its_own) as stage:
        before = stage.work()

        def work() -> None:
            cycles = stage.cycles
            stage.work()
            each.append(stage.cycles - cycles)

        benchmark.pedantic(  # type: ignore[no-untyped-call]
            work, setup=stage.fill, rounds=ROUNDS, warmup_rounds=WARM_UP
        )
        packets = stage.work() - before
    a_round = scenario.queue_size * (2 if scenario.kind == "loop" else 1)
    assert packets == a_round * len(each)
    del each[:WARM_UP]
    benchmark.extra_info.update(
        packets=a_round,
        cycles_per_packet_best=round(min(each) / a_round, 1),
        cycles_per_packet_median=round(statistics.median(each) / a_round, 1),
    )


@pytest.mark.parametrize("regions", [1, 8, 64, 4000])
def test_translation(
    benchmark: BenchmarkFixture, library: Path, on_a_cpu_of_its_own: int, regions: int
) -> None:
    benchmark.group = "translate"
    scenario = Scenario("null", regions=regions, queue_size=4096)
    with Stage(library, scenario, on_a_cpu_of_its_own) as stage:
        count = benchmark(stage.translate)
    assert count == scenario.queue_size
    benchmark.extra_info["translations"] = count
