"""Two kernel network stacks talk through the rings and an interface by AF_XDP.

As tests/system/test_tap_network.py, but for the VF: `--vf xdp:` on one end of a veth pair, whose
other end is the second stack's.
"""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.network import add_tap, add_veth, answered, inside, ip, namespace
from tests.system.processes import Device, Pmd, Program, Vm1

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system

VM1_ADDRESS, WIRE_ADDRESS = "192.0.2.1", "192.0.2.2"
TRANSFER_BYTES = 20_000_000
TRANSFER_TIMEOUT_S = 120
TRANSFER = "tools.lab.inside.transfer"


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[tuple[str, str, str, Pmd]]:
    """The namespaces of VM1, of the VF's interface and of the wire, connected; and pmd."""
    with namespace("vm1") as vm1, namespace("vf") as vf, namespace("wire") as wire:
        add_tap("vm1tap", vm1, f"{VM1_ADDRESS}/24")
        add_veth("nic", vf, "wire", wire, f"{WIRE_ADDRESS}/24")
        with (
            Device(tmp_path) as device,
            Pmd([(device.function, "xdp:nic")], namespace=vf) as pmd,
            Vm1("tap", device.vhost_user, "--tap", "vm1tap", namespace=vm1),
        ):
            pmd.wait_until_forwarding()
            yield vm1, vf, wire, pmd


def test_tcp_both_ways(stacks: tuple[str, str, str, Pmd]) -> None:
    vm1, _, wire, pmd = stacks
    assert "VF xdp:nic: copy, driver mode, 1 queue" in pmd.errors
    for source, target, address in ((vm1, wire, WIRE_ADDRESS), (wire, vm1, VM1_ADDRESS)):
        where = [address, "5001"]
        with Program(TRANSFER, ["receive", *where], target) as receiver:
            assert receiver.line() == "ready"
            with Program(TRANSFER, ["send", *where, str(TRANSFER_BYTES)], source) as sending:
                sent = sending.wait(TRANSFER_TIMEOUT_S).strip()
            received, _ = receiver.wait(TRANSFER_TIMEOUT_S).split()
        assert len(sent) == 64
        assert received == sent


def test_the_interface_goes_under_traffic_and_comes_back(
    stacks: tuple[str, str, str, Pmd],
) -> None:
    vm1, vf, wire, pmd = stacks
    assert answered(WIRE_ADDRESS, 5, vm1) == [1, 2, 3, 4, 5]
    flood = ["ping", "-n", "-q", "-i", "0.002", "-s", "1400", WIRE_ADDRESS]
    with subprocess.Popen([*inside(vm1), *flood], stdout=subprocess.DEVNULL) as pinging:
        try:
            ip("link", "set", "nic", "down", namespace=vf)
            ip("link", "set", "nic", "up", namespace=vf)
            ip("link", "del", "nic", namespace=vf)
            add_veth("nic", vf, "wire", wire, f"{WIRE_ADDRESS}/24")
            deadline = time.monotonic() + 60
            while pmd.errors.count("VF xdp:nic: copy, driver mode, 1 queue") < 2:
                pmd.require_running()
                assert time.monotonic() < deadline, pmd.errors
                time.sleep(0.05)
        finally:
            pinging.kill()
    assert "VF xdp:nic: its interface came back; opening it anew" in pmd.errors
    ip("neigh", "flush", "dev", "vm1tap", namespace=vm1)  # the new wire has another MAC address
    assert answered(WIRE_ADDRESS, 5, vm1) == [1, 2, 3, 4, 5]
    moved = pmd.summary()
    assert moved.vm1_to_vf.packets > 10
    assert moved.vf_to_vm1.packets > 10
    assert "xdp" not in ip("link", "show", "nic", namespace=vf)
