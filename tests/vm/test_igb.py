"""An igb VF between stock Linux guests: nothing is copied, and it outlives what befalls it; then it
is its kernel driver's, and used by AF_XDP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm.wire import (
    goes_on,
    loaded,
    require_each_once,
    require_legal_segments,
    told,
    vm1_counters,
)
from tools.lab.picture import VF_KINDS

if TYPE_CHECKING:
    from tests.vm.conftest import Stage
    from tools.lab.picture import Picture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

LARGE_BYTES = 50_000_000
SMALL_BYTES = 1_000_000
WAY = VF_KINDS["igb"]
SLEEPS = ("--poll", "interrupt")  # each frame that comes has to wake it


def _bring_up(picture: Picture) -> None:
    picture.start_device()
    picture.start_vm1()
    picture.start_vm2(kind="igb")
    picture.plug()
    picture.start_pmd("igb", "--json", *SLEEPS, *WAY.options)


@pytest.fixture
def up(stage: Stage, cleared: None) -> Picture:  # noqa: ARG001 - what it does comes after
    """All of it, and `pmd` serving by the VF."""
    return stage.picture(_bring_up)


def vf_interrupts(picture: Picture) -> int:
    """How many VM2 has had from the VF; vhost-pci functions have no MSI-X."""
    count = "awk '/vfio-msix/ { n += $2 + $3 } END { print n + 0 }' /proc/interrupts"
    return int(picture.vm2.agent.shell(count))


def test_the_vf_does_what_vm1_leaves_to_its_device(up: Picture) -> None:
    """That none of its frames was copied is for a later test."""
    require_legal_segments(up)


def test_all_sizes_and_fifty_megabytes(up: Picture) -> None:
    """Woken for what comes: a sleep else ends after 40 ms, whatever comes."""
    before = vf_interrupts(up)
    up.ping()
    assert vf_interrupts(up) > before
    up.sweep()
    up.sweep(WAY.vlan)
    up.transfer(up.vm1, up.outside, LARGE_BYTES)
    up.transfer(up.outside, up.vm1, LARGE_BYTES)


def test_resets_and_links_under_load_and_nothing_was_copied(up: Picture) -> None:
    """It ends `pmd`, whose statistics are of those before, too."""
    with loaded(up) as stream:
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
    up.ping()
    up.transfer(up.outside, up.vm1, SMALL_BYTES)
    pmd = up.pmd
    (channel,) = up.stop_pmd()["channels"]
    assert "it stopped" not in pmd.text  # as nobody has seen
    require_each_once(up, channel)
    # What was lost is told.
    drops = channel["vm1_to_vf"]["drops"]
    assert {"vf_down"} <= set(drops) <= {"vf_down", "vf_error"}
    assert set(channel["vf_to_vm1"]["drops"]) <= {"vf_error"}
    # And nothing was copied, not even of what was lost.
    assert channel["tx_zero_copy"] == channel["vm1_to_vf"]["packets"] + drops.get("vf_error", 0)
    assert channel["rx_zero_copy"] == channel["vf_to_vm1"]["packets"]


def test_the_vf_s_interface_by_af_xdp(up: Picture) -> None:
    """The last one: the VF is its kernel driver's from here on."""
    if up.pmd.status is None:
        up.stop_pmd()
    former = vm1_counters(up)
    pmd = up.start_pmd("xdp", "--json", *SLEEPS)
    up.ping()
    up.transfer(up.vm1, up.outside, LARGE_BYTES)
    up.transfer(up.outside, up.vm1, LARGE_BYTES)
    (channel,) = up.stop_pmd()["channels"]
    assert "copy, generic mode, 1 queue, need_wakeup" in pmd.text
    require_each_once(up, channel, former)
    for direction in ("vm1_to_vf", "vf_to_vm1"):
        assert channel[direction]["bytes"] > LARGE_BYTES
