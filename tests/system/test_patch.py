"""Two embedded VM1s at the ends of a patch, each with a device of its own, and one pmd."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.processes import START_TIMEOUT_S, Device, Pmd, Vm1
from tests.system.test_million_frames import FAULTS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system

COUNT = 20_000
RUN_TIMEOUT_S = 240
ADDRESSES = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
PATCH = "patch:lan"


def peer(device: Device, control: Path, stream: int, other: int, *options: str) -> Vm1:
    """A VM1 that has no more frames under way than the other has buffers."""
    words = ["--source", ADDRESSES[stream - 1], "--destination", ADDRESSES[other - 1]]
    words += ["--stream", str(stream), "--peer-stream", str(other), "--timeout", "60"]
    words += ["--count", str(COUNT), "--window", "64", "--control", str(control)]
    return Vm1("verify", device.vhost_user, *words, *options)


def wait_connected(control: Path, vm1: Vm1) -> None:
    """Until the device has all rings of the VM1."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _connected(control):
        vm1.require_running()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _connected(control: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(control))
            text = b"".join(iter(lambda: client.recv(65536), b""))
        return bool(json.loads(text)["connected"])
    except (OSError, ValueError):
        return False


@pytest.mark.parametrize(
    ("a_options", "b_options"),
    [
        (["--packed", "--size", "60-1514"], ["--queue-size", "1024"]),
        (["--offloads"], ["--offloads", "--packed"]),
    ],
    ids=["layouts", "offloads"],
)
def test_all_arrives_both_ways(tmp_path: Path, a_options: list[str], b_options: list[str]) -> None:
    """Both are there before pmd, which begins with both: nothing is dropped."""
    controls = tmp_path / "a.control", tmp_path / "b.control"
    with (
        Device(tmp_path, "a") as a,
        Device(tmp_path, "b") as b,
        peer(a, controls[0], 1, 2, *a_options) as vm1_a,
        peer(b, controls[1], 2, 1, *b_options) as vm1_b,
    ):
        wait_connected(controls[0], vm1_a)
        wait_connected(controls[1], vm1_b)
        with Pmd([(a.function, PATCH), (b.function, PATCH)]) as pmd:
            for result in (vm1_a.result(RUN_TIMEOUT_S), vm1_b.result(RUN_TIMEOUT_S)):
                assert result["ended"] == "done"
                assert {name: result[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
                assert result["sent"] == result["received"] == COUNT
            there, back = pmd.summaries()
    for here, other in ((there, back), (back, there)):
        assert here.vm1_to_vf.packets == other.vf_to_vm1.packets
        assert here.vf_to_vm1.dropped == 0


def test_a_vm1_that_goes_does_not_stop_the_other(tmp_path: Path) -> None:
    """What is sent meanwhile is counted as lost, once; a new VM1 at that end is served."""
    replay = ["--direction", "both"]
    with (
        Device(tmp_path, "a") as a,
        Device(tmp_path, "b") as b,
        Pmd([(a.function, PATCH), (b.function, PATCH)]) as pmd,
        Vm1("replay", a.vhost_user, *replay) as stays,
    ):
        for _ in range(2):
            with Vm1("replay", b.vhost_user, *replay) as comes_and_goes:
                pmd.wait_until_forwarding()
                pmd.wait_until(lambda line: " 0.000 Mpps" not in line.partition("VF->VM1")[2])
                comes_and_goes.end()
            pmd.wait_until(lambda line: "waiting" in line)
            pmd.wait_until(lambda line: "VM1->VF 0.000 Mpps" in line and "forwarding" in line)
        assert json.loads(stays.end())["protocol_errors"] == 0
        there, back = pmd.summaries()
    assert there.vm1_to_vf.packets == back.vf_to_vm1.packets > 0
    assert back.vm1_to_vf.packets == there.vf_to_vm1.packets > 0
    assert there.vm1_to_vf.dropped > 0
