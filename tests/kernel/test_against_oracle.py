"""Kernel and oracle on rings of every kind: same frames, verdicts, calls, and bytes of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel.hostile import Program, rings
from tests.kernel.rig import Outcome, receive, transmit

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTINGS = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_BURSTS = st.sampled_from([1, 2, 3, 32, 256])
_FRAMES = st.lists(
    st.builds(
        lambda length, first: bytes((first + i) % 256 for i in range(length)),
        st.one_of(st.integers(14, 100), st.integers(14, 3000), st.sampled_from([1514, 8000])),
        st.integers(0, 255),
    ),
    max_size=12,
)


@_SETTINGS
@given(program=rings(write=False), burst=_BURSTS)
def test_transmit(program: Program, burst: int) -> None:
    with program.rig() as rig:
        transmit(rig, burst, program.publish)


@_SETTINGS
@given(program=rings(write=True), frames=_FRAMES, burst=_BURSTS)
def test_receive(program: Program, frames: Sequence[bytes], burst: int) -> None:
    with program.rig() as rig:
        receive(rig, frames, burst, program.publish)


@settings(_SETTINGS, max_examples=100)
@given(program=rings(write=False, hostile=False))
def test_legal_chains_lose_only_runts(program: Program) -> None:
    with program.rig() as rig:
        outcome: Outcome = transmit(rig)
    assert outcome.fault == "none"
    assert set(outcome.drops) <= {"runt", "chain_loop"}
    assert outcome.packets + sum(outcome.drops.values()) == len(program.heads)
