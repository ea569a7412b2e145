"""Kernel and oracle on packed rings of every kind: frames, verdicts, calls, memory, commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel.hostile import BURSTS, FRAMES
from tests.kernel.hostile_packed import PackedProgram, packed_rings
from tests.kernel.packed_driver import WRAP
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import DESC, receive, transmit

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTINGS = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@_SETTINGS
@given(
    program=packed_rings(write=False),
    burst=BURSTS,
    path=st.sampled_from([(False, "scalar"), (True, "scalar"), (True, "avx2")]),
    far=st.booleans(),
)
def test_transmit(program: PackedProgram, burst: int, path: tuple[bool, str], far: bool) -> None:
    with program.rig(far=far) as rig:
        rig.plain, rig.isa = path
        transmit(rig, burst)


@_SETTINGS
@given(
    program=packed_rings(write=True),
    frames=FRAMES,
    burst=BURSTS,
    plain=st.booleans(),
    far=st.booleans(),
)
def test_receive(
    program: PackedProgram, frames: Sequence[bytes], burst: int, plain: bool, far: bool
) -> None:
    with program.rig(far=far) as rig:
        rig.plain = plain
        receive(rig, frames, burst)


@_SETTINGS
@given(
    seed=st.integers(0, 1 << 32),
    size=st.sampled_from([1, 4, 13]),
    write=st.booleans(),
    sparse=st.integers(0, 100),
)
def test_s38_noise_for_a_ring(seed: int, size: int, write: bool, sparse: int) -> None:
    """Descriptors are random bytes, some of them zero; half of the flags say available."""
    noise = np.random.default_rng(seed)
    with PackedRig(size, WRAP, indirect=True, event_idx=bool(seed % 2), mergeable=write) as rig:
        data = noise.integers(0, 256, 16 * size, dtype=np.uint8)
        data[noise.integers(0, 100, 16 * size) < sparse] = 0
        marks = noise.integers(0, 2, size) == 0
        data[14::16][marks] = (data[14::16][marks] | 0x80).astype(np.uint8)
        data[15::16][marks] &= 0x7F
        rig.poke(DESC, data.tobytes())
        if write:
            receive(rig, [bytes(100)] * 3)
        else:
            transmit(rig)


@settings(_SETTINGS, max_examples=100)
@given(program=packed_rings(write=False, hostile=False))
def test_legal_chains_lose_only_runts(program: PackedProgram) -> None:
    with program.rig() as rig:
        outcome = transmit(rig)
    assert outcome.fault == "none"
    assert set(outcome.drops) <= {"runt"}
    assert outcome.packets + sum(outcome.drops.values()) == len({d.id for d in program.descs})
