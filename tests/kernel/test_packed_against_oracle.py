"""Kernel and oracle on packed rings of every kind: frames, verdicts, calls, memory, commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmd.kernel_library import isa_names
from tests.kernel.hostile import BURSTS, FRAMES
from tests.kernel.hostile_packed import PackedProgram, packed_rings
from tests.kernel.rig import receive, transmit

if TYPE_CHECKING:
    from collections.abc import Sequence

# The single path and the batch path, that by each kind of instructions there is.
PATHS = st.sampled_from([(False, "scalar"), *((True, isa) for isa in isa_names())])
_SETTINGS = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@_SETTINGS
@given(
    program=packed_rings(write=False),
    burst=BURSTS,
    path=PATHS,
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
    path=PATHS,
    far=st.booleans(),
)
def test_receive(
    program: PackedProgram,
    frames: Sequence[bytes],
    burst: int,
    path: tuple[bool, str],
    far: bool,
) -> None:
    with program.rig(far=far) as rig:
        rig.plain, rig.isa = path
        receive(rig, frames, burst)


@settings(_SETTINGS, max_examples=100)
@given(program=packed_rings(write=False, hostile=False))
def test_legal_chains_lose_only_runts(program: PackedProgram) -> None:
    with program.rig() as rig:
        outcome = transmit(rig)
    assert outcome.fault == "none"
    assert set(outcome.drops) <= {"runt"}
    assert outcome.packets + sum(outcome.drops.values()) == len({d.id for d in program.descs})
