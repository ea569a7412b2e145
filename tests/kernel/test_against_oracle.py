"""Kernel and oracle on rings of every kind: same frames, verdicts, calls, and bytes of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel.hostile import BURSTS, FRAMES, Program, rings
from tests.kernel.rig import AVAIL, RINGS, RINGS_SIZE, Outcome, Rig, receive, transmit

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTINGS = settings(
    max_examples=300,
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


@_SETTINGS
@given(
    seed=st.integers(0, 1 << 32),
    size=st.sampled_from([1, 4, 16]),
    write=st.booleans(),
    sparse=st.integers(0, 100),
)
def test_s38_noise_for_a_ring(seed: int, size: int, write: bool, sparse: int) -> None:
    """Ring and tables are random bytes, some of them zero; only the indices let it start."""
    noise = np.random.default_rng(seed)
    with Rig(size, indirect=True, event_idx=bool(seed % 2), mergeable=write) as rig:
        data = noise.integers(0, 256, RINGS_SIZE, dtype=np.uint8)
        data[noise.integers(0, 100, RINGS_SIZE) < sparse] = 0
        rig.poke(RINGS, data.tobytes())
        heads = noise.integers(0, size + (seed % 8 == 0), size, dtype="<u2")
        rig.poke(AVAIL + 4, heads.tobytes())
        rig.set_index(seed % 65536)
        rig.index += size
        rig.make_available()
        if write:
            receive(rig, [bytes(100)] * 3)
        else:
            transmit(rig)


@settings(_SETTINGS, max_examples=100)
@given(program=rings(write=False, hostile=False))
def test_legal_chains_lose_only_runts(program: Program) -> None:
    with program.rig() as rig:
        outcome: Outcome = transmit(rig)
    assert outcome.fault == "none"
    assert set(outcome.drops) <= {"runt", "chain_loop"}
    assert outcome.packets + sum(outcome.drops.values()) == len(program.heads)
