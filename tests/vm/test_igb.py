"""An igb VF between stock Linux guests: nothing is copied, and it outlives what befalls it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tools.lab.check import require_no_copies
from tools.lab.picture import STEP_TIMEOUT_S, VF_KINDS

if TYPE_CHECKING:
    from tests.vm.conftest import Stage
    from tools.lab.agent import Job
    from tools.lab.picture import Picture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

LARGE_BYTES = 50_000_000
SMALL_BYTES = 1_000_000
WAY = VF_KINDS["igb"]
OPENED_ANEW = "opening it anew"
GOES_ON_FRAMES = 300


def _bring_up(picture: Picture) -> None:
    picture.start_device()
    picture.start_vm1()
    picture.finish_checksums()
    picture.start_vm2(kind="igb")
    picture.plug()


@pytest.fixture
def up(stage: Stage, cleared: None) -> Picture:  # noqa: ARG001 - what it does comes after
    """All of it, but `pmd`."""
    return stage.picture(_bring_up)


def vm1_counters(picture: Picture) -> tuple[int, int]:
    """Frames that VM1's driver had back from its transmitq, and that it received."""
    script = "cd /sys/class/net/eth0/statistics; cat tx_packets rx_packets"
    sent, received = picture.vm1.agent.shell(script).split()
    return int(sent), int(received)


def channel_of(statistics: dict[str, Any]) -> dict[str, Any]:
    (channel,) = statistics["channels"]
    assert isinstance(channel, dict)
    return channel


def test_all_sizes_and_fifty_megabytes_without_a_copy(up: Picture) -> None:
    up.start_pmd("igb", "--json", *WAY.options)
    up.ping()
    up.sweep()
    up.sweep(WAY.vlan)
    up.transfer(up.vm1, up.outside, LARGE_BYTES)
    up.transfer(up.outside, up.vm1, LARGE_BYTES)
    before = vm1_counters(up)
    statistics = up.stop_pmd()
    require_no_copies(statistics)
    channel = channel_of(statistics)
    assert (channel["vm1_to_vf"]["packets"], channel["vf_to_vm1"]["packets"]) == before
    assert (channel["vm1_to_vf"]["drops"], channel["vf_to_vm1"]["drops"]) == ({}, {})


def goes_on(stream: Job) -> None:
    """Return once so many more frames came back to VM1."""

    def back() -> int:
        return max((int(each) for each in re.findall(r"back (\d+)", stream.text)), default=0)

    wanted = back() + GOES_ON_FRAMES

    def ended_or_back() -> bool:
        return stream.status is not None or back() >= wanted

    stream.wait_until(ended_or_back, STEP_TIMEOUT_S, "has no more frames back")
    assert stream.status is None, stream.text


def says(picture: Picture, words: str, times: int) -> None:
    """Return once `pmd` has said that so many times."""
    pmd = picture.pmd
    pmd.wait_until(lambda: pmd.text.count(words) >= times, STEP_TIMEOUT_S, f"does not say {words}")


def test_resets_and_links_under_load(up: Picture) -> None:
    up.start_pmd("igb", "--json", *WAY.options)
    sent_before, received_before = vm1_counters(up)
    reflection, stream = up.reflect(), up.stream()
    goes_on(stream)

    device = "/sys/class/net/eth0/device"
    up.vm2.agent.shell(f"echo 1 > {device}/virtfn0/reset")  # a function-level reset
    says(up, OPENED_ANEW, 1)
    goes_on(stream)

    up.vm2.agent.shell("ip link set eth0 down")
    says(up, "dropping frames meanwhile", 1)
    up.vm2.agent.shell("ip link set eth0 up")
    goes_on(stream)

    for flap in (1, 2):
        up.vm2.qmp.execute("set_link", name="wire0", up=False)
        says(up, "link down", flap)
        up.vm2.qmp.execute("set_link", name="wire0", up=True)
        goes_on(stream)

    for job in (stream, reflection):
        job.signal()
        job.wait(STEP_TIMEOUT_S)
    up.ping()
    up.transfer(up.outside, up.vm1, SMALL_BYTES)
    sent, received = vm1_counters(up)
    channel = channel_of(up.stop_pmd())
    # Each buffer of VM1's came back, once.
    drops = channel["vm1_to_vf"]["drops"]
    assert sent - sent_before == channel["vm1_to_vf"]["packets"] + sum(drops.values())
    assert received - received_before == channel["vf_to_vm1"]["packets"]
    assert "is not a head" not in up.vm1.agent.shell("dmesg")
    # What was lost is told.
    assert {"vf_down"} <= set(drops) <= {"vf_down", "vf_error"}
    assert set(channel["vf_to_vm1"]["drops"]) <= {"vf_error"}
    # And nothing was copied meanwhile.
    assert channel["tx_zero_copy"] == channel["vm1_to_vf"]["packets"] + drops.get("vf_error", 0)
    assert channel["rx_zero_copy"] == channel["vf_to_vm1"]["packets"]
