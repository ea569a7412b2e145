"""One more VM1, of 512 GiB: the embedded one, by a TAP device in a namespace of this machine.

Its memory is a file with holes, nearly all of which nobody ever touches.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.namespace import ip, namespace
from tools.lab.child import Child
from tools.lab.device import Device
from tools.lab.picture import STEP_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.lab.picture import Picture

SIZE_BYTES = 512 << 30
_PORT = "port4"  # which nothing else is plugged into: it keeps the addresses it is given
_FUNCTIONS = "lspci -Dnd 1af4:10f0 | sed 's/ .*//'"
# A root port is found anew with what is behind it, and then given as many addresses as that needs.
_PLACE = """\
cd $(readlink -f /sys/bus/pci/devices/{0}/..)
echo 1 > remove
echo 1 > /sys/bus/pci/rescan
stat -c %s /sys/bus/pci/devices/{0}/resource2
"""


@contextlib.contextmanager
def far_vm1(picture: Picture, mac: str, address: str) -> Iterator[str]:
    """It and its function, plugged into VM2: that one's PCI address there. This thread is in VM1's
    namespace meanwhile."""
    directory = picture.directory
    with namespace(), Device("far", directory, directory / "far") as device:
        command = [sys.executable, "-m", "tools.vm1.cli", "tap", "--tap", "vm1"]
        command += ["--vhost-user", str(device.vhost_user), "--memory", f"{SIZE_BYTES >> 30}G"]
        path = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        with Child("VM1", command, {**os.environ, **path}, directory / "far-vm1.log"):
            device.wait_until(device.vm1_is_up, STEP_TIMEOUT_S, "see VM1's rings")
            ip(f"link set vm1 address {mac}")
            ip(f"addr add {address}/24 dev vm1")
            ip("link set vm1 up")
            with _plugged(picture, device) as function:
                yield function


@contextlib.contextmanager
def _plugged(picture: Picture, device: Device) -> Iterator[str]:
    vm2 = picture.vm2
    before = vm2.agent.shell(_FUNCTIONS).split()
    socket = {"type": "unix", "path": str(device.vfio_user)}
    function = {**picture.function_properties(), "driver": "vfio-user-pci", "socket": socket}
    vm2.qmp.execute("device_add", id="far", bus=_PORT, **function)
    look = f"until [ $({_FUNCTIONS} | wc -l) -gt {len(before)} ]; do sleep 0.2; done"
    found = vm2.agent.shell(f"{look}; {_FUNCTIONS}", timeout_s=STEP_TIMEOUT_S).split()
    (address,) = set(found).difference(before)
    placed = vm2.agent.shell(_PLACE.format(address), timeout_s=STEP_TIMEOUT_S)
    assert int(placed) == SIZE_BYTES
    yield address
    vm2.qmp.execute("device_del", id="far")
    vm2.qmp.wait_event("DEVICE_DELETED", STEP_TIMEOUT_S, device="far")
