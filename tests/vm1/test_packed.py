"""Packed rings (2.8) in verify mode: nothing is missed, and every fault is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.vm1.backend import OFFERED, Backend
from tests.vm1.fault import Fault
from tests.vm1.test_verify import COUNT, short, verify
from tools.vhost_user_abi import Feature
from tools.vm1.options import MemoryOptions, RingOptions, Sizes, TrafficOptions
from tools.vm1.report import Ended

if TYPE_CHECKING:
    from pathlib import Path

PACKED = OFFERED | Feature.RING_PACKED
IN_ORDER = PACKED | Feature.IN_ORDER

LAYOUTS = {
    "default": RingOptions(),
    "two": RingOptions(size=2),
    "seven": RingOptions(size=7),
    "thousand, chains": RingOptions(size=1000, chain=3, receive_chain=2),
    "hundred, chains that do not divide it": RingOptions(size=100, chain=7, receive_chain=3),
    "chain as long as the ring": RingOptions(size=5, chain=5, receive_chain=5),
    "indirect": RingOptions(size=33, indirect=True, chain=5, receive_chain=2),
    "indirect, longer than the ring": RingOptions(size=3, indirect=True, chain=9),
    "no event_idx": RingOptions(event_idx=False),
    "not mergeable": RingOptions(mergeable=False),
    "merged": RingOptions(size=60, buffer_bytes=100),
    "merged, chains": RingOptions(size=111, buffer_bytes=100, receive_chain=2),
    "two pairs": RingOptions(size=50, pairs=2),
    "largest": RingOptions(size=32768, buffer_bytes=128),
}


@pytest.mark.parametrize("rings", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("in_order", [False, True])
def test_every_frame_comes_back(tmp_path: Path, rings: RingOptions, in_order: bool) -> None:
    """With IN_ORDER the back-end names only the last chain of a batch (2.8.9)."""
    sizes = Sizes(64, 128) if rings.size == 32768 else Sizes(60, 1514)
    traffic = TrafficOptions(count=COUNT, sizes=sizes, timeout_s=20)
    offered = IN_ORDER if in_order else PACKED
    with Backend(tmp_path / "socket", offered=offered, batch=in_order) as backend:
        result = verify(tmp_path / "socket", rings=replace(rings, packed=True), traffic=traffic)
    found = result.json_object()
    assert result.features & Feature.RING_PACKED
    assert bool(result.features & Feature.IN_ORDER) == in_order
    assert result.ended == Ended.DONE
    assert (found["sent"], found["received"], found["lost"]) == (COUNT, COUNT, 0)
    assert found["protocol_error_kinds"] == {}
    assert result.exit_status == 0
    assert (backend.received, backend.delivered) == (COUNT, COUNT)


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (Fault.BAD_ID, {"bad_id": 1}),
        (Fault.LONG_LENGTH, {"bad_length": 1}),
        (Fault.SHORT_LENGTH, {"bad_length": 1, "canary": 1}),
        (Fault.TRANSMIT_LENGTH, {"bad_length": 1}),
        (Fault.WRITE_BEHIND, {"canary": 1}),
        (Fault.MISSING_BUFFER, {"broken_merge": 1}),
        (Fault.WRITE_READABLE, {"readable_written": 1}),
        (Fault.WRITE_DESC, {"desc_written": 1}),
        (Fault.WRONG_BASE, {"base_mismatch": 1}),
    ],
)
def test_protocol_fault_is_seen(
    tmp_path: Path, fault: Fault, kinds: dict[str, int], in_order: bool
) -> None:
    offered = IN_ORDER if in_order else PACKED
    rings = RingOptions(packed=True, size=99, chain=2, receive_chain=1)
    with Backend(tmp_path / "socket", offered=offered, fault=fault):
        result = verify(tmp_path / "socket", rings=rings, traffic=short())
    assert result.json_object()["protocol_error_kinds"] == kinds
    assert result.exit_status == 1


def test_same_id_twice(tmp_path: Path) -> None:
    """With IN_ORDER the first would complete the chain that is passed over as well (2.8.9)."""
    rings = RingOptions(packed=True, size=99, chain=2)
    with Backend(tmp_path / "socket", offered=PACKED, fault=Fault.DUPLICATE_ID):
        result = verify(tmp_path / "socket", rings=rings, traffic=short())
    assert result.json_object()["protocol_error_kinds"] == {"duplicate_id": 1}


@pytest.mark.parametrize("indirect", [False, True])
def test_written_descriptors_of_long_chains(tmp_path: Path, indirect: bool) -> None:
    """2.8.6: the device writes a chain's first descriptor, no other, and no table."""
    rings = RingOptions(packed=True, size=99, chain=5, indirect=indirect)
    with Backend(tmp_path / "socket", offered=PACKED, fault=Fault.WRITE_DESC):
        result = verify(tmp_path / "socket", rings=rings)
    assert result.json_object()["protocol_error_kinds"] == {"desc_written": 1}
    assert (result.ended, result.lost) == (Ended.DONE, 0)


def test_more_used_than_available(tmp_path: Path) -> None:
    traffic = short(window=16, timeout_s=0.5)
    rings = RingOptions(packed=True)
    with Backend(tmp_path / "socket", offered=PACKED, fault=Fault.INDEX_JUMP, fault_at=16):
        result = verify(tmp_path / "socket", rings=rings, traffic=traffic)
    assert result.json_object()["protocol_error_kinds"]["index_jump"] == 1
    assert result.exit_status == 1


@pytest.mark.parametrize("in_order", [False, True])
def test_id_of_no_chain_in_flight(tmp_path: Path, in_order: bool) -> None:
    """With IN_ORDER an id may be ahead, and then ends a batch (2.8.9), but never behind."""
    offered = IN_ORDER if in_order else PACKED
    with Backend(tmp_path / "socket", offered=offered, fault=Fault.STALE_ID):
        result = verify(tmp_path / "socket", rings=RingOptions(packed=True), traffic=short())
    kinds = {"duplicate_id": 1} | ({"out_of_order": 1} if in_order else {})
    assert result.json_object()["protocol_error_kinds"] == kinds


@pytest.mark.parametrize("chain", [1, 3])
def test_order_is_free_without_in_order(tmp_path: Path, chain: int) -> None:
    rings = RingOptions(packed=True, chain=chain)
    with Backend(tmp_path / "socket", offered=PACKED, fault=Fault.OUT_OF_ORDER):
        result = verify(tmp_path / "socket", rings=rings)
    assert (result.ended, result.exit_status) == (Ended.DONE, 0)


@pytest.mark.parametrize("rings", [
    RingOptions(),
    RingOptions(packed=True, size=7),
    RingOptions(packed=True, size=100, chain=3),
], ids=["split", "packed", "packed, chains"])  # fmt: skip
@pytest.mark.parametrize("after", [0, 1, 3])
def test_kick_at_the_event(tmp_path: Path, rings: RingOptions, after: int) -> None:
    """2.7.10, 2.8.14: one kick when the chain asked for becomes available, and no other."""
    traffic = TrafficOptions(count=100, window=1, timeout_s=20)
    with Backend(tmp_path / "socket", offered=PACKED, kick_after=after):
        result = verify(tmp_path / "socket", rings=rings, traffic=traffic)
    assert result.exit_status == 0
    # Two when the rings start, then every so many-th frame, beginning with the first.
    assert result.json_object()["kicks"] == 2 + 100 // (after + 1)


@pytest.mark.parametrize("event_idx", [True, False])
def test_nobody_is_woken(tmp_path: Path, event_idx: bool) -> None:
    """2.8.10: a polling device is not kicked, but for the start; a polling driver is not called."""
    rings = RingOptions(packed=True, event_idx=event_idx)
    with Backend(tmp_path / "socket", offered=PACKED) as backend:
        result = verify(tmp_path / "socket", rings=rings)
        assert [ring.calls for ring in backend.rings[:2]] == [0, 0]
    assert result.exit_status == 0
    assert result.json_object()["kicks"] == 2


def test_parts_in_different_regions(tmp_path: Path) -> None:
    memory = MemoryOptions(regions=8)
    rings = RingOptions(packed=True, size=100, chain=2)
    with Backend(tmp_path / "socket", offered=PACKED):
        assert verify(tmp_path / "socket", rings=rings, memory=memory).exit_status == 0
