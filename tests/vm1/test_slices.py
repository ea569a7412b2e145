"""A replay's slices: what is dropped, how the rest is tagged, and what is told of each tag."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.system.testpmd import Testpmd
from tests.vm1.backend import Backend
from tests.vm1.test_modes import finish, vm1
from tools.vm1.engine import tsc_hz
from tools.vm1.probe import Reading
from tools.vm1.slices import Block, Slice, summary

if TYPE_CHECKING:
    from pathlib import Path

TSC_HZ = 2.0e9  # a slice of 500 us has a million cycles, 45 ns are 90, 12 us are 24000
NEAR_QUIET = Reading(one_way_cycles=90.0, own_alu_cycles=1.6, peer_alu_cycles=1.76)
FAR_QUIET = Reading(one_way_cycles=90.1, own_alu_cycles=1.7, peer_alu_cycles=1.7)
NEAR_BUSY = Reading(one_way_cycles=60.0, own_alu_cycles=1.7, peer_alu_cycles=1.77)


def block(
    before: Reading | None,
    after: Reading | None,
    *sent: int,
    still: int = 100,
    when: tuple[float, float] = (0.0, 0.0),
) -> Block:
    """Slices of sent frames each, behind a first one that never counts."""
    counts = (1_000_000, *sent)
    return Block(tuple(Slice(1_000_000, n, n // 2, still) for n in counts), before, after, *when)


def test_tags_take_the_worse_of_both_ends() -> None:
    blocks = [
        block(NEAR_QUIET, NEAR_QUIET, 10_000),
        block(NEAR_QUIET, FAR_QUIET, 5_000),
        block(NEAR_BUSY, NEAR_QUIET, 8_000),
        block(FAR_QUIET, NEAR_BUSY, 4_000),
        block(None, NEAR_QUIET, 6_000),
    ]
    found = summary(blocks, TSC_HZ, 0)
    # 10000 frames in 500 us are 20 million a second.
    assert {tag["tag"]: tag["tx_mpps_median"] for tag in found["slices"]} == {
        "near_quiet": 20.0,
        "far_quiet": 10.0,
        "near_busy": 16.0,
        "far_busy": 8.0,
        "untagged": 12.0,
    }
    assert found["probe"] == {
        "one_way_ns_best": 30.0,
        "one_way_ns_median": 45.0,
        "alu_cycles_best": 1.6,
    }
    assert (found["slices_dropped"], found["tsc_hz"]) == (5, 2_000_000_000)


def test_neighbours_of_one_tag_are_one_stretch() -> None:
    """However little of a block counts: a back-end's cycles are of all of it."""
    quiet, busy = (NEAR_QUIET, NEAR_QUIET), (NEAR_BUSY, NEAR_BUSY)
    blocks = [
        block(*quiet, 10, when=(1.0, 1.02)),
        block(*quiet, 10, still=1_000_000, when=(1.03, 1.05)),
        block(*busy, when=(1.06, 1.08)),
        block(*quiet, 10, when=(1.09, 1.11)),
    ]
    assert summary(blocks, TSC_HZ, 0)["stretches"] == [
        {"tag": "near_quiet", "begin_s": 1.0, "end_s": 1.05},
        {"tag": "near_busy", "begin_s": 1.06, "end_s": 1.08},
        {"tag": "near_quiet", "begin_s": 1.09, "end_s": 1.11},
    ]


def test_percentiles_and_standstills() -> None:
    many = block(NEAR_QUIET, NEAR_QUIET, *range(1000, 2000))
    stood = block(NEAR_QUIET, NEAR_QUIET, 9_000, 9_000, still=24_001)
    just = block(NEAR_QUIET, NEAR_QUIET, 2_000, still=24_000)
    found = summary([many, stood, just], TSC_HZ, 0)
    assert found["slices"] == [
        {
            "tag": "near_quiet",
            "slices": 1001,
            "tx_mpps_p10": 2.2,
            "tx_mpps_median": 3.0,
            "tx_mpps_p90": 3.8,
            "rx_mpps_p10": 1.1,
            "rx_mpps_median": 1.5,
            "rx_mpps_p90": 1.9,
        }
    ]
    assert found["slices_dropped"] == 5


def test_a_burst_of_long_frames_is_no_standstill() -> None:
    """32 frames of 9000 bytes take 72 us at 4 GB/s: 144000 cycles, beside the usual 24000."""
    slow = block(NEAR_QUIET, NEAR_QUIET, 500, 500, still=168_000)
    stood = block(NEAR_QUIET, NEAR_QUIET, 500, still=168_001)
    found = summary([slow, stood], TSC_HZ, 9000)
    assert [tag["slices"] for tag in found["slices"]] == [2]
    assert summary([slow], TSC_HZ, 64)["slices"] == []


def test_slices_of_a_run(tmp_path: Path) -> None:
    """A back-end in Python stands still all the time: its slices are noted, and dropped."""
    arguments = ["--vhost-user", str(tmp_path / "socket"), "--seconds", "0.3"]
    begin_s = time.monotonic()
    with Backend(tmp_path / "socket"), vm1("replay", *arguments) as process:
        status, found, err = finish(process)
    assert (status, err) == (0, "")
    counted = sum(tag["slices"] for tag in found["slices"])
    assert 0 < counted + found["slices_dropped"] <= 700
    assert {tag["tag"] for tag in found["slices"]} <= {"untagged"}
    assert found["tsc_hz"] == pytest.approx(tsc_hz(), rel=0.05)
    assert "probe" not in found
    (stretch,) = found["stretches"]
    assert begin_s < stretch["begin_s"] < stretch["end_s"] < time.monotonic()


@pytest.mark.system
def test_slices_beside_a_back_end(tmp_path: Path) -> None:
    """With a probe on its CPU the back-end goes on, and the probe's figures are possible."""
    path = tmp_path / "socket"
    with Testpmd([f"net_vhost0,iface={path},queues=1", "net_null0,no-rx=1"], cpu=1) as testpmd:
        testpmd.start("io")
        arguments = ["--vhost-user", str(path), "--seconds", "1", "--direction", "tx"]
        with vm1("replay", *arguments, "--cpu", "0", "--peer-cpu", "1") as process:
            status, found, err = finish(process)
        testpmd.stop_forwarding()
    assert (status, err) == (0, "")
    assert found["sent"] > 256
    assert 1 < found["probe"]["one_way_ns_best"] <= found["probe"]["one_way_ns_median"]
    assert found["probe"]["alu_cycles_best"] > 0.5
    assert sum(tag["slices"] for tag in found["slices"]) + found["slices_dropped"] > 0
