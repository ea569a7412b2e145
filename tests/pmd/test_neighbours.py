"""What one channel's device does to the others that share its lcore: nothing."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from typing import TYPE_CHECKING

from tests.pmd.hand_vm1 import TRANSMIT, HandVm1
from tests.pmd.processes import Device, Vm1, pmd
from tests.pmd.wait import DEADLINE_S, wait_for

if TYPE_CHECKING:
    from pathlib import Path


def test_a_channel_that_waits_for_its_device_keeps_no_other_waiting(tmp_path: Path) -> None:
    with (
        Device(tmp_path, "a") as a,
        Device(tmp_path, "b") as b,
        pmd(
            *("run", "--json", "--lcores", "0"),
            *("--device", a.name, "--vf", "null", "--device", b.name, "--vf", "loop"),
        ) as daemon,
        Vm1("verify", b, "--count", "0", "--timeout", "60") as neighbour,
        HandVm1(a.vhost_user) as vm1,
    ):
        vm1.transmit()
        neighbour.wait_for_traffic()
        a.signal(signal.SIGSTOP)
        vm1.set_available(TRANSMIT, 1 + 257)
        wait_for(lambda: "quarantined" in daemon.stderr(), "the quarantine")
        # It is being reported to a device that does not answer.
        neighbour.wait_for_traffic(1000)
        assert "no answer" not in daemon.stderr()
        a.signal(signal.SIGCONT)
        assert neighbour.stop() == 0, neighbour.stdout()
        assert daemon.stop() == 0


def test_devices_that_hang_do_not_cost_another_its_driver(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(Device(tmp_path, f"hanging{n}")) for n in range(3)]
        device = stack.enter_context(Device(tmp_path))
        words = [word for d in (*hanging, device) for word in ("--device", d.name, "--vf", "null")]
        daemon = stack.enter_context(pmd("run", "--json", "--lcores", "0", *words))
        with HandVm1(device.vhost_user) as vm1:
            vm1.transmit()
        listeners = []
        for each in hanging:
            each.kill()
            each.vfio_user.unlink()
            listeners.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            listeners[-1].bind(str(each.vfio_user))
            listeners[-1].listen()
        wait_for(lambda: daemon.stderr().count("trying again") == len(hanging), "their loss")
        assert select.select(listeners, [], [], DEADLINE_S)[0]  # the daemon waits for one now
        with HandVm1(device.vhost_user) as vm1:
            vm1.transmit()
        assert "dead" not in device.stderr()
        assert daemon.stop() == 0
