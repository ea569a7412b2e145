"""VM1 leaves checksums and segments to the device, and takes them: natively, by each kind of port.

The embedded VM1 numbers what it sends, long or short, and judges all that comes back: whole where
the port keeps or the kernel passes the header, in segments where pmd cut the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.system.network import namespace, wait_for_carrier
from tests.system.processes import Device, Pmd, Program, Vm1
from tests.system.test_million_frames import FAULTS, make_bridge

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system

COUNT = 50_000
RUN_TIMEOUT_S = 240


def judge(result: dict[str, Any]) -> None:
    assert result["ended"] == "done"
    assert {name: result[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
    assert result["sent"] == result["received"] == COUNT


@pytest.mark.parametrize("layout", [[], ["--packed"]])
def test_a_port_that_keeps_them(tmp_path: Path, layout: list[str]) -> None:
    options = ["--offloads", "--count", str(COUNT), *layout]
    with Device(tmp_path) as device, Pmd([(device.function, "loop")]) as pmd:
        with Vm1("verify", device.vhost_user, *options) as vm1:
            judge(vm1.result(RUN_TIMEOUT_S))
        summary = pmd.summary()
    assert summary.vm1_to_vf == summary.vf_to_vm1
    assert summary.vm1_to_vf.dropped == 0


def test_a_port_that_knows_none(tmp_path: Path) -> None:
    """All is done in software before the datagrams are sent; what comes back is plain."""
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    with (
        Device(tmp_path) as device,
        Program("tests.system.dgram_echo", [theirs, ours]) as peer,
        Pmd([(device.function, f"dgram:{ours},{theirs}")]) as pmd,
    ):
        assert peer.line() == "ready"
        with Vm1("verify", device.vhost_user, "--offloads", "--count", str(COUNT)) as vm1:
            judge(vm1.result(RUN_TIMEOUT_S))
        summary = pmd.summary()
    assert summary.vf_to_vm1.packets > summary.vm1_to_vf.packets  # segments
    assert summary.vm1_to_vf.dropped == summary.vf_to_vm1.dropped == 0


def test_tap_devices_and_the_kernel_between(tmp_path: Path) -> None:
    """Two VM1s and the kernel's bridge: nobody cuts a frame, nobody computes a checksum."""
    addresses = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
    with namespace("bridge") as inside:
        make_bridge(inside, "tapa", "tapb")
        with (
            Device(tmp_path, "a") as a,
            Device(tmp_path, "b") as b,
            Pmd([(a.function, "tap:tapa"), (b.function, "tap:tapb")], namespace=inside) as pmd,
        ):
            wait_for_carrier(("tapa", "tapb"), inside)
            with (
                _peer(a, addresses, 1, 2) as vm1_a,
                _peer(b, addresses[::-1], 2, 1) as vm1_b,
            ):
                for result in (vm1_a.result(RUN_TIMEOUT_S), vm1_b.result(RUN_TIMEOUT_S)):
                    judge(result)
                    assert result["offload_received"] > 0
                a_summary, b_summary = pmd.summaries()
    for here, there in ((a_summary, b_summary), (b_summary, a_summary)):
        assert here.vm1_to_vf.packets == there.vf_to_vm1.packets
        assert here.vm1_to_vf.dropped == here.vf_to_vm1.dropped == 0


def _peer(device: Device, addresses: tuple[str, ...], stream: int, peer: int) -> Vm1:
    source, destination = addresses
    options = ["--source", source, "--destination", destination, "--window", "200"]
    options += ["--stream", str(stream), "--peer-stream", str(peer), "--timeout", "30"]
    return Vm1("verify", device.vhost_user, "--offloads", "--count", str(COUNT), *options)
