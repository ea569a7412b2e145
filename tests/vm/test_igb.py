"""An igb VF between stock Linux guests: nothing is copied, and it outlives what befalls it."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP
from scapy.utils import rdpcap

from tests.kernel.offload_frames import check
from tools.lab.picture import STEP_TIMEOUT_S, VF_KINDS, VM1_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.vm.conftest import Stage
    from tools.lab.agent import Job
    from tools.lab.picture import Picture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

LARGE_BYTES = 50_000_000
CAPTURED_BYTES = 300_000
ETHERNET_BYTES = 14
MSS_MAX = 1460  # of an MTU of 1500
SMALL_BYTES = 1_000_000
WAY = VF_KINDS["igb"]
GOES_ON_FRAMES = 300


def _bring_up(picture: Picture) -> None:
    picture.start_device()
    picture.start_vm1()
    picture.start_vm2(kind="igb")
    picture.plug()
    picture.start_pmd("igb", "--json", "--poll", "interrupt", *WAY.options)


@pytest.fixture
def up(stage: Stage, cleared: None) -> Picture:  # noqa: ARG001 - what it does comes after
    """All of it, and `pmd` serving by the VF."""
    return stage.picture(_bring_up)


def vm1_counters(picture: Picture) -> tuple[int, int]:
    """Frames that VM1's driver had back from its transmitq, and that it received."""
    script = "cd /sys/class/net/eth0/statistics; cat tx_packets rx_packets"
    sent, received = picture.vm1.agent.shell(script).split()
    return int(sent), int(received)


def vf_interrupts(picture: Picture) -> int:
    """How many VM2 has had from the VF; vhost-pci functions have no MSI-X."""
    count = "awk '/vfio-msix/ { n += $2 + $3 } END { print n + 0 }' /proc/interrupts"
    return int(picture.vm2.agent.shell(count))


@contextlib.contextmanager
def captured(picture: Picture, path: Path) -> Iterator[None]:
    """What outside receives and sends meanwhile, in a pcap file."""
    dump = {"qom-type": "filter-dump", "id": "dump", "netdev": "wire0", "maxlen": 1 << 16}
    picture.outside.qmp.execute("object-add", **dump, file=str(path))
    yield
    picture.outside.qmp.execute("object-del", id="dump")


def test_the_vf_does_what_vm1_leaves_to_its_device(up: Picture, tmp_path: Path) -> None:
    """On the wire are legal segments, more than frames of VM1's; that none of these was copied is
    for the last test."""
    wire = tmp_path / "wire.pcap"
    before, _ = vm1_counters(up)
    with captured(up, wire):
        up.transfer(up.vm1, up.outside, CAPTURED_BYTES)
    after, _ = vm1_counters(up)
    sent = [each for each in rdpcap(str(wire)) if TCP in each and each[IP].src == VM1_ADDRESS]
    carried: set[int] = set()
    for each in sent:
        ip = check(bytes(each)[: ETHERNET_BYTES + each[IP].len])[IP]  # without padding
        size = ip.len - 4 * (ip.ihl + ip[TCP].dataofs)
        assert size <= MSS_MAX
        carried.update(range(ip[TCP].seq, ip[TCP].seq + size))
    assert len(carried) == CAPTURED_BYTES
    assert after - before < len(sent)  # on a busy machine TCP has two segments in a frame


def test_all_sizes_and_fifty_megabytes(up: Picture) -> None:
    """Woken for what comes: a sleep else ends after 40 ms, whatever comes."""
    before = vf_interrupts(up)
    up.ping()
    assert vf_interrupts(up) > before
    up.sweep()
    up.sweep(WAY.vlan)
    up.transfer(up.vm1, up.outside, LARGE_BYTES)
    up.transfer(up.outside, up.vm1, LARGE_BYTES)


def goes_on(stream: Job) -> None:
    """Return once so many more frames came back to VM1."""

    def back() -> int:
        return max((int(each) for each in re.findall(r"back (\d+)", stream.text)), default=0)

    wanted = back() + GOES_ON_FRAMES

    def ended_or_back() -> bool:
        return stream.status is not None or back() >= wanted

    stream.wait_until(ended_or_back, STEP_TIMEOUT_S, "has no more frames back")
    assert stream.status is None, stream.text


@contextlib.contextmanager
def told(picture: Picture, words: str) -> Iterator[None]:
    """What is done in it makes `pmd` say that, once more."""
    pmd = picture.pmd
    before = pmd.text.count(words)
    yield
    pmd.wait_until(lambda: pmd.text.count(words) > before, STEP_TIMEOUT_S, f"does not say {words}")


def test_resets_and_links_under_load_and_nothing_was_copied(up: Picture) -> None:
    """The last one: it ends `pmd`, whose statistics are of both."""
    reflection, stream = up.reflect(), up.stream()
    goes_on(stream)

    device = "/sys/class/net/eth0/device"
    with told(up, "opening it anew"):
        up.vm2.agent.shell(f"echo 1 > {device}/virtfn0/reset")  # a function-level reset
    goes_on(stream)

    with told(up, "dropping frames meanwhile"):
        up.vm2.agent.shell("ip link set eth0 down")
    up.vm2.agent.shell("ip link set eth0 up")
    goes_on(stream)

    for _ in range(2):
        with told(up, "link down"):
            up.vm2.qmp.execute("set_link", name="wire0", up=False)
        up.vm2.qmp.execute("set_link", name="wire0", up=True)
        goes_on(stream)

    for job in (stream, reflection):
        job.signal()
        job.wait(STEP_TIMEOUT_S)
    up.ping()
    up.transfer(up.outside, up.vm1, SMALL_BYTES)
    sent, received = vm1_counters(up)
    (channel,) = up.stop_pmd()["channels"]
    # Each buffer of VM1's came back, once.
    drops = channel["vm1_to_vf"]["drops"]
    assert sent == channel["vm1_to_vf"]["packets"] + sum(drops.values())
    assert received == channel["vf_to_vm1"]["packets"]
    assert "is not a head" not in up.vm1.agent.shell("dmesg")
    # What was lost is told.
    assert {"vf_down"} <= set(drops) <= {"vf_down", "vf_error"}
    assert set(channel["vf_to_vm1"]["drops"]) <= {"vf_error"}
    # And nothing was copied, not even of what was lost.
    assert channel["tx_zero_copy"] == channel["vm1_to_vf"]["packets"] + drops.get("vf_error", 0)
    assert channel["rx_zero_copy"] == channel["vf_to_vm1"]["packets"]
