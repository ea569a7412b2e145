"""latency mode: what is counted, by the clock, and what is told of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.system.testpmd import Testpmd
from tests.vm1.backend import OFFERED, Backend
from tests.vm1.fault import Fault
from tests.vm1.test_modes import finish, vm1
from tools.vhost_user_abi import Feature
from tools.vm1.latency import Found, bucket_cycles

if TYPE_CHECKING:
    from pathlib import Path

BUCKETS = 2304


def test_buckets_follow_each_other() -> None:
    """The first 128 are exact; then each is at most 1/64 of what it counts wide."""
    middles = [bucket_cycles(bucket) for bucket in range(BUCKETS)]
    assert middles[:128] == list(range(128))
    assert middles[128:130] == [129.0, 131.0]
    assert middles[191:193] == [255.0, 258.0]
    for low, high in itertools.pairwise(middles[127:]):
        assert 0 < high - low <= low / 63


def test_percentiles() -> None:
    counts = [0] * BUCKETS
    counts[10], counts[20], counts[100] = 989, 10, 1
    found = Found(1000, 1.0, 1000, 1000, 100, tuple(counts))
    assert [found.percentile_cycles(share) for share in (0.5, 0.989, 0.99, 0.999, 1.0)] == [
        10, 10, 20, 20, 100,
    ]  # fmt: skip
    told = found.json_object(tsc_hz=2.0e9)
    assert (told["p50_ns"], told["p99_ns"], told["p999_ns"], told["max_ns"]) == (5, 10, 10, 50)
    nothing = Found(1000, 1.0, 0, 0, 0, tuple([0] * BUCKETS)).json_object(tsc_hz=2.0e9)
    assert nothing["p50_ns"] is None
    assert nothing["max_ns"] is None


@pytest.mark.parametrize("layout", [[], ["--packed", "--queue-pairs", "2"]], ids=" ".join)
def test_every_frame_is_timed(tmp_path: Path, layout: list[str]) -> None:
    """At a rate that a back-end in Python keeps up with; the second rate begins from nothing."""
    path = tmp_path / "socket"
    arguments = ["--rates", "200,1000", "--seconds", "0.5", "--vhost-user", str(path), *layout]
    offered = OFFERED | Feature.RING_PACKED
    with Backend(path, offered=offered) as backend, vm1("latency", *arguments) as process:
        status, found, err = finish(process)
    assert (status, err, found["ended"]) == (0, "", "done")
    assert [each["rate_pps"] for each in found["latency"]] == [200, 1000]
    for each in found["latency"]:
        # Never faster than the clock; slower only where the ring stayed full.
        assert 0 < each["sent_pps"] <= 1.05 * each["rate_pps"]
        assert each["received"] == each["sent"]
        order = [each[name] for name in ("p50_ns", "p99_ns", "p999_ns", "max_ns")]
        assert order == sorted(order)
        assert order[0] > 1000
    # Those of the warming up went round as well.
    assert backend.received == found["sent"] > sum(each["sent"] for each in found["latency"])


def test_lost_and_strange_frames_are_not_timed(tmp_path: Path) -> None:
    """However short the time: a thread that loses its CPU for all of it has one piece still."""
    path = tmp_path / "socket"
    arguments = ["--rates", "5000", "--seconds", "1e-9", "--vhost-user", str(path)]
    with Backend(path, fault=Fault.TRUNCATE), vm1("latency", *arguments) as process:
        _, found, _ = finish(process)
    (each,) = found["latency"]
    assert (each["pieces"], found["corrupt"]) == (1, 1)
    assert each["sent"] - each["received"] in {0, 1}  # it may have been one of the warming up
    assert found["sent"] - found["received"] == 1
    assert each["lost"] == round((each["sent"] - each["received"]) / each["sent"], 6)


@pytest.mark.system
def test_testpmd_returns_frames(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Testpmd([f"net_vhost0,iface={path},queues=1"], cpu=1) as testpmd:
        testpmd.start("io")
        arguments = ["--rates", "10000", "--vhost-user", str(path), "--cpu", "0"]
        with vm1("latency", *arguments) as process:
            status, found, err = finish(process)
        testpmd.stop_forwarding()
    assert (status, err) == (0, "")
    (each,) = found["latency"]
    assert 0 < each["sent_pps"] <= 10_500
    # On a machine too busy to run testpmd for a while it drops what the ring cannot hold.
    assert 0 < each["received"] <= each["sent"]
    assert 100 < each["p50_ns"] <= each["max_ns"]
