"""The protocol by which VM1 and a sleeping lcore wake each other, searched whole by spin.

notification.pml is the protocol; each mistake it knows must be found, or it would prove nothing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = Path(__file__).with_name("notification.pml")
SEARCH_TIMEOUT_S = 120.0
RINGS = ["split", "split event_index", "packed", "packed event_index"]
# What is left out or done in the wrong place, by which side stays asleep.
DEVICE_SLEEPS = "next==added"
VM1_SLEEPS = "seen==shown"
MISTAKES = {
    "no_arm_fence": DEVICE_SLEEPS,
    "no_second_look": DEVICE_SLEEPS,
    "arm_after_look": DEVICE_SLEEPS,
    "level_and_read": DEVICE_SLEEPS,
    "no_kick_fence": DEVICE_SLEEPS,
    "no_call_fence": VM1_SLEEPS,
    "call_before_publish": VM1_SLEEPS,
    "sleep_before_call": VM1_SLEEPS,
    "no_recheck": VM1_SLEEPS,
}


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Searches all states of the model with these names in MODEL; what the search said."""
    folder = tmp_path_factory.mktemp("spin")
    for command in (
        ["spin", "-a", str(MODEL)],
        ["gcc", "-O1", "-w", "-DSAFETY", "-o", "pan", "pan.c"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    def run(names: str) -> str:
        # Ends where everybody waits are judged by the model itself: -E.
        return subprocess.run(
            ["./pan", "-E", "-n", "-m1000000", "-w20"],
            cwd=folder,
            env={"MODEL": names},
            check=False,
            capture_output=True,
            text=True,
            timeout=SEARCH_TIMEOUT_S,
        ).stdout

    return run


@pytest.mark.parametrize("ring", RINGS)
def test_no_wake_up_is_lost(search: Callable[[str], str], ring: str) -> None:
    said = search(ring)
    assert "errors: 0" in said, said
    assert "Search not completed" not in said, said
    assert "max search depth too small" not in said, said


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(search: Callable[[str], str], mistake: str, ring: str) -> None:
    said = search(f"{ring} {mistake}")
    assert "errors: 1" in said, said
    assert f"assertion violated ({MISTAKES[mistake]}" in said.replace("((", "("), said


@pytest.mark.parametrize("ring", RINGS)
def test_a_coalesced_call_is_for_all_it_waited_with(
    search: Callable[[str], str], ring: str
) -> None:
    """Judged by the last publishing alone, it would miss an event passed before."""
    found = "errors: 1" in search(f"{ring} call_from_last")
    assert found == ("event_index" in ring)
