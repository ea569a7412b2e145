"""A device server that is killed, under QEMU 11.1.3: now and then that takes VM2 with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from tools.lab.picture import STEP_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.lab.agent import Job
    from tools.lab.device import Device
    from tools.lab.vm import Vm

_QEMU_FAULT = "error_setv: Assertion `*errp == NULL' failed"


def outlives_its_device(device: Device, pmd: Job, vm2: Vm, unplug: Callable[[], None]) -> bool:
    """Kill the device server; `pmd` in VM2 says so, and its function is unplugged.

    Returns:
        False where QEMU's fault ended VM2 meanwhile (docs/deploy.md, 5).
    """
    device.kill()
    began = time.monotonic()
    try:
        pmd.wait_for("its device is gone", STEP_TIMEOUT_S)
        print(f"from its device's end until pmd said so: {time.monotonic() - began:.2f} s")
        unplug()
    except VhostPciError:
        log = vm2.process.log.read_text(errors="replace")
        if vm2.process.running or _QEMU_FAULT not in log:
            raise
        print("QEMU's fault has ended VM2")
        return False
    return True
