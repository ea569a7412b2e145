"""VM1's traffic through `pmd` in VM2: its amount and sizes, what dies, what takes its place."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tools.lab.picture import STEP_TIMEOUT_S

if TYPE_CHECKING:
    from tools.lab.picture import Picture
    from tools.lab.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

MIB = 1 << 20
LARGE_BYTES = 50_000_000
IP_AND_ICMP_BYTES = 28
ORDINARY_MTU = 1500
# The least that IPv4 hosts take, IPv6's, Ethernet's, and jumbo frames.
MTUS = (576, 1280, ORDINARY_MTU, 9000)


def both_ways(picture: Picture, size_bytes: int) -> None:
    """TCP from VM1 to outside and back; `transfer` compares the checksums of both ends."""
    picture.transfer(picture.vm1, picture.outside, size_bytes)
    picture.transfer(picture.outside, picture.vm1, size_bytes)


def test_fifty_megabytes_each_way(served: Picture) -> None:
    both_ways(served, LARGE_BYTES)


def set_mtu(vm: Vm, mtu: int) -> None:
    vm.agent.shell(f"ip link set eth0 mtu {mtu}")


def test_four_mtus(served: Picture) -> None:
    set_mtu(served.vm2, max(MTUS))
    for mtu in MTUS:
        for vm in (served.vm1, served.outside):
            set_mtu(vm, mtu)
        served.ping(2, mtu - IP_AND_ICMP_BYTES)
        both_ways(served, MIB)
    for vm in (served.vm1, served.vm2, served.outside):
        set_mtu(vm, ORDINARY_MTU)
    served.ping()


def test_a_killed_pmd_is_succeeded(served: Picture) -> None:
    served.ping()
    served.pmd.signal(signal.SIGKILL)
    assert served.pmd.wait(STEP_TIMEOUT_S) == 128 + signal.SIGKILL
    device = served.device
    device.wait_until(lambda: not device.is_served(), STEP_TIMEOUT_S, "see pmd go")
    served.start_pmd("packet")
    served.ping()
    both_ways(served, MIB)


def test_a_killed_device_server_is_succeeded(served: Picture) -> None:
    """Both machines stay up; VM1's hypervisor connects again by itself."""
    vm1, vm2, pmd = served.vm1, served.vm2, served.pmd
    served.device.kill()
    pmd.wait_for("its device is gone", STEP_TIMEOUT_S)
    served.unplug()
    served.start_device()
    device = served.device
    device.wait_until(device.vm1_is_up, STEP_TIMEOUT_S, "see VM1's rings")
    served.plug()
    served.wait_until_served()
    both_ways(served, MIB)
    assert vm1.process.running
    assert vm2.process.running
    assert pmd.status is None
