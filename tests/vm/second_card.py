"""A card of several queue pairs in VM2; a TAP device of this machine is outside."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from driver.software_vf import parse_vf
from guest.closing import Closing
from tests.driver.opening import opened
from tests.kernel.namespace import ip, namespace
from tools.lab.inside import transfer
from tools.lab.picture import STEP_TIMEOUT_S, VF_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.lab.picture import Picture

_FUNCTIONS = "lspci -Dnd 1af4:1041 | sed 's/ .*//'"

# As `pmd bind`, which takes seconds to start in an emulated machine, and is tested elsewhere.
_BIND = """\
cd /sys/bus/pci/devices/{0}
until ls virtio*/net/*; do sleep 0.1; done
echo vfio-pci > driver_override
echo {0} > driver/unbind
echo {0} > /sys/bus/pci/drivers_probe
[ $(basename $(readlink driver)) = vfio-pci ]
"""


@contextlib.contextmanager
def tap(address: str, queues: int) -> Iterator[list[int]]:
    """A TAP device in a namespace, with this thread in it; a descriptor of each of its queues."""
    with namespace(), opened(parse_vf("tap:wire1"), queues) as specs:
        ip(f"addr add {address}/24 dev wire1")
        ip("link set wire1 up")
        yield [spec.fd for spec in specs]


@contextlib.contextmanager
def second_card(picture: Picture, queues: Sequence[int]) -> Iterator[str]:
    """A card with a queue pair for each queue, bound to vfio-pci: its PCI address in VM2."""
    vm2, way = picture.vm2, VF_KINDS["virtio-net"]
    before = vm2.agent.shell(_FUNCTIONS).split()
    for number, fd in enumerate(queues):
        vm2.qmp.give(f"queue{number}", fd)
    fds = ":".join(f"queue{number}" for number in range(len(queues)))
    vm2.qmp.execute("netdev_add", type="tap", id="wire1", fds=fds)
    card = {"netdev": "wire1", "mac": "52:54:00:77:00:04"}
    several = {"mq": True, "vectors": 2 * len(queues) + 2}
    vm2.plug("wire1", way.card, named={**way.properties, **card, **several})
    wait = f"until [ $({_FUNCTIONS} | wc -l) -gt {len(before)} ]; do sleep 0.1; done"
    vm2.agent.shell(wait, timeout_s=STEP_TIMEOUT_S)
    (address,) = set(vm2.agent.shell(_FUNCTIONS).split()) - set(before)
    vm2.agent.shell(_BIND.format(address), timeout_s=STEP_TIMEOUT_S)
    yield address
    vm2.unplug("wire1")
    vm2.qmp.execute("netdev_del", id="wire1")


class Receive(Closing):
    """The receiving end of a transfer, in this thread's namespace; it listens."""

    def __init__(self, address: str, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(transfer.__file__)), "receive", address, str(port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def digest(self) -> str:
        """SHA-256 of all that came."""
        said, _ = self._process.communicate(timeout=STEP_TIMEOUT_S)
        assert self._process.returncode == 0
        return said.split()[0]

    def close(self) -> None:
        """End it. Twice is fine."""
        self._process.kill()
        self._process.communicate()
