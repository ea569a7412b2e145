"""What one channel's device does to the others that share its lcore: nothing."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.pmd.hand_vm1 import TRANSMIT, HandVm1
from tests.pmd.processes import Device, Vm1, pmd
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path


def test_a_channel_that_waits_for_its_device_keeps_no_other_waiting(tmp_path: Path) -> None:
    with (
        Device(tmp_path, "a") as a,
        Device(tmp_path, "b") as b,
        pmd(
            *("run", "--json", "--lcores", "0"),
            *("--device", a.name, "--vf", "loop", "--device", b.name, "--vf", "loop"),
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
