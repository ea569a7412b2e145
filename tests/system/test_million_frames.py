"""Millions of numbered frames, and every number accounted for.

Goal: nothing is lost, doubled, reordered or changed, however often the rings and the sequence of
bursts wrap. Method: the embedded VM1 numbers and checksums its frames, and has no more of
them under way than the other side's queue holds, so that a missing one is our fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.system.network import add_tap, ip, namespace, silence, wait_for_carrier
from tests.system.processes import Device, Pmd, Program, Vm1

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system

MILLION = 1_000_000
RUN_TIMEOUT_S = 240
FAULTS = ("lost", "duplicated", "reordered", "corrupt", "protocol_errors")


def check(result: dict[str, Any], count: int) -> None:
    assert result["ended"] == "done"
    assert {name: result[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
    assert result["sent"] == result["received"] == result["distinct"] == count


def test_ten_million_through_loop(tmp_path: Path) -> None:
    count = 10 * MILLION
    with Device(tmp_path) as device, Pmd([(device.function, "loop")]) as pmd:
        with Vm1("verify", device.vhost_user, "--count", str(count)) as vm1:
            check(vm1.result(RUN_TIMEOUT_S), count)
        summary = pmd.summary()
    assert summary.vm1_to_vf.packets == summary.vf_to_vm1.packets == count
    assert summary.vm1_to_vf.dropped == summary.vf_to_vm1.dropped == 0


def test_a_million_of_all_sizes_through_loop(tmp_path: Path) -> None:
    """Frames of 60 to 1514 bytes, in chains of three, each receive buffer smaller than most."""
    options = ["--size", "60-1514", "--chain", "4", "--buffer-size", "512", "--queue-pairs", "2"]
    with Device(tmp_path) as device, Pmd([(device.function, "loop")]) as pmd:
        count = str(MILLION)
        with Vm1("verify", device.vhost_user, "--count", count, *options) as vm1:
            check(vm1.result(RUN_TIMEOUT_S), MILLION)
        summary = pmd.summary()
    assert summary.vm1_to_vf == summary.vf_to_vm1
    assert summary.vm1_to_vf.packets == MILLION


def test_a_million_through_datagrams(tmp_path: Path) -> None:
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    with (
        Device(tmp_path) as device,
        Program("tests.system.dgram_echo", [theirs, ours]) as peer,
        Pmd([(device.function, f"dgram:{ours},{theirs}")]) as pmd,
    ):
        assert peer.line() == "ready"
        with Vm1("verify", device.vhost_user, "--count", str(MILLION)) as vm1:
            check(vm1.result(RUN_TIMEOUT_S), MILLION)
        summary = pmd.summary()
    assert summary.vm1_to_vf.packets == summary.vf_to_vm1.packets == MILLION


def test_a_million_through_a_linux_bridge(tmp_path: Path) -> None:
    """Two VM1s, a channel and a TAP device each, and the kernel's bridge between the two."""
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
                peer_vm1(a, addresses, 1, 2) as vm1_a,
                peer_vm1(b, addresses[::-1], 2, 1) as vm1_b,
            ):
                check(vm1_a.result(RUN_TIMEOUT_S), MILLION)
                check(vm1_b.result(RUN_TIMEOUT_S), MILLION)
                summaries = pmd.summaries()
    # More than a million: now and then a VM1 tells the other how far it has come.
    for summary in summaries:
        assert min(summary.vm1_to_vf.packets, summary.vf_to_vm1.packets) >= MILLION
        assert summary.vm1_to_vf.dropped == summary.vf_to_vm1.dropped == 0


def make_bridge(inside: str, *taps: str) -> None:
    ip("link", "add", "bridge0", "type", "bridge", namespace=inside)
    silence("bridge0", inside)
    ip("link", "set", "bridge0", "type", "bridge", "mcast_snooping", "0", namespace=inside)
    ip("link", "set", "bridge0", "up", namespace=inside)
    for tap in taps:
        add_tap(tap, inside)
        ip("link", "set", tap, "master", "bridge0", namespace=inside)


def peer_vm1(device: Device, addresses: tuple[str, ...], stream: int, peer: int) -> Vm1:
    """A VM1 whose frames in flight fit into a TAP device's queue of 1000, all of them at once."""
    source, destination = addresses
    options = ["--source", source, "--destination", destination, "--window", "200"]
    options += ["--stream", str(stream), "--peer-stream", str(peer), "--timeout", "30"]
    return Vm1("verify", device.vhost_user, "--count", str(MILLION), *options)
