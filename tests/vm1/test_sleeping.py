"""verify --sleep: VM1 is woken by calls alone, and tells when one of them never came."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm1.backend import OFFERED, Backend
from tests.vm1.fault import Fault
from tests.vm1.test_verify import verify
from tools.vhost_user_abi import Feature
from tools.vm1.options import RingOptions, TrafficOptions
from tools.vm1.report import Ended

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 200
PACKED = OFFERED | Feature.RING_PACKED


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("rate_pps", [0, 5000])
def test_every_frame_is_called_for(
    tmp_path: Path, *, packed: bool, event_idx: bool, rate_pps: int
) -> None:
    """2.7.7.2, 2.8.10.2: both rings, each frame alone."""
    rings = RingOptions(packed=packed, event_idx=event_idx)
    traffic = TrafficOptions(count=COUNT, window=1, rate_pps=rate_pps, timeout_s=20, sleep=True)
    with Backend(tmp_path / "socket", offered=PACKED) as backend:
        result = verify(tmp_path / "socket", rings=rings, traffic=traffic)
        called = [ring.calls for ring in backend.rings[:2]]
    assert (result.ended, result.exit_status) == (Ended.DONE, 0)
    found = result.json_object()
    assert found["received"] == COUNT
    assert 0 < found["calls"] <= sum(called)


@pytest.mark.parametrize(
    ("packed", "fault", "lost"),
    [(False, Fault.LOSE_CALL, 1), (True, Fault.LOSE_TRANSMIT_CALL, 0)],
)
def test_a_lost_call_is_told(tmp_path: Path, *, packed: bool, fault: Fault, lost: int) -> None:
    """Nothing mends it: neither the other ring's call, nor time."""
    traffic = TrafficOptions(count=COUNT, window=1, timeout_s=1, sleep=True)
    rings = RingOptions(packed=packed)
    with Backend(tmp_path / "socket", offered=PACKED, fault=fault):
        result = verify(tmp_path / "socket", rings=rings, traffic=traffic)
    assert (result.ended, result.exit_status) == (Ended.TIMEOUT, 1)
    assert result.json_object()["protocol_error_kinds"] == {"lost_call": 1}
    assert result.lost == lost
