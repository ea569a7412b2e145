"""DMA memory and I/O addresses: what is given out, and what comes back."""

from __future__ import annotations

import ctypes

import pytest

from guest.dma import DmaMemory, IovaSpace
from guest.errors import VhostPciError
from tests.driver.igb_model import IgbModel

HUGE = 2 << 20


def test_addresses_never_overlap_and_are_never_zero() -> None:
    space = IovaSpace([(0, 16 * HUGE - 1)])
    assert [space.take(4096), space.take(HUGE), space.take(HUGE + 1), space.take(1)] == [
        HUGE,
        2 * HUGE,
        3 * HUGE,
        5 * HUGE,
    ]


def test_a_hole_is_stepped_over() -> None:
    space = IovaSpace([(0, 2 * HUGE - 1), (4 * HUGE + 5, 8 * HUGE - 1)])
    assert space.take(HUGE) == HUGE
    assert space.take(HUGE) == 5 * HUGE
    assert space.take(2 * HUGE) == 6 * HUGE
    with pytest.raises(VhostPciError, match="no room of that size"):
        space.take(1)


def test_the_last_byte_counts() -> None:
    with pytest.raises(VhostPciError, match="no room of that size"):
        IovaSpace([(0, 2 * HUGE - 2)]).take(HUGE)
    assert IovaSpace([(0, 2 * HUGE - 1)]).take(HUGE) == HUGE
    assert IovaSpace([]).take(4096) == HUGE


def test_what_no_range_holds_needs_more_address_bits() -> None:
    space = IovaSpace([(0, HUGE - 1), (2 * HUGE, 4 * HUGE - 1)])
    with pytest.raises(VhostPciError) as refusal:
        space.take(2 * HUGE + 1)
    assert str(refusal.value) == (
        f"cannot map for DMA {2 * HUGE + 1} bytes: the IOMMU translates at most {2 * HUGE} in one "
        "piece; give it more address bits: in a VM, intel-iommu,aw-bits=48"
    )
    assert space.take(2 * HUGE) == 2 * HUGE


def test_memory_is_zero_mapped_and_given_back() -> None:
    function = IgbModel()
    with DmaMemory(function, IovaSpace([]), 4096) as memory:
        assert memory.size == HUGE
        assert function.dma == {memory.iova: (memory.address, HUGE)}
        assert ctypes.string_at(memory.address, HUGE) == bytes(HUGE)
    assert function.dma == {}
    memory.close()
    function.dispose()


def test_a_refused_mapping_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    function = IgbModel()

    def refuse(*_: object, **__: object) -> None:
        raise VhostPciError("map for DMA", "it", "no")

    monkeypatch.setattr(function, "dma_map", refuse)
    with pytest.raises(VhostPciError, match="cannot map for DMA it: no"):
        DmaMemory(function, IovaSpace([]), 4096)
    function.dispose()
