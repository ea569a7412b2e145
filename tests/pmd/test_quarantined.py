"""A VM1 that breaks its rings harms itself only, and is served again once it sets them up anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pmd.hand_vm1 import RECEIVE, TRANSMIT, HandVm1
from tests.pmd.processes import Device, Vm1, pmd
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path


def serve(*devices: Device, vf: str = "null") -> list[str]:
    words = [word for d in devices for word in ("--device", d.name, "--vf", vf)]
    return ["run", "--json", *words]


@pytest.mark.parametrize("jump", [257, 0x8000, 0xFFFF])
def test_an_index_jump_stops_the_ring_until_it_is_set_up_anew(tmp_path: Path, jump: int) -> None:
    with Device(tmp_path) as device, pmd(*serve(device)) as daemon:
        with HandVm1(device.vhost_user) as vm1:
            vm1.transmit()
            vm1.set_available(TRANSMIT, 1 + jump)
            vm1.wait_for_error(TRANSMIT)
            assert (
                f"ring 1 of {device.name} is quarantined until it is set up anew: index_jump"
                in (daemon.stderr())
            )
            assert vm1.used(TRANSMIT) == 1
            vm1.set_available(TRANSMIT, 1)
            assert vm1.stop() == [0, 1]
            vm1.start()
            vm1.transmit()
        assert daemon.stop() == 0
        (channel,) = daemon.json()["channels"]
        assert channel["vm1_to_vf"]["packets"] == 2
        assert channel["quarantines"] == 1


def test_a_ring_comes_back_though_it_is_set_up_as_it_was(tmp_path: Path) -> None:
    with Device(tmp_path) as device, pmd(*serve(device)) as daemon:
        with HandVm1(device.vhost_user) as vm1:
            wait_for(lambda: "serving 2 of 2 rings" in daemon.stderr(), "service")
            vm1.set_available(TRANSMIT, 257)
            vm1.wait_for_error(TRANSMIT)
            vm1.set_available(TRANSMIT, 0)
            assert vm1.stop() == [0, 0]
            vm1.start()
            vm1.transmit()
        assert daemon.stop() == 0
        assert daemon.json()["channels"][0]["quarantines"] == 1


def test_a_ring_started_with_an_impossible_index(tmp_path: Path) -> None:
    with Device(tmp_path) as device, pmd(*serve(device)) as daemon:
        with HandVm1(device.vhost_user) as vm1:
            assert vm1.stop() == [0, 0]
            vm1.set_available(RECEIVE, 257)
            vm1.start()
            vm1.wait_for_error(RECEIVE)
            vm1.transmit()  # the other ring runs
            assert "its available index is further than its size" in daemon.stderr()
        assert daemon.stop() == 0
        assert daemon.json()["channels"][0]["vm1_to_vf"]["packets"] == 1


def test_memory_that_goes_away_takes_only_its_channel(tmp_path: Path) -> None:
    with (
        Device(tmp_path, "a") as a,
        Device(tmp_path, "b") as b,
        pmd(*serve(a, b, vf="loop")) as daemon,
        Vm1("verify", b, "--count", "0", "--timeout", "60") as healthy,
    ):
        with HandVm1(a.vhost_user, sealable=False) as vm1:
            vm1.stock()
            vm1.transmit()
            healthy.wait_for_traffic()
            vm1.truncate()
            vm1.wait_for_error(RECEIVE)
            vm1.wait_for_error(TRANSMIT)
            assert f"ring 1 of {a.name} is quarantined until it is set up anew: window" in (
                daemon.stderr()
            )
            healthy.wait_for_traffic()
        with Vm1("verify", a, "--count", "10000") as successor:
            assert successor.wait() == 0, successor.stdout()
        assert healthy.stop() == 0, healthy.stdout()
        assert daemon.stop() == 0
        first, second = daemon.json()["channels"]
        assert first["vm1_to_vf"]["packets"] == 10_001
        assert second["quarantines"] == 0
        wait_for(lambda: not a.describe()["vhost_user"]["connected"], "VM1's end")
