"""The whole picture: VM1 - vhost-pci-device - VM2 - wire - outside, and what moves through it.

Outside is a third machine with a stack of its own: neither VM1 nor VM2 answers for it. The wire is
a stream between two network cards that QEMU emulates. `docs/architecture.md` has the drawing.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guest.closing import Closing
from guest.errors import VhostPciError
from tools.lab import own
from tools.lab.device import Device
from tools.lab.nic import Nic
from tools.lab.vm import BOUNCE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from tools.lab.agent import Job
    from tools.lab.template import Templates
    from tools.lab.vm import Vm

VM1_MEMORY_MIB = 512
VM2_MEMORY_MIB = 512
VM1_ADDRESS = "10.77.0.1"
OUTSIDE_ADDRESS = "10.77.0.2"
_PREFIX = 24
_PORT = 5000
_VLAN = 5
FRAME_BYTES = range(60, 1515)  # of an MTU of 1500, with Ethernet's header
_TAG_BYTES = 4
_MAC = "52:54:00:77:00:{:02x}"

_MESSAGE_TIMEOUT_MS = 60_000  # QEMU's connection never recovers from a reply that was late
# Deadlines for machines without KVM on a machine that is busy with other things.
STEP_TIMEOUT_S = 180.0
_TRANSFER_TIMEOUT_S = 600.0
_PING_S = "60"

# An ordinary one, that takes little to emulate.
_CARD, _DRIVER = "virtio-net-pci", "virtio_net"
# Where frames go in VM2, by kind of VF: how to prepare it, and what `pmd run --vf` is told.
_BRIDGE = """\
modprobe tun
modprobe bridge
ip tuntap add tap0 mode tap
ip link add br0 type bridge
ip link set tap0 master br0
ip link set eth0 master br0
ip link set tap0 up
ip link set br0 up
"""
# As `pmd bind`, which is tested elsewhere: its libraries take seconds to load where emulated.
_BIND = """\
modprobe vfio-pci
bind() {
    cd /sys/bus/pci/devices/$1
    echo vfio-pci > driver_override
    [ ! -e driver ] || echo $1 > driver/unbind
    echo $1 > /sys/bus/pci/drivers_probe
    [ $(basename $(readlink driver)) = vfio-pci ]
}
"""
# The card's own driver keeps the PF, and answers the VF's mailbox only while it is up.
_SRIOV = f"""\
{_BIND}
device=$(readlink -f /sys/class/net/eth0/device)
echo 0 > $device/sriov_drivers_autoprobe
echo 1 > $device/sriov_numvfs
vf=$(basename $(readlink $device/virtfn0))
bind $vf
echo $vf
"""
# eth0 is the function itself: its own driver has to let go of it.
_TAKE_OVER = f"""\
{_BIND}
function=$(basename $(dirname $(readlink -f /sys/class/net/eth0/device)))
ip link set eth0 down
bind $function
echo $function
"""
# The VF is the kernel's too, if it was `pmd`'s before: it has VM1's address when its driver looks.
_SRIOV_INTERFACE = f"""\
modprobe igbvf
device=$(readlink -f /sys/class/net/eth0/device)
echo 0 > $device/sriov_drivers_autoprobe
echo 1 > $device/sriov_numvfs
vf=$(readlink -f $device/virtfn0)
[ ! -e $vf/driver ] || basename $vf > $vf/driver/unbind
echo > $vf/driver_override
ip link set eth0 vf 0 mac {_MAC.format(1)}
echo 1 > $device/sriov_drivers_autoprobe
basename $vf > /sys/bus/pci/drivers/igbvf/bind
interface=$(ls $vf/net)
echo 1 > /proc/sys/net/ipv6/conf/$interface/disable_ipv6
ip link set $interface up
echo $interface
"""


@dataclass(frozen=True, slots=True)
class VfKind:
    """A way out of VM2.

    Attributes:
        card: QEMU's name of the network card.
        prepare: Shell script for VM2, run once.
        spec: For `pmd run --vf`; {} is what the script said.
        driver: The card's own, if its name is another.
        properties: Of the card, as of QMP's device_add.
        copies: Whether frames are copied between it and VM1.
        offloads: Whether it does what VM1 leaves to it.
        vlan: One that its frames may be tagged for; 0: that depends.
    """

    card: str
    prepare: str
    spec: str
    driver: str = ""
    properties: dict[str, object] = field(default_factory=dict)
    copies: bool = True
    offloads: bool = False
    vlan: int = 0

    @property
    def options(self) -> tuple[str, ...]:
        """Of `pmd run` beside --vf, to have it do all that it can."""
        return () if self.copies else ("--copy", "never")


VF_KINDS = {
    "packet": VfKind(_CARD, "", "packet:eth0", driver=_DRIVER),
    "tap": VfKind(_CARD, _BRIDGE, "tap:tap0", driver=_DRIVER),
    "igb": VfKind(
        "igb",
        _SRIOV,
        f"igbvf:{{}},{_MAC.format(1)},vlans={_VLAN}",
        copies=False,
        offloads=True,
        vlan=_VLAN,
    ),
    "virtio-net": VfKind(
        "virtio-net-pci",
        _TAKE_OVER,
        "virtio-net:{}," + _MAC.format(1),
        driver="virtio_net",
        properties={
            "disable-legacy": "on",
            "iommu_platform": True,
            "x-max-bounce-buffer-size": BOUNCE_BYTES,
        },
        copies=False,
        vlan=_VLAN,
    ),
    "xdp": VfKind("igb", _SRIOV_INTERFACE, "xdp:{}"),
    "xdp-igb": VfKind("igb", "", "xdp:eth0"),
    "xdp-virtio-net": VfKind(_CARD, "", "xdp:eth0", _DRIVER, {"iommu_platform": True}),
}
_WAIT_FOR_FILE = "n=0; while [ ! -e {0} ]; do n=$((n+1)); [ $n -lt 450 ]; sleep 0.2; done"
_PROGRAMS = "/usr/lib/vhost-pci-lab"
_FRAMES = ("python3", f"{_PROGRAMS}/frames.py")
TRANSFER = ("python3", f"{_PROGRAMS}/transfer.py")
# By their id (docs/device.md, section 2); lspci reads all of everybody's registers.
_FUNCTIONS = "grep -ls 0x10f0 /sys/bus/pci/devices/*/device | cut -d / -f 6"


class Picture(Closing):
    """The machines, the device server and `pmd`; brought up step by step, in the order below.

    A context manager that ends everything. Thread rule: one thread. Every step raises
    VhostPciError with what went wrong.

    Args:
        templates: Where machines come from.
        package: Of `own.package`, for VM2.
        directory: For sockets and logs; it has to stay until after `close`, and its path short.
        number: Of the interface by which VM2 reaches outside: 0; 1 in another picture's (`join`).
        nic: VM1's network card.
    """

    def __init__(
        self,
        templates: Templates,
        package: Path,
        directory: Path,
        number: int = 0,
        nic: Nic | None = None,
    ) -> None:
        self._templates = templates
        self._package = package
        self.directory = directory
        self.nic = nic or Nic()
        self.interface = f"eth{number}"
        self._function = f"vhost-pci{number}"  # its id in VM2
        self._wire = f"wire{number}"
        self._stack = contextlib.ExitStack()
        self._starts: dict[str, int] = {}
        self._specs: dict[str, str] = {}  # by kind of VF that VM2 is prepared for

    def start_device(self) -> None:
        """Start the device server, or one that takes the place of one that died."""
        device = Device(self._name("device"), self.directory, self.directory / "device")
        self.device = self._stack.enter_context(device)

    def start_vm1(self, memory_mib: int = VM1_MEMORY_MIB) -> None:
        """Start VM1 on the device, its interface up: the stock driver's rings are there then."""
        vm1 = self._restore("vm1", memory_mib, iommu=False)
        self.vm1 = vm1
        self.nic.plug(vm1, "net0", self.device.vhost_user, _MAC.format(1))
        _bring_up(vm1, "virtio_net", "eth0", f"{VM1_ADDRESS}/{_PREFIX}")
        self.device.wait_until(self.device.vm1_is_up, STEP_TIMEOUT_S, "see VM1's rings")

    def start_vm2(self, memory_mib: int = VM2_MEMORY_MIB, kind: str = "packet") -> None:
        """Start VM2, with the card that a VF of that kind needs, and what lies outside."""
        vm2 = self._restore("vm2", memory_mib, iommu=True)
        own.install(vm2, self._package)
        self.join(vm2, kind)

    def join(self, vm2: Vm, kind: str = "packet") -> None:
        """Give VM2, which may be another picture's, one more card, and start what lies outside."""
        self.vm2 = vm2
        self._specs.clear()
        outside = self._restore("outside", VM2_MEMORY_MIB, iommu=False)
        self.outside = outside
        wire = {"type": "unix", "path": str(self.directory / f"{vm2.name}.wire")}
        for vm, server in ((vm2, True), (outside, False)):
            vm.qmp.execute("netdev_add", type="stream", id=self._wire, server=server, addr=wire)
        way = VF_KINDS[kind]
        vm2.plug(self._wire, way.card, netdev=self._wire, mac=_MAC.format(2), named=way.properties)
        outside.plug(self._wire, _CARD, netdev=self._wire, mac=_MAC.format(3))
        _bring_up(vm2, way.driver or way.card, self.interface, "")
        # What was merged on arrival would be longer than any frame VM1 has room for.
        vm2.agent.shell(f"ethtool -K {self.interface} gro off tso off gso off")
        _bring_up(outside, _DRIVER, "eth0", f"{OUTSIDE_ADDRESS}/{_PREFIX}")

    def plug(self) -> str:
        """Plug the function into VM2, and return its PCI address there."""
        before = self.vm2.agent.shell(_FUNCTIONS).split()
        self.vm2.plug(self._function, "vfio-user-pci", self.function_properties())
        look = f"until [ $({_FUNCTIONS} | wc -l) -gt {len(before)} ]; do sleep 0.2; done"
        found = self.vm2.agent.shell(f"{look}; {_FUNCTIONS}", timeout_s=STEP_TIMEOUT_S)
        return set(found.split()).difference(before).pop()

    def function_properties(self) -> dict[str, object]:
        """Of a vfio-user-pci that is this picture's function, for QMP's device_add."""
        socket = {"type": "unix", "path": str(self.device.vfio_user)}
        return {"socket": socket, "x-msg-timeout": _MESSAGE_TIMEOUT_MS}

    def bind(self, address: str) -> None:
        """Give the function to vfio-pci."""
        self.vm2.agent.run("pmd", "bind", address, timeout_s=STEP_TIMEOUT_S)

    def start_pmd(self, kind: str, *options: str) -> Job:
        """Run `pmd` in VM2 between the function and a VF of that kind, and wait until it serves.

        Where frames are not to be copied, VM1 has to finish their checksums itself, or the VF.
        """
        if kind not in self._specs:
            script = VF_KINDS[kind].prepare
            said = self.vm2.agent.shell(script, timeout_s=STEP_TIMEOUT_S) if script else ""
            self._specs[kind] = VF_KINDS[kind].spec.format(said.strip())
        return self.run_pmd("--vf", self._specs[kind], *options)

    def finish_checksums(self) -> None:
        """Have VM1 do so, and leave no segmenting to others: what is left to us is copied."""
        self.vm1.agent.shell("ethtool -K eth0 tx off")

    def run_pmd(self, *options: str) -> Job:
        """Run `pmd` in VM2 with these options, and wait until it serves."""
        self.pmd = self.vm2.agent.start("pmd", "run", "--bar", "2", *options)
        self.wait_until_served()
        return self.pmd

    def wait_until_served(self) -> None:
        """Return once `pmd` has VM1's rings."""
        pmd, device = self.pmd, self.device

        def served() -> bool:
            if pmd.status is not None:
                raise pmd.failure(f"ended with status {pmd.status}")
            return device.is_served()

        pmd.wait_until(served, STEP_TIMEOUT_S, "does not serve VM1")

    def stop_pmd(self) -> dict[str, Any]:
        """End `pmd` as a service manager would; its exit status has to be 0.

        Returns:
            Its statistics, if it runs with --json.
        """
        self.pmd.signal()
        if self.pmd.wait(STEP_TIMEOUT_S) != 0:
            raise self.pmd.failure(f"ended with status {self.pmd.status}")
        said = self.pmd.output
        statistics: dict[str, Any] = json.loads(said) if said.startswith(b"{") else {}
        return statistics

    def ping(self, count: int = 5, size_bytes: int = 1000) -> str:
        """Ping both ways, until so many packets are answered; round trip times in words.

        With -w, since ping else waits for two round trips only: a busy host takes longer at times.
        It gives up all the same where an address is not found in three seconds, so one is sent
        again and again first.

        Args:
            count: How many answers, each way.
            size_bytes: Of ICMP's data; packets are not fragmented.
        """
        times = []
        for vm, target in ((self.vm1, OUTSIDE_ADDRESS), (self.outside, VM1_ADDRESS)):
            once = f"until ping -c 1 -W 2 {target} >/dev/null"
            again = "do n=$((n+1)); [ $n -lt 20 ] || break; done"
            vm.agent.shell(f"n=0; {once}; {again}", timeout_s=STEP_TIMEOUT_S)
            words = ["ping", "-c", str(count), "-i", "0.2", "-w", _PING_S, "-s", str(size_bytes)]
            said = vm.agent.run(*words, "-M", "do", target, timeout_s=STEP_TIMEOUT_S)
            average = re.search(r"= [\d.]+/([\d.]+)/", said)
            times.append(f"{average[1]} ms" if average else "answered")
        return " there, ".join(times) + " back"

    def reflect(self) -> Job:
        """Have outside send frames of ours back, until the job is ended."""
        job = self.outside.agent.start(*_FRAMES, "reflect", "eth0")
        job.wait_for("ready", STEP_TIMEOUT_S)
        return job

    def stream(self) -> Job:
        """Have VM1 send frames of all sizes to outside's reflection, until the job is ended."""
        return self.vm1.agent.start(*_FRAMES, "stream", "eth0", _MAC.format(3))

    def sweep(self, vlan: int = 0) -> int:
        """Frames of each size from VM1 to outside and back, byte for byte; how many.

        Args:
            vlan: Its tag is in all of them; 0: in none.
        """
        tag = _TAG_BYTES if vlan else 0
        sizes = (str(FRAME_BYTES[0] + tag), str(FRAME_BYTES[-1] + tag), str(vlan))
        reflection = self.reflect()
        sweep = self.vm1.agent.start(*_FRAMES, "sweep", "eth0", _MAC.format(3), *sizes)
        sweep.wait(STEP_TIMEOUT_S)
        reflection.signal()
        reflection.wait(STEP_TIMEOUT_S)
        count = int(sweep.output or 0)
        if count < len(FRAME_BYTES):
            raise sweep.failure(f"had {count} of {len(FRAME_BYTES)} frames back")
        return count

    def transfer(self, source: Vm, target: Vm, size_bytes: int) -> tuple[str, float]:
        """Send random bytes by TCP; the SHA-256 that both ends found, and how long it took in s."""
        address = VM1_ADDRESS if target is self.vm1 else OUTSIDE_ADDRESS
        receive = target.agent.start(*TRANSFER, "receive", address, str(_PORT))
        receive.wait_for("ready", STEP_TIMEOUT_S)
        words = [*TRANSFER, "send", address, str(_PORT), str(size_bytes)]
        sent = source.agent.run(*words, timeout_s=_TRANSFER_TIMEOUT_S).strip()
        if receive.wait(STEP_TIMEOUT_S) != 0:
            raise receive.failure(f"ended with status {receive.status}")
        received, duration_s = receive.output.decode().split()[-2:]
        if sent != received or len(sent) != 64:
            cause = f"{source.name} sent {sent}, {target.name} received {received}"
            raise VhostPciError("compare", "what went over by TCP", cause)
        return sent, float(duration_s)

    def unplug(self) -> None:
        """Take the function out of VM2."""
        self.vm2.unplug(self._function)

    def stop_vm1(self) -> None:
        """Shut VM1 down, and see the device notice."""
        self.vm1.agent.start("busybox", "poweroff", "-f")
        self.vm1.process.wait(STEP_TIMEOUT_S)
        self.vm1.close()
        device = self.device
        device.wait_until(lambda: not device.vm1_is_up(), STEP_TIMEOUT_S, "see VM1 go")

    def _restore(self, role: str, memory_mib: int, *, iommu: bool) -> Vm:
        vm = self._templates.restore(self._name(role), memory_mib, self.directory, iommu=iommu)
        return self._stack.enter_context(vm)

    def _name(self, role: str) -> str:
        """vm1, then vm1-2, ...: the logs of all of them stay."""
        count = self._starts[role] = self._starts.get(role, 0) + 1
        return role if count == 1 else f"{role}-{count}"

    def close(self) -> None:
        """End everything. Twice is fine."""
        self._stack.close()


def _bring_up(vm: Vm, module: str, interface: str, address: str) -> None:
    """Load the driver, wait for the interface, bring it up. No IPv6: nothing is sent unasked."""
    setting = f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"  # comes after the interface
    script = f"modprobe {module}; {_WAIT_FOR_FILE.format(setting)}; echo 1 > {setting};"
    script += f"ip addr add {address} dev {interface};" if address else ""
    vm.agent.shell(f"{script} ip link set {interface} up", timeout_s=STEP_TIMEOUT_S)
