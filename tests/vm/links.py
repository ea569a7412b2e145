"""Several links at once: network cards of one VM1, each with a function and a tap in one VM2.

VM2's own stack is outside here: the tap takes and gives long frames and unfinished checksums, which
no network card of QEMU's does for `pmd`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tools.lab import own
from tools.lab.device import Device
from tools.lab.picture import STEP_TIMEOUT_S, VM1_MEMORY_MIB, VM2_MEMORY_MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.vm.conftest import Ingredients, Stage
    from tools.lab.agent import Job
    from tools.lab.nic import Nic
    from tools.lab.vm import Vm

ETHERNET_BYTES = 14
DATA_BYTES = 1 << 20
_MAC = "52:54:00:78:00:{:02x}"
_FUNCTION = {"x-msg-timeout": 60_000}
_LOOK_S = 0.2
_PORT = 5000
_IPERF = 5201  # the first link's port
# Prints the interface with this address.
_FIND = """\
until file=$(grep -ls {} /sys/class/net/*/address); do sleep 0.2; done
basename $(dirname $file)
"""
_SILENT_UP = """\
setting=/proc/sys/net/ipv6/conf/{0}/disable_ipv6
until [ -e $setting ]; do sleep 0.2; done
echo 1 > $setting
ip addr replace {1}/24 dev {0}
ip link set {0} up
"""
# Data of the sender's own, made once; nobody may listen yet.
_SEND = """\
[ -e /tmp/data{2} ] || head -c {2} /dev/urandom > /tmp/data{2}
[ -e /tmp/sum{2} ] || sha256sum < /tmp/data{2} > /tmp/sum{2}
until nc {0} {1} < /tmp/data{2} 2>/tmp/why; do grep -q refused /tmp/why; sleep 0.2; done
cat /tmp/sum{2}
"""
_REBIND = """\
cd $(readlink -f /sys/class/net/{0}/device/driver)
device=$(basename $(readlink /sys/class/net/{0}/device))
echo $device > unbind
echo $device > bind
"""
# Changes settings one after another; each time frames go on both ways.
_CHANGE = """\
cd /sys/class/net/{0}/statistics
change() {{
    echo "$@"
    read sent < tx_bytes; read received < rx_bytes
    option=$1; shift
    ethtool $option {0} "$@"
    until read now < tx_bytes; [ $((now - sent)) -gt {1} ]; do sleep 0.2; done
    until read now < rx_bytes; [ $((now - received)) -gt {1} ]; do sleep 0.2; done
}}
"""
_FLOWS = """\
for port in $(seq 6001 $((6000 + {1}))); do
    nc {0} $port < /dev/null || :
done
"""
_COUNTERS = """\
cd /sys/class/net/{}/statistics; cat tx_packets tx_bytes rx_packets rx_bytes
"""


@dataclass(frozen=True, slots=True)
class Counters:
    """Of VM1's interface, or of the tap seen from VM1: frames without virtio-net header."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0

    def __add__(self, other: Counters) -> Counters:
        pairs = zip(self.numbers, other.numbers, strict=True)
        return Counters(*(a + b for a, b in pairs))

    def __sub__(self, other: Counters) -> Counters:
        pairs = zip(self.numbers, other.numbers, strict=True)
        return Counters(*(a - b for a, b in pairs))

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        return self.sent, self.sent_bytes, self.received, self.received_bytes

    def sent_longer_than(self, mtu: int) -> bool:
        """Whether any frame sent was; not proven is no."""
        return self.sent_bytes > self.sent * (mtu + ETHERNET_BYTES)

    def received_longer_than(self, mtu: int) -> bool:
        """Whether any frame received was; not proven is no."""
        return self.received_bytes > self.received * (mtu + ETHERNET_BYTES)


@dataclass(frozen=True, slots=True)
class Site:
    """Where links are: the machines, a directory for sockets and logs, and what ends it all."""

    vm1: Vm
    vm2: Vm
    directory: Path
    stage: Stage


class Link:
    """One network card, its device server, and its function and tap in VM2.

    Args:
        site: Where it is.
        number: Of the place it takes: the tap is vpNUMBER if places are taken in order.
        nic: VM1's network card.
        name: Of the logs.
    """

    def __init__(self, site: Site, number: int, nic: Nic, name: str) -> None:
        self._site, self.nic = site, nic
        self.vm1, self.vm2 = site.vm1, site.vm2
        self.name, self.number, self.tap = name, number, f"vp{number}"
        self.address, self.outside_address = (f"10.78.{number}.{end}" for end in (1, 2))
        self._mac = _MAC.format(number)
        self._former = Counters()
        self._server: Job | None = None
        self.start_device()

    def start_device(self) -> None:
        """Start the device server, or its successor."""
        directory = self._site.directory
        device = Device(self.name, directory, directory / f"place{self.number}")
        self.device = self._site.stage.enter(device)

    def wait_until_connected(self) -> None:
        """Return once VM1's QEMU has found the device server."""
        device = self.device

        def connected() -> bool:
            return bool(device.state()["vhost_user"]["connected"])

        device.wait_until(connected, STEP_TIMEOUT_S, "see VM1's front-end")

    def plug_nic(self) -> None:
        """Give VM1 its network card; return with its rings there."""
        self.nic.plug(self.vm1, self.name, self.device.vhost_user, self._mac)
        self.bring_up()

    def bring_up(self) -> None:
        """Set VM1's interface up, once the driver has made it."""
        agent = self.vm1.agent
        found = agent.shell(_FIND.format(self._mac), timeout_s=STEP_TIMEOUT_S)
        self.interface = found.strip()
        agent.shell(_SILENT_UP.format(self.interface, self.address), timeout_s=STEP_TIMEOUT_S)
        self.device.wait_until(self.device.vm1_is_up, STEP_TIMEOUT_S, "see VM1's rings")

    def plug_function(self) -> None:
        """Give VM2 the function; `pmd` there is to find it."""
        socket = {"type": "unix", "path": str(self.device.vfio_user)}
        self.vm2.plug(self.name, "vfio-user-pci", {"socket": socket, **_FUNCTION})

    def bring_tap_up(self) -> None:
        """Once `pmd` has made it."""
        script = _SILENT_UP.format(self.tap, self.outside_address)
        self.vm2.agent.shell(script, timeout_s=STEP_TIMEOUT_S)
        self._former = self.outside_counters()

    def settled(self, unsent: int = 0) -> Counters:
        """VM1's counters once it has all buffers back: all that it sent came out of the tap.

        unsent: At most so many did not, having been in a ring as VM1 switched it off.
        """
        deadline = time.monotonic() + STEP_TIMEOUT_S
        before = Counters()
        while True:
            outside = self.outside_counters() - self._former
            counters = self.counters()
            if counters.numbers[:2] == outside.numbers[:2]:
                return counters
            if counters == before and counters.sent - outside.sent <= unsent:
                return counters
            late = f"{self.name}: VM1 sent {counters}, outside saw {outside}"
            assert time.monotonic() < deadline, late
            before = counters
            time.sleep(_LOOK_S)

    def set_mtu(self, mtu: int) -> None:
        for vm, interface in ((self.vm1, self.interface), (self.vm2, self.tap)):
            vm.agent.shell(f"ip link set {interface} mtu {mtu}")

    def ping(self, *sizes_bytes: int) -> None:
        """Both ways, at once; sizes are of ICMP's data."""
        for size_bytes in sizes_bytes:
            words = ("ping", "-c", "1", "-w", "60", "-M", "do", "-s", str(size_bytes))
            pings = (
                self.vm1.agent.start(*words, self.outside_address),
                self.vm2.agent.start(*words, self.address),
            )
            for ping in pings:
                assert ping.wait(STEP_TIMEOUT_S) == 0, ping.text

    def transfer(self, size_bytes: int = DATA_BYTES) -> tuple[Counters, Counters]:
        """So much by TCP from VM1, then back; what arrives is what was sent. What passed, each."""
        counted = [self.passed()]
        for source, target, address in (
            (self.vm1, self.vm2, self.outside_address),
            (self.vm2, self.vm1, self.address),
        ):
            receive = target.agent.start("sh", "-c", f"nc -l -p {_PORT} | sha256sum")
            sent = source.agent.shell(
                _SEND.format(address, _PORT, size_bytes), timeout_s=STEP_TIMEOUT_S
            )
            assert receive.wait(STEP_TIMEOUT_S) == 0, receive.text
            assert receive.output.decode() == sent
            counted.append(self.passed())
        before, between, after = counted
        return between - before, after - between

    def iperf(self, *options: str) -> Counters:
        """What passed while iperf3 ran in VM1, as a client."""
        before = self.passed()
        client = self.start_iperf("--json", *options)
        assert client.wait(STEP_TIMEOUT_S) == 0, client.text
        assert json.loads(client.output)["end"]["sum_received"]["bytes"] > 0
        return self.passed() - before

    def start_iperf(self, *options: str) -> Job:
        """A client in VM1; its server serves one at a time."""
        port = str(_IPERF + self.number)
        if self._server is None:
            self._server = self.vm2.agent.start("iperf3", "-s", "-p", port, "--forceflush")
            self._server.wait_for("listening", STEP_TIMEOUT_S)
        words = ("iperf3", "-c", self.outside_address, "-p", port)
        return self.vm1.agent.start(*words, *options)

    def start_flows(self, count: int) -> Job:
        """So many flows of a frame each way: connections from VM1 that are refused."""
        return self.vm1.agent.start("sh", "-c", _FLOWS.format(self.outside_address, count))

    def counters(self) -> Counters:
        """Of VM1's interface; what it sent is counted once its driver has the buffers back."""
        said = self.vm1.agent.shell(_COUNTERS.format(self.interface))
        return Counters(*(int(word) for word in said.split()))

    def passed(self) -> Counters:
        """What came out of the tap, and what VM1 received: neither is late."""
        there, back = self.outside_counters(), self.counters()
        return Counters(there.sent, there.sent_bytes, back.received, back.received_bytes)

    def outside_counters(self) -> Counters:
        """Of the tap, whose transmitting is VM1's receiving."""
        said = self.vm2.agent.shell(_COUNTERS.format(self.tap))
        received, received_bytes, sent, sent_bytes = (int(word) for word in said.split())
        return Counters(sent, sent_bytes, received, received_bytes)

    def negotiated(self) -> int:
        """The feature bits that VM1's driver and QEMU agreed on."""
        file = f"/sys/class/net/{self.interface}/device/features"
        bits = self.vm1.agent.run("cat", file).strip()
        return sum(1 << number for number, bit in enumerate(bits) if bit == "1")

    def ethtool(self, *words: str) -> str:
        """Of VM1's interface: the option first."""
        option, *rest = words
        return self.vm1.agent.run("ethtool", option, self.interface, *rest)

    def start_changes(self, changes: Iterable[Sequence[str]], moved_bytes: int) -> Job:
        """Of VM1's interface, by `ethtool`; after each so much is to move, both ways."""
        calls = "\n".join(f"change {' '.join(words)}" for words in changes)
        script = _CHANGE.format(self.interface, moved_bytes)
        return self.vm1.agent.start("sh", "-ec", f"{script}{calls}")

    def unplug(self) -> None:
        """VM1 loses its card while it is served, then VM2 its function; the server ends."""
        if self._server is not None:
            self._server.signal()
        self.nic.unplug(self.vm1, self.name)
        device = self.device
        device.wait_until(lambda: not device.vm1_is_up(), STEP_TIMEOUT_S, "see VM1's card go")
        self.unplug_function()
        device.close()

    def unplug_function(self) -> None:
        self.vm2.unplug(self.name)

    def rebind(self) -> None:
        """Have VM1's driver begin anew: its device is reset."""
        again = _REBIND.format(self.interface)
        self.vm1.agent.shell(again, timeout_s=STEP_TIMEOUT_S)
        self.bring_up()


class Links:
    """VM1, VM2, `pmd` in it for whatever functions come, and the links that are up.

    Args:
        ingredients: Where machines come from.
        stage: What ends them.
    """

    def __init__(self, ingredients: Ingredients, stage: Stage) -> None:
        self._ingredients, self._stage = ingredients, stage
        self.begin()

    def begin(self) -> None:
        """The machines anew, without a link; nothing is counted yet."""
        ingredients, stage = self._ingredients, self._stage
        stage.clear()
        directory = stage.another().directory
        vm1, vm2 = (
            stage.enter(ingredients.templates.restore(name, memory_mib, directory))
            for name, memory_mib in (("vm1", VM1_MEMORY_MIB), ("vm2", VM2_MEMORY_MIB))
        )
        self.site = Site(vm1, vm2, directory, stage)
        own.install(vm2, ingredients.package)
        vm1.agent.shell("modprobe virtio_net", timeout_s=STEP_TIMEOUT_S)
        vm2.agent.shell("modprobe tun", timeout_s=STEP_TIMEOUT_S)
        options = ("--bar", "2", "--vf", "tap:vp{n}", "--poll", "adaptive", "--json")
        self.pmd = vm2.agent.start("pmd", "run", *options)
        self._up: list[Link] = []
        self._count = 0
        # By place, of all links that were there.
        self.counters: dict[int, Counters] = {}

    def add(self, nic: Nic) -> Link:
        """One more link, in the first place that is free, and served."""
        number = len(self._up)
        self._count += 1
        name = f"link{self._count}"
        link = Link(self.site, number, nic, name)
        self._up.append(link)
        link.plug_nic()
        self.serve(link)
        return link

    def serve(self, link: Link) -> None:
        """Give VM2 the function, and return once `pmd` serves it, with its tap up."""
        link.plug_function()
        self.wait_until_served(link)
        link.bring_tap_up()

    def wait_until_served(self, link: Link) -> None:
        def served() -> bool:
            if self.pmd.status is not None:
                raise self.pmd.failure(f"ended with status {self.pmd.status}")
            return link.device.is_served()

        self.pmd.wait_until(served, STEP_TIMEOUT_S, f"does not serve {link.name}")

    def remove_all(self, unsent: int = 0) -> None:
        """Unplug them, counted. unsent: as of `Link.settled`."""
        for link in self._up:
            self.count(link, unsent)
            link.unplug()
        self._up.clear()

    def count(self, link: Link, unsent: int = 0) -> None:
        """Add what VM1's interface counted, which ends now, to `counters`."""
        before = self.counters.get(link.number, Counters())
        self.counters[link.number] = before + link.settled(unsent)

    def end_pmd(self) -> list[dict[str, Any]]:
        """End it as a service manager would; the channels of its statistics, by place."""
        self.pmd.signal()
        assert self.pmd.wait(STEP_TIMEOUT_S) == 0, self.pmd.text
        channels = json.loads(self.pmd.output)["channels"]
        return sorted(channels, key=lambda channel: str(channel["vf"]))
