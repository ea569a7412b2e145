"""Kernel and oracle on rings of every kind: same frames, verdicts, calls, and bytes of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel.hostile import BURSTS, FRAMES, Program, rings
from tests.kernel.rig import Outcome, receive, transmit
from tests.noise import try_seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

NOISY = 300  # seeds
_SETTINGS = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@_SETTINGS
@given(program=rings(write=False), burst=BURSTS, plain=st.booleans(), far=st.booleans())
def test_transmit(program: Program, burst: int, plain: bool, far: bool) -> None:
    with program.rig(far=far) as rig:
        rig.plain = plain
        transmit(rig, burst, program.publish)


@_SETTINGS
@given(
    program=rings(write=True), frames=FRAMES, burst=BURSTS, plain=st.booleans(), far=st.booleans()
)
def test_receive(
    program: Program, frames: Sequence[bytes], burst: int, plain: bool, far: bool
) -> None:
    with program.rig(far=far) as rig:
        rig.plain = plain
        receive(rig, frames, burst, program.publish)


def test_s38_noise_for_a_ring(seed: int) -> None:
    """A few seeds of `python -m tests.noise`, split and packed."""
    try_seeds(range(seed, seed + NOISY))


@settings(_SETTINGS, max_examples=100)
@given(program=rings(write=False, hostile=False))
def test_legal_chains_lose_only_runts(program: Program) -> None:
    with program.rig() as rig:
        outcome: Outcome = transmit(rig)
    assert outcome.fault == "none"
    assert set(outcome.drops) <= {"runt", "chain_loop"}
    assert outcome.packets + sum(outcome.drops.values()) == len(program.heads)
