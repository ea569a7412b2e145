"""What dies is replaced, and what stays goes on."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tools.lab.picture import STEP_TIMEOUT_S

if TYPE_CHECKING:
    from tools.lab.picture import Picture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

SIZE_BYTES = 2 << 20


def test_a_killed_pmd_is_succeeded(served: Picture) -> None:
    served.ping()
    served.pmd.signal(signal.SIGKILL)
    assert served.pmd.wait(STEP_TIMEOUT_S) == 128 + signal.SIGKILL
    device = served.device
    device.wait_until(lambda: not device.is_served(), STEP_TIMEOUT_S, "see pmd go")
    served.start_pmd("tap")
    served.ping()
    served.transfer(served.vm1, served.outside, SIZE_BYTES)
    served.transfer(served.outside, served.vm1, SIZE_BYTES)
    served.stop_pmd()


def test_a_killed_device_server_is_succeeded(served: Picture) -> None:
    pmd = served.pmd
    served.ping()
    served.device.kill()
    pmd.wait_for("its device is gone", STEP_TIMEOUT_S)
    served.unplug()
    served.vm1.close()
    served.start_device()
    served.start_vm1()
    served.plug()
    served.wait_until_served()
    served.ping()
    served.transfer(served.outside, served.vm1, SIZE_BYTES)
    served.stop_pmd()
