"""No stage of the kernel needs more instructions a packet than its budget: any machine can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guest.errors import VhostPciError
from tools.stage import budget
from tools.stage.build import build, compiler, kernel_path

if TYPE_CHECKING:
    from pathlib import Path


def test_every_stage_is_within_its_budget() -> None:
    allowed = budget.budget(budget.key(), budget.recorded())
    if allowed is None:
        pytest.skip(f"counts of other compilers mean nothing for {budget.key()}")
    print(f"{budget.key()} by the budget of {allowed.key}, with {allowed.slack:.0%} of slack")
    remedy = "if it is worth it: python -m tools.stage.budget --record"
    assert allowed.over(budget.counts()) == [], remedy


def test_what_is_over_a_budget() -> None:
    allowed = budget.Budget("m, gcc 12", {"a": 100.0, "b": 100.0, "c": 100.0})
    found = {"a": 103.0, "b": 103.1, "c": 50.0, "new": 1.0}
    assert allowed.over(found) == [
        "b: 103.10 instructions a packet, budget 100.00 of m, gcc 12 and 3%",
        "new: 1.00 instructions a packet, budget 0.00 of m, gcc 12 and 3%",
    ]


def test_a_compiler_without_a_budget_has_the_nearest_ones() -> None:
    everything = {key: {"a": 1.0} for key in ("m, gcc 9", "m, gcc 12", "m, clang 14")}
    for wanted, found in (
        ("m, gcc 12", "m, gcc 12"),
        ("m, gcc 14", "m, gcc 12"),
        ("m, gcc 10", "m, gcc 9"),
        ("m, clang 19", "m, clang 14"),
    ):
        nearest = budget.budget(wanted, everything)
        assert nearest is not None
        assert nearest.key == found
        assert nearest.slack == (budget.SLACK if wanted == found else budget.SLACK_OF_ANOTHER)
    assert budget.budget("n, gcc 12", everything) is None
    assert budget.budget("m, tcc 1", everything) is None


def test_the_compiler_of_a_library(tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.write_bytes(b"\0\0GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0\0")
    assert compiler(library) == "gcc 12"
    library.write_bytes(b"\0Debian clang version 14.0.6\0GCC: (GNU) 13.1.0\0")
    assert compiler(library) == "clang 14"
    library.write_bytes(b"\0")
    with pytest.raises(VhostPciError, match="it does not say"):
        compiler(library)


def test_a_stage_that_is_none(tmp_path: Path) -> None:
    program = tmp_path / "stage"
    build(program, kernel_path(), shared=False)
    with pytest.raises(VhostPciError, match="cannot count frob 64 B: "):
        budget.count(program, budget.Scenario("frob"))
