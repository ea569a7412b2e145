"""VM1 is migrated live, under traffic, from one device server to another; one pmd serves both.

VM1 is a stock Linux under a stock QEMU, which sends its memory over a socket. `pmd` is a process
of the host here. Outside is a namespace's own stack, at a bridge with a TAP device a function.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from guest.closing import Closing
from tests.system.network import add_tap, ip, namespace, silence
from tests.system.processes import Device, Program
from tools.lab.nic import Nic
from tools.lab.vm import Hardware, Vm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.vm.conftest import Ingredients

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

MEMORY_MIB = 512
VM1_ADDRESS, OUTSIDE_ADDRESS = "10.77.0.1", "10.77.0.2"
MAC = "52:54:00:77:00:01"
PORTS = ("5000", "5001")
TRANSFER_BYTES = 8 << 20  # and more, for as long as VM1 is under way
TRANSFER_MODULE = "tools.lab.inside.transfer"
TRANSFER = "/usr/lib/vhost-pci-lab/transfer.py"
FOUND = ("/tmp/sent", "/tmp/received")
ENOUGH = "/tmp/enough"
STEP_TIMEOUT_S = 180.0
LOOK_S = 0.1


@pytest.fixture
def outside() -> Iterator[str]:
    """A namespace with a bridge of two TAP devices, tap0 and tap1."""
    with namespace("outside") as name:
        ip("link", "add", "br0", "type", "bridge", namespace=name)
        silence("br0", name)
        ip("addr", "add", f"{OUTSIDE_ADDRESS}/24", "dev", "br0", namespace=name)
        for tap in ("tap0", "tap1"):
            add_tap(tap, name)
            ip("link", "set", tap, "master", "br0", namespace=name)
        ip("link", "set", "br0", "up", namespace=name)
        yield name


def _pmd(here: Device, there: Device, outside: str) -> Program:
    """`pmd run` of both functions; it prints next to nothing, since nobody reads it."""
    words = ["run", "--bar", "2", "--lcores", "1", "--poll", "adaptive", "--stats-period", "3600"]
    for device, tap in ((here, "tap0"), (there, "tap1")):
        words += ["--device", device.function, "--vf", f"tap:{tap}"]
    return Program("pmd.cli", words, outside)


def _copy_all(vm: Vm) -> None:
    """Templates are restored without their memory; a migration is to take it along."""
    capability = {"capability": "x-ignore-shared", "state": False}
    vm.qmp.execute("migrate-set-capabilities", capabilities=[capability])


def _status(vm: Vm) -> dict[str, Any]:
    found: dict[str, Any] = vm.qmp.execute("query-migrate")
    return found


def _migrate(source: Vm, target: Vm, path: Path) -> dict[str, Any]:
    """What QEMU says of it once it is over."""
    uri = f"unix:{path}"
    target.qmp.execute("migrate-incoming", uri=uri)
    source.qmp.execute("migrate", uri=uri)
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while (facts := _status(source))["status"] not in ("completed", "failed"):
        assert time.monotonic() < deadline, facts
        time.sleep(LOOK_S)
    assert facts["status"] == "completed", facts
    return facts


def _ping(vm: Vm) -> None:
    found = f"n=0; until ping -n -c 1 -W 2 {OUTSIDE_ADDRESS} > /dev/null; do"
    found += " n=$((n+1)); [ $n -lt 20 ]; done;"
    said = vm.agent.shell(f"{found} ping -n -c 5 -i 0.2 -w 60 {OUTSIDE_ADDRESS}", STEP_TIMEOUT_S)
    assert re.search(" 0% packet loss", said), said


def _restore(ingredients: Ingredients, directory: Path, device: Device, nic: Nic) -> Vm:
    """VM1, its interface up."""
    vm = ingredients.templates.restore("source", MEMORY_MIB, directory, iommu=False)
    try:
        nic.plug(vm, "net0", device.vhost_user, MAC)
        script = "modprobe virtio_net; n=0; until [ -e /proc/sys/net/ipv6/conf/eth0 ]; do"
        script += " n=$((n+1)); [ $n -lt 300 ]; sleep 0.2; done;"
        script += " echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6;"
        script += f" ip addr add {VM1_ADDRESS}/24 dev eth0; ip link set eth0 up"
        vm.agent.shell(script, timeout_s=STEP_TIMEOUT_S)
    except BaseException:
        vm.close()
        raise
    return vm


def _prepare(hardware: Hardware, directory: Path, device: Device, nic: Nic) -> Vm:
    """Where VM1 goes: the same hardware, empty, and waiting."""
    empty = directory / "empty"
    empty.touch()
    vm = Vm("target", hardware, directory, empty)
    try:
        nic.plug(vm, "net0", device.vhost_user, MAC)
    except BaseException:
        vm.close()
        raise
    return vm


class Transfers(Closing):
    """TCP both ways at once, begun in the source; VM1 keeps what it found in files."""

    def __init__(self, source: Vm, outside: str, directory: Path) -> None:
        self._enough = directory / "enough"
        receive = ["receive", OUTSIDE_ADDRESS, PORTS[0]]
        self._receiver = Program(TRANSFER_MODULE, receive, outside)
        assert self._receiver.line() == "ready"
        own = f"python3 {TRANSFER} receive {VM1_ADDRESS} {PORTS[1]} > {FOUND[1]}"
        source.agent.start("sh", "-c", own)
        listens = f"n=0; until grep -q ready {FOUND[1]}; do n=$((n+1)); [ $n -lt 300 ];"
        source.agent.shell(f"{listens} sleep 0.2; done", timeout_s=STEP_TIMEOUT_S)
        send = ["send", VM1_ADDRESS, PORTS[1], str(TRANSFER_BYTES), str(self._enough)]
        self._sender = Program(TRANSFER_MODULE, send, outside)
        own = f"python3 {TRANSFER} send {OUTSIDE_ADDRESS} {PORTS[0]} {TRANSFER_BYTES} {ENOUGH}"
        source.agent.start("sh", "-c", f"{own} > {FOUND[0]}")

    @property
    def running(self) -> bool:
        """Whether neither has ended."""
        return self._receiver.running and self._sender.running

    def check(self, vm1: Vm) -> None:
        """Ends both; the ends of each found the same bytes. vm1 is where VM1 is by now."""
        self._enough.touch()
        vm1.agent.shell(f"touch {ENOUGH}", timeout_s=STEP_TIMEOUT_S)
        received, _ = self._receiver.wait(STEP_TIMEOUT_S).split()
        sent = self._sender.wait(STEP_TIMEOUT_S).strip()
        wait = "n=0; until [ $(cat {0} {1} | wc -w) -eq 4 ]; do n=$((n+1)); [ $n -lt 300 ];"
        script = f"{wait.format(*FOUND)} sleep 0.2; done; cat {' '.join(FOUND)}"
        its_sent, ready, its_received, _ = vm1.agent.shell(script, STEP_TIMEOUT_S).split()
        assert (its_sent, ready, its_received) == (received, "ready", sent)
        assert len(sent) == len(received) == 64

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()


@pytest.mark.parametrize("words", ["", "packed=on,queues=2"], ids=["split", "packed"])
def test_migration(ingredients: Ingredients, outside: str, tmp_path: Path, words: str) -> None:
    nic = Nic.parse(words)
    with (
        Device(tmp_path, "here") as here,
        Device(tmp_path, "there") as there,
        _pmd(here, there, outside),
        _restore(ingredients, tmp_path, here, nic) as source,
        _prepare(source.hardware, tmp_path, there, nic) as target,
    ):
        _ping(source)
        with Transfers(source, outside, tmp_path) as transfers:
            _copy_all(source)
            facts = _migrate(source, target, tmp_path / "migration")
            assert transfers.running
            target.wait_until_up(STEP_TIMEOUT_S)
            transfers.check(target)
        _ping(target)
        assert facts["ram"]["transferred"] > MEMORY_MIB << 17, facts  # it really moved
        for device in (here, there):
            assert "declared dead" not in device.errors
