"""An SR-IOV card in VM2 whose VF has several queue pairs, and packed rings; a TAP device of this
machine is outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from driver.software_vf import parse_vf
from guest.closing import Closing
from tests.driver.opening import opened
from tests.kernel.namespace import ip, namespace, run
from tools.lab.inside import transfer
from tools.lab.picture import STEP_TIMEOUT_S, VF_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.lab.picture import Picture

WIRE = "wire"  # the cable's end outside
_FINISH = "ethtool -K cable tx off tso off gso off"
_FUNCTIONS = "lspci -Dnd 1af4:1041 | sed 's/ .*//'"

# QEMU composes a card of functions (its docs/system/sriov.rst): a VF comes before its PF, and lies
# where an igb's do, since Linux puts what shares a slot into one IOMMU group.
_VF_PLACE = "0x10.0"

# The PF stays its driver's. As `pmd bind`, which takes seconds to start in an emulated machine, and
# is tested elsewhere.
_MAKE_VF = """\
cd /sys/bus/pci/devices/{0}
until ls virtio*/net/*; do sleep 0.2; done >&2
echo 0 > sriov_drivers_autoprobe
echo 1 > sriov_numvfs
cd $(readlink -f virtfn0)
echo vfio-pci > driver_override
basename $PWD > /sys/bus/pci/drivers_probe
[ $(basename $(readlink driver)) = vfio-pci ]
basename $PWD
"""


@contextlib.contextmanager
def tap(address: str, queues: int) -> Iterator[list[int]]:
    """A TAP device, bridged to a cable that leads to this thread's namespace; a descriptor of each
    of its queues.

    The device takes unfinished checksums and long frames; on the cable nothing of that is left.
    """
    with namespace(), opened(parse_vf("tap:wire1"), queues) as specs, _this_namespace() as there:
        ip("link add bridge type bridge")
        ip("link set bridge up")
        ip("link set wire1 master bridge up")
        with namespace():
            ip(f"link add {WIRE} type veth peer name cable netns {there}")
            for words in ("ip link set cable master bridge up", _FINISH):
                run("nsenter", f"--net={there}", *words.split())
            ip(f"addr add {address}/24 dev {WIRE}")
            ip(f"link set {WIRE} up")
            yield [spec.fd for spec in specs]


@contextlib.contextmanager
def _this_namespace() -> Iterator[str]:
    """A path of the network namespace that this thread has now."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def second_card(picture: Picture, queues: Sequence[int]) -> Iterator[str]:
    """A VF with a queue pair for each queue, bound to vfio-pci: its PCI address in VM2."""
    vm2, way = picture.vm2, VF_KINDS["virtio-net"]
    before = vm2.agent.shell(_FUNCTIONS).split()
    for number, fd in enumerate(queues):
        vm2.qmp.give(f"queue{number}", fd)
    fds = ":".join(f"queue{number}" for number in range(len(queues)))
    vm2.qmp.execute("netdev_add", type="tap", id="wire1", fds=fds)
    place = {
        "id": "vf1",
        "bus": f"port{vm2.free_port('pf1')}",
        "addr": _VF_PLACE,
        "sriov-pf": "pf1",
    }
    card = {"netdev": "wire1", "mac": "52:54:00:77:00:04", "packed": True}
    several = {"mq": True, "vectors": 2 * len(queues) + 2}
    vf = {"driver": way.card, **place, **way.properties, **card, **several}
    vm2.qmp.execute_named("device_add", vf)
    vm2.plug("pf1", way.card, named=way.properties)
    wait = f"until [ $({_FUNCTIONS} | wc -l) -gt {len(before)} ]; do sleep 0.2; done"
    vm2.agent.shell(wait, timeout_s=STEP_TIMEOUT_S)
    (address,) = set(vm2.agent.shell(_FUNCTIONS).split()) - set(before)
    yield vm2.agent.shell(_MAKE_VF.format(address), timeout_s=STEP_TIMEOUT_S).strip()
    vm2.unplug("pf1")  # its VF goes first
    vm2.qmp.execute("netdev_del", id="wire1")


class End(Closing):
    """One end of a transfer, in this thread's namespace."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(transfer.__file__)), *words],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._said = self._process.stdout

    def digest(self) -> str:
        """SHA-256 of all that came, or went."""
        said, _ = self._process.communicate(timeout=STEP_TIMEOUT_S)
        assert self._process.returncode == 0
        return said.split()[0]

    def close(self) -> None:
        """End it. Twice is fine."""
        self._process.kill()
        self._process.communicate()


class Receive(End):
    """The receiving end; it listens."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__("receive", address, str(port))
        assert self._said.readline() == "ready\n"


class Send(End):
    """The sending end: somebody listens."""

    def __init__(self, address: str, port: int, size_bytes: int) -> None:
        super().__init__("send", address, str(port), str(size_bytes))
