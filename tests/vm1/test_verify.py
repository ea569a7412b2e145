"""verify mode against a back-end that loops: nothing is missed, and every fault is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.vm1.backend import OFFERED, Backend
from tests.vm1.fault import Fault
from tools.vhost_user_abi import Feature
from tools.vm1.options import (
    MemoryOptions,
    Mode,
    Options,
    RingOptions,
    Sizes,
    Socket,
    TrafficOptions,
)
from tools.vm1.report import Ended, Result
from tools.vm1.session import Session

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 1000
IN_ORDER = OFFERED | Feature.IN_ORDER


def verify(path: Path, **changed: Any) -> Result:  # noqa: ANN401 - fields of Options
    """Run verify mode with COUNT frames; changed replaces parts of the options."""
    traffic = TrafficOptions(count=COUNT, timeout_s=20.0)
    options = Options(
        Mode.VERIFY, Socket(path, listen=False), MemoryOptions(), RingOptions(), traffic
    )
    options = replace(options, connect_timeout_s=10.0, **changed)
    return Session(options, lambda: False).run()


def short(**changed: Any) -> TrafficOptions:  # noqa: ANN401 - fields of TrafficOptions
    """Traffic of a run that will miss something, so that it waits only a little for it."""
    return replace(TrafficOptions(count=COUNT, timeout_s=2.0), **changed)


LAYOUTS = {
    "default": {},
    "random sizes": {"traffic": TrafficOptions(count=COUNT, sizes=Sizes(60, 1514), timeout_s=20)},
    "imix": {"traffic": TrafficOptions(count=COUNT, sizes=Sizes.parse("imix"), timeout_s=20)},
    "odd sizes": {"traffic": TrafficOptions(count=COUNT, sizes=Sizes(61, 69), timeout_s=20)},
    "four regions": {"memory": MemoryOptions(regions=4, bus_base=1 << 40)},
    "eight regions, chains": {
        "memory": MemoryOptions(regions=8),
        "rings": RingOptions(chain=2, receive_chain=4),
    },
    "chains of three": {"rings": RingOptions(chain=3, receive_chain=3)},
    "indirect": {"rings": RingOptions(indirect=True, chain=5, receive_chain=2)},
    "small ring": {"rings": RingOptions(size=2)},
    "no event_idx": {"rings": RingOptions(event_idx=False)},
    "not mergeable": {"rings": RingOptions(mergeable=False)},
    "legacy header": {"rings": RingOptions(mergeable=False, legacy=True)},
    "merged": {
        "rings": RingOptions(buffer_bytes=100),
        "traffic": TrafficOptions(count=COUNT, sizes=Sizes(60, 1514), timeout_s=20),
    },
    "jumbo": {"traffic": TrafficOptions(count=200, sizes=Sizes(9216, 9216), timeout_s=20)},
    "two pairs": {"rings": RingOptions(pairs=2)},
    "given memory": {"memory": MemoryOptions(size_bytes=8 << 20, regions=2)},
}


@pytest.mark.parametrize("changed", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_frame_comes_back(tmp_path: Path, changed: dict[str, Any]) -> None:
    with Backend(tmp_path / "socket") as backend:
        result = verify(tmp_path / "socket", **changed)
    found = result.json_object()
    count = result.options.traffic.count
    assert result.ended == Ended.DONE
    assert (found["sent"], found["received"], found["lost"]) == (count, count, 0)
    assert found["protocol_error_kinds"] == {}
    assert found["error_signals"] == 0
    assert result.exit_status == 0
    assert (backend.received, backend.delivered) == (count, count)


@pytest.mark.parametrize("batch", [False, True])
def test_in_order(tmp_path: Path, batch: bool) -> None:
    """2.7.9: one used element may stand for a batch."""
    with Backend(tmp_path / "socket", offered=IN_ORDER, batch=batch):
        result = verify(tmp_path / "socket", rings=RingOptions(chain=2))
    assert result.features & Feature.IN_ORDER
    assert (result.ended, result.exit_status) == (Ended.DONE, 0)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (Fault.LOSE, {"lost": 1}),
        (Fault.REPEAT, {"duplicated": 1, "lost": 0}),
        (Fault.SWAP, {"reordered": 1, "lost": 0}),
        (Fault.CORRUPT, {"corrupt": 1, "lost": 1}),
        (Fault.TRUNCATE, {"corrupt": 1, "lost": 1}),
    ],
)
def test_frame_fault_is_seen(tmp_path: Path, fault: Fault, seen: dict[str, int]) -> None:
    with Backend(tmp_path / "socket", fault=fault):
        result = verify(tmp_path / "socket", traffic=short())
    found = result.json_object()
    names = ("lost", "duplicated", "reordered", "corrupt", "foreign", "protocol_errors")
    assert {name: found[name] for name in names if found[name]} == {
        k: v for k, v in seen.items() if v
    }
    assert found["sent"] == COUNT
    assert result.exit_status == 1


def test_foreign_frame_is_counted_and_forgiven(tmp_path: Path) -> None:
    with Backend(tmp_path / "socket", fault=Fault.FOREIGN):
        result = verify(tmp_path / "socket")
    assert result.json_object()["foreign"] == 1
    assert (result.ended, result.lost, result.exit_status) == (Ended.DONE, 0, 0)


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (Fault.BAD_ID, {"bad_id": 1}),
        (Fault.DUPLICATE_ID, {"duplicate_id": 1}),
        (Fault.LONG_LENGTH, {"bad_length": 1}),
        (Fault.SHORT_LENGTH, {"bad_length": 1, "canary": 1}),
        (Fault.TRANSMIT_LENGTH, {"bad_length": 1}),
        (Fault.WRITE_BEHIND, {"canary": 1}),
        (Fault.WRITE_BEFORE, {"canary": 1}),
        (Fault.WRITE_IN_BUFFER, {"canary": 1}),
        (Fault.INDEX_JUMP, {"index_jump": 1, "base_mismatch": 1}),
        (Fault.HEADER_FLAGS, {"bad_header": 1}),
        (Fault.NO_BUFFERS, {"bad_header": 1}),
        (Fault.MISSING_BUFFER, {"broken_merge": 1}),
        (Fault.WRITE_READABLE, {"readable_written": 1}),
        (Fault.WRITE_DESC, {"desc_written": 1}),
        (Fault.WRONG_BASE, {"base_mismatch": 1}),
    ],
)
def test_protocol_fault_is_seen(tmp_path: Path, fault: Fault, kinds: dict[str, int]) -> None:
    with Backend(tmp_path / "socket", fault=fault):
        result = verify(tmp_path / "socket", traffic=short())
    assert result.json_object()["protocol_error_kinds"] == kinds
    assert result.exit_status == 1


@pytest.mark.parametrize(
    "fault", [Fault.WRITE_BEHIND, Fault.WRITE_BEFORE, Fault.WRITE_IN_BUFFER, Fault.WRITE_DESC]
)
def test_frame_beside_a_stray_write_still_counts(tmp_path: Path, fault: Fault) -> None:
    with Backend(tmp_path / "socket", fault=fault):
        result = verify(tmp_path / "socket")
    assert (result.ended, result.lost) == (Ended.DONE, 0)
    assert result.exit_status == 1


def test_unwritten_num_buffers_is_told(tmp_path: Path) -> None:
    """5.1.6.4.1: without MRG_RXBUF it is 1; some back-ends leave it out, and the frame is good."""
    with Backend(tmp_path / "socket", fault=Fault.NO_BUFFERS):
        result = verify(tmp_path / "socket", rings=RingOptions(mergeable=False))
    assert result.json_object()["unset_num_buffers"] == 1
    assert (result.ended, result.exit_status) == (Ended.DONE, 0)


def test_broken_order_is_seen(tmp_path: Path) -> None:
    """2.7.9: with IN_ORDER, a chain used before an older one, alone."""
    with Backend(tmp_path / "socket", offered=IN_ORDER, fault=Fault.OUT_OF_ORDER):
        result = verify(tmp_path / "socket", traffic=short())
    assert result.json_object()["protocol_error_kinds"]["out_of_order"] >= 1
    assert result.exit_status == 1


def test_order_is_free_without_in_order(tmp_path: Path) -> None:
    with Backend(tmp_path / "socket", fault=Fault.OUT_OF_ORDER):
        result = verify(tmp_path / "socket")
    assert (result.ended, result.exit_status) == (Ended.DONE, 0)


@pytest.mark.parametrize("event_idx", [True, False])
def test_notifications_follow_the_rules(
    tmp_path: Path,
    event_idx: bool,
) -> None:
    """2.7.10: a polling device is not kicked, but for the start; a polling driver is not called."""
    with Backend(tmp_path / "socket") as backend:
        result = verify(tmp_path / "socket", rings=RingOptions(event_idx=event_idx))
        assert result.exit_status == 0
        assert result.json_object()["kicks"] == 2  # one for each ring
        assert [ring.calls for ring in backend.rings[:2]] == [0, 0]
