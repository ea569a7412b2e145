"""A virtio card in VM2 as VM1's way out: its interface by AF_XDP, then itself by its own rings."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.vm.second_card import Receive, second_card, tap
from tools.lab.check import require_no_copies
from tools.lab.nic import Nic
from tools.lab.picture import OUTSIDE_ADDRESS, STEP_TIMEOUT_S, TRANSFER, VF_KINDS

if TYPE_CHECKING:
    from tests.vm.conftest import Stage
    from tools.lab.picture import Picture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

TRANSFER_BYTES = 50_000_000
PORTS = (5001, 5002)
PAIRS = len(PORTS)
EACH_BYTES = 5_000_000
TAP_ADDRESS = "10.77.0.4"
SLEEPS = ("--poll", "interrupt")  # each frame that comes has to wake it


@pytest.fixture
def plugged(stage: Stage, cleared: None) -> Picture:  # noqa: ARG001 - what it does comes after
    """A VM1 that leaves nothing to its device, and VM2 with the function and the card."""
    return stage.picture(_bring_up)


def _bring_up(picture: Picture) -> None:
    picture.nic = Nic(queue_pairs=PAIRS)
    picture.start_device()
    picture.start_vm1()
    use_pairs(picture, 1)
    picture.start_vm2(kind="virtio-net")
    picture.bind(picture.plug())
    picture.finish_checksums()


def use_pairs(picture: Picture, count: int) -> None:
    """Have VM1 use so many of its queue pairs."""
    picture.vm1.agent.shell(f"ethtool -L eth0 combined {count}")


def answered(picture: Picture) -> bool:
    """Whether outside answers VM1; a driver that was just given its program may lose the first."""
    look = f"until ping -c 1 -W 2 {OUTSIDE_ADDRESS} >/dev/null; do"
    script = f"n=0; {look} n=$((n+1)); [ $n -lt 15 ] || break; done; [ $n -lt 15 ] && echo yes"
    return "yes" in picture.vm1.agent.shell(f"{script} || true", timeout_s=STEP_TIMEOUT_S)


def traffic(picture: Picture) -> None:
    if not answered(picture):
        tell_where_frames_end(picture)
    assert answered(picture)
    picture.ping(3)
    picture.transfer(picture.vm1, picture.outside, TRANSFER_BYTES)
    picture.transfer(picture.outside, picture.vm1, TRANSFER_BYTES)


def tell_where_frames_end(picture: Picture) -> None:
    for vm in (picture.vm1, picture.vm2, picture.outside):
        print(
            vm.agent.shell("ip -s link; ip neigh; cat /proc/interrupts", timeout_s=STEP_TIMEOUT_S)
        )
    # On a busy machine the emulated card outside has been seen to take no frame at all any more.
    picture.outside.agent.shell("ip link set eth0 down; ip link set eth0 up")


def test_the_interface_by_af_xdp(plugged: Picture) -> None:
    pmd = plugged.run_pmd("--json", *SLEEPS, "--vf", "xdp:eth0")
    traffic(plugged)
    (channel,) = plugged.stop_pmd()["channels"]
    assert "copy, driver mode, 1 queue" in pmd.text
    for direction in ("vm1_to_vf", "vf_to_vm1"):
        assert channel[direction]["bytes"] > TRANSFER_BYTES


def test_the_card_without_a_copy(plugged: Picture) -> None:
    """From here on its driver does not have the card."""
    plugged.start_pmd("virtio-net", "--json", *SLEEPS, "--copy", "never")
    traffic(plugged)
    require_no_copies(plugged.stop_pmd())


def test_two_queue_pairs_by_two_of_a_card(plugged: Picture) -> None:
    """What a processor of VM1's sends is sent on its own pair, and answered there."""
    vm1 = plugged.vm1
    use_pairs(plugged, PAIRS)
    with tap(TAP_ADDRESS, PAIRS) as queues, second_card(plugged, queues) as address:
        spec = VF_KINDS["virtio-net"].spec.format(address)
        plugged.run_pmd("--json", *SLEEPS, "--copy", "never", "--vf", spec)
        vm1.agent.run("ping", "-c", "1", "-w", "60", TAP_ADDRESS, timeout_s=STEP_TIMEOUT_S)
        with contextlib.ExitStack() as ends:
            receives = [ends.enter_context(Receive(TAP_ADDRESS, port)) for port in PORTS]
            sends = []
            for number, port in enumerate(PORTS):
                pinned = ["busybox", "taskset", f"{1 << number:x}", *TRANSFER]
                words = ["send", TAP_ADDRESS, str(port), str(EACH_BYTES)]
                sends.append(vm1.agent.start(*pinned, *words))
            for receive, send in zip(receives, sends, strict=True):
                assert send.wait(STEP_TIMEOUT_S) == 0, send.text
                assert receive.digest() == send.output.decode().strip()
        statistics = plugged.stop_pmd()
    use_pairs(plugged, 1)
    require_no_copies(statistics)
    for pair in statistics["channels"][0]["queue_pairs"]:
        assert pair["vm1_to_vf"]["bytes"] > EACH_BYTES
        assert pair["vm1_to_vf"]["packets"] == pair["tx_zero_copy"]
        assert pair["vf_to_vm1"]["packets"] == pair["rx_zero_copy"] > 0


def test_the_card_goes_under_load_and_comes_back(plugged: Picture) -> None:
    """The last one: the card is another one then."""
    vm2, way = plugged.vm2, VF_KINDS["virtio-net"]
    pmd = plugged.start_pmd("virtio-net", "--json")
    load = plugged.vm1.agent.start("ping", "-i", "0.01", "-s", "1000", OUTSIDE_ADDRESS)
    load.wait_for("bytes from", STEP_TIMEOUT_S)
    vm2.unplug("wire0")
    pmd.wait_for("the kernel wants it back", STEP_TIMEOUT_S)
    pmd.wait_for("dropping frames meanwhile", STEP_TIMEOUT_S)
    assert pmd.status is None
    card = {"netdev": "wire0", "mac": "52:54:00:77:00:02"}
    vm2.plug("wire0", way.card, named={**way.properties, **card})
    vm2.agent.shell(
        "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done", timeout_s=STEP_TIMEOUT_S
    )
    vm2.agent.shell(way.prepare, timeout_s=STEP_TIMEOUT_S)
    plugged.wait_until_served()
    plugged.ping(3)
    load.signal()
    assert plugged.stop_pmd()["channels"][0]["vm1_to_vf"]["drops"].keys() <= {"vf_down", "vf_error"}
