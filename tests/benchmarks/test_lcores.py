"""Two lcores at once beside one alone: both forward all, and gains are told by condition."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pmd.kernel import tsc_hz
from tools.stage.build import build, kernel_path
from tools.stage.lcores import CASES, QUEUE_SIZE, Lcores, LcoreSlice, Triple, by_condition, line
from tools.vm1.probe import Reading

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 20


def test_each_lcore_empties_its_own_rings_alone_and_beside_the_other(tmp_path: Path) -> None:
    cpus = tuple(sorted(os.sched_getaffinity(0)))[-2:]
    if len(cpus) < 2:
        pytest.skip("two lcores need two CPUs")
    library = tmp_path / "libstage.so"
    build(library, kernel_path(), shared=True)

    def slices(kind: str, *, packed: bool) -> list[LcoreSlice]:
        with Lcores(library, kind, cpus, packed=packed) as lcores:
            return [lcores.alone(0, ROUNDS), *lcores.both(ROUNDS), lcores.alone(1, ROUNDS)]

    with ThreadPoolExecutor(1) as thread:  # which it pins
        for kind, packed in CASES:
            found = thread.submit(slices, kind, packed=packed).result()
            packets = QUEUE_SIZE * ROUNDS * (2 if kind == "loop" else 1)
            assert [each.packets for each in found] == [packets] * 4, (kind, packed)
            assert all(each.longest_cycles > 0 and each.cycles > 0 for each in found)


def test_a_gain_is_of_what_both_cost_and_of_the_condition_it_was_met_in() -> None:
    whole, half = (Reading(200.0, alu, 2.0) for alu in (2.0, 3.0))

    def triple(costs: tuple[int, int, int, int], after: Reading, longest: int = 1000) -> Triple:
        first, second, *both = (LcoreSlice(100, 100 * cost, longest) for cost in costs)
        return Triple((first, second), (both[0], both[1]), whole, after)

    flat, shared = triple((20, 30, 20, 30), whole), triple((20, 20, 40, 40), half)
    taken_away = triple((20, 20, 20, 20), whole, tsc_hz() // 1000)
    assert flat.gain == 2
    assert shared.gain == 1
    found = by_condition([flat, taken_away, flat, shared], 2.0)
    assert found == {"far_quiet": [flat, flat], "far_busy": [shared]}
    words = line("null", "far_quiet", found["far_quiet"]).split()
    assert words == ["null", "far_quiet", "2", "20.0", "30.0", "20.0", "30.0", *["2.00"] * 3]
