"""Two kernel network stacks talk through the rings: ping, and TCP with checksums.

The stack behind the VF leaves checksums and segments to it; this VM1 takes neither, so pmd does
them.

VM1's stack is the namespace of the TAP device that `vhost-pci-vm1 tap` bridges to its rings; the
other stack is behind `--vf tap:`. Nothing but `pmd` connects the two.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.system.network import add_tap, answered, inside, namespace
from tests.system.processes import Device, Pmd, Program, Vm1

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system

VM1_ADDRESS, VF_ADDRESS = "192.0.2.1", "192.0.2.2"
TRANSFER_BYTES = 50_000_000
TRANSFER_TIMEOUT_S = 120
TRANSFER = "tools.lab.inside.transfer"


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The namespaces of VM1's and of the VF's network stack, connected."""
    with namespace("vm1") as vm1, namespace("vf") as vf:
        add_tap("vm1tap", vm1, f"{VM1_ADDRESS}/24")
        add_tap("vftap", vf, f"{VF_ADDRESS}/24")
        with (
            Device(tmp_path) as device,
            Pmd([(device.function, "tap:vftap")], namespace=vf) as pmd,
            Vm1("tap", device.vhost_user, "--tap", "vm1tap", namespace=vm1),
        ):
            pmd.wait_until_forwarding()
            yield vm1, vf


def test_ping(stacks: tuple[str, str]) -> None:
    vm1, _ = stacks
    assert answered(VF_ADDRESS, 20, vm1) == list(range(1, 21))


@pytest.mark.parametrize("sender", ["vm1", "vf"])
def test_tcp_transfer(stacks: tuple[str, str], sender: str) -> None:
    vm1, vf = stacks
    source, target = (vm1, vf) if sender == "vm1" else (vf, vm1)
    address = VF_ADDRESS if sender == "vm1" else VM1_ADDRESS
    where = [address, "5001"]
    with Program(TRANSFER, ["receive", *where], target) as receiver:
        assert receiver.line() == "ready"
        with Program(TRANSFER, ["send", *where, str(TRANSFER_BYTES)], source) as sending:
            sent = sending.wait(TRANSFER_TIMEOUT_S).strip()
        received, _ = receiver.wait(TRANSFER_TIMEOUT_S).split()
    assert len(sent) == 64
    assert received == sent
    if sender == "vf":  # what the stack gave the VF was longer than an MTU, and cut on the way
        assert _mean_bytes(vf, "vftap", "tx") > 3000
        assert _mean_bytes(vm1, "vm1tap", "rx") < 1515


def _mean_bytes(namespace: str, interface: str, direction: str) -> float:
    """Of a frame that an interface sent or received."""
    words = ["ip", "-j", "-s", "link", "show", interface]
    done = subprocess.run([*inside(namespace), *words], capture_output=True, text=True, check=True)
    counters = json.loads(done.stdout)[0]["stats64"][direction]
    return float(counters["bytes"] / counters["packets"])
