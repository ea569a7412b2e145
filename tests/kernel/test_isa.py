"""What is compiled for more than every processor has: chosen as told, and alike in all it does."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.offloads import Offloads
from guest.errors import UsageError
from pmd.kernel import FRAME_MAX, DirectionStats
from pmd.kernel_library import isa_name, isa_names, library
from tests.kernel.offload_frames import asking, packet
from tests.kernel.packed_driver import WRAP
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import (
    BIG,
    DATA,
    DATA_SEAM,
    READ_ONLY,
    TOP,
    WRITE,
    Outcome,
    Rig,
    receive,
    transmit,
)
from tests.kernel.test_offload import ALL, done, send

if TYPE_CHECKING:
    from collections.abc import Callable

ISAS = isa_names()
CHAINS = 40
_SETTINGS = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_PATHS = settings(_SETTINGS, max_examples=60)  # each runs once a path

# Where a buffer may begin, how long it may be: borders of regions, of frames, and of numbers.
_ADDRESSES = st.one_of(
    st.integers(DATA, DATA + 0x3000),
    st.integers(BIG, BIG + 0x8000),
    st.integers(DATA_SEAM - 80, DATA_SEAM + 20),
    st.sampled_from([TOP, TOP + 0xFF0, READ_ONLY, 0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
_LENGTHS = st.one_of(
    st.integers(60, 120),
    st.sampled_from([0, 1, 11, 12, 25, 26, 27, 65573, 65574, 65575, 0x7FFFFFFF, 0xFFFFFFFF]),
    st.integers(0, (1 << 32) - 1),
)
_BURSTS = st.sampled_from([4, 7, 8, 13, 32])
_BASES = st.sampled_from([DATA, BIG])
_STARTS = st.sampled_from([WRAP, WRAP + 61, 3, 62])  # in either lap, within lines and on them
_FRAMES = st.lists(st.sampled_from([60, 60, 60, 128, 129, 400]), min_size=20, max_size=45)
_FLAGS = st.sampled_from([0, 0, WRITE, 1 << 3, 1 << 14])
_ODD = st.dictionaries(
    st.integers(0, CHAINS - 1), st.tuples(_ADDRESSES, _LENGTHS, _FLAGS), max_size=3
)


def test_it_is_chosen_as_told() -> None:
    with Rig(8) as rig:
        default = ISAS[:2][-1]
        for said, found in (*zip(ISAS, ISAS, strict=True), ("scalar", "scalar"), ("", default)):
            rig.isa = said
            rig.queue(DirectionStats())
            assert isa_name() == found


def test_it_knows_the_processor() -> None:
    """As Linux tells it (it is at least as careful): with what each is made of."""
    flags = Path("/proc/cpuinfo").read_text().split()
    needs = {"scalar": [], "avx2": ["avx2"], "avx512": ["avx512f", "avx512bw", "avx512vl"]}
    assert [isa for isa, parts in needs.items() if set(parts) <= set(flags)] == list(ISAS)


@_SETTINGS
@given(
    isa=st.sampled_from(ISAS),
    odd=_ODD,
    burst=_BURSTS,
    base=_BASES,
    beyond=st.sampled_from([None, None, None, 39, 20]),
)
def test_split(
    isa: str, odd: dict[int, tuple[int, int, int]], burst: int, base: int, beyond: int | None
) -> None:
    """Plain chains in one region, of which a few are otherwise: the first burst finds the region.

    beyond: where the available ring names a descriptor that is none.
    """
    with Rig(64, mergeable=burst % 2 == 0) as rig:
        rig.isa = isa
        order = random.Random(burst).sample(range(64), CHAINS)
        for number, head in enumerate(order):
            rig.desc(head, *odd.get(number, (base + 150 * number, 100 + number, 0)))
        rig.make_available(*(64 + head if at == beyond else head for at, head in enumerate(order)))
        outcome = transmit(rig, burst)
    if not odd and beyond is None:
        assert outcome.packets == CHAINS


def _alike(run: Callable[[PackedRig], Outcome], start: int, **features: bool) -> Outcome:
    """What it comes to on a ring of 64: the same by the single path and by each batch path."""
    outcomes = []
    for plain, isa in ((False, "scalar"), *((True, isa) for isa in ISAS)):
        with PackedRig(64, start, far=True, **features) as rig:
            rig.plain, rig.isa = plain, isa
            outcomes.append(run(rig))
    assert outcomes == outcomes[:1] * len(outcomes)
    return outcomes[0]


@_PATHS
@given(odd=_ODD, burst=_BURSTS, base=_BASES, start=_STARTS, in_order=st.booleans())
def test_packed(
    odd: dict[int, tuple[int, int, int]], burst: int, base: int, start: int, in_order: bool
) -> None:
    def run(rig: PackedRig) -> Outcome:
        for number in range(CHAINS):
            address, length, flags = odd.get(number, (base + 150 * number, 100 + number, 0))
            rig.driver.post(number, [(address, length)], flags)
        rig.driver.show()
        return transmit(rig, burst)

    outcome = _alike(run, start, in_order=in_order)
    if not odd:
        assert outcome.packets == CHAINS


@_PATHS
@given(odd=_ODD, burst=_BURSTS, base=_BASES, start=_STARTS, frames=_FRAMES)
def test_packed_receive(
    odd: dict[int, tuple[int, int, int]], burst: int, base: int, start: int, frames: list[int]
) -> None:
    """Of an odd buffer, the flag of one for writing is turned round as others are."""

    def run(rig: PackedRig) -> Outcome:
        for number in range(CHAINS):
            address, length, flags = odd.get(number, (base + 150 * number, 140, 0))
            rig.driver.post(number, [(address, length)], flags ^ WRITE)
        rig.driver.show()
        return receive(rig, [bytes([n]) * length for n, length in enumerate(frames)], burst)

    outcome = _alike(run, start, mergeable=burst % 2 == 0)
    if not odd and max(frames) <= 128:
        assert outcome.packets == min(len(frames), CHAINS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [Rig, PackedRig])
@pytest.mark.parametrize(
    ("length", "verdict"),
    [(25, "runt"), (26, "sent"), (FRAME_MAX + 12, "sent"), (FRAME_MAX + 13, "oversize")],
)
def test_shortest_and_longest(kind: type[Rig], length: int, verdict: str, isa: str) -> None:
    """Of eight chains in a region, after four by which it is found, one."""
    with kind(16) as rig:
        rig.isa = isa
        for number in range(12):
            rig.chain(number, [(BIG + number, length if number == 9 else 100)])
        outcome = transmit(rig, 4)
    assert outcome.drops == ({} if verdict == "sent" else {verdict: 1})
    assert outcome.packets == 12 - len(outcome.drops)


@pytest.mark.parametrize("isa", ISAS)
def test_checksums(isa: str) -> None:
    """Of all lengths around what a vector holds, from one to many of them."""
    frames = [asking(packet(bytes(range(7, 7 + n % 200)) * (n // 200 + 1))) for n in range(330)]
    with patch.dict(os.environ, PMD_KERNEL_ISA=isa):
        for first in range(0, len(frames), 66):
            part = frames[first : first + 66]
            expected = [each for frame in part for each in done(frame, ALL, Offloads(0))]
            assert send(part, isa=isa) == (expected, {})


def test_what_it_cannot_be_is_refused() -> None:
    """Nobody measures, or tests, other code than was asked for."""
    library.cache_clear()  # it is asked when it is loaded
    try:
        with (
            patch.dict(os.environ, PMD_KERNEL_ISA="avx1024"),
            pytest.raises(UsageError, match=r"use PMD_KERNEL_ISA=avx1024: .*; give one of scalar"),
        ):
            library()
    finally:
        library.cache_clear()
