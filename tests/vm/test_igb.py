"""An igb VF between stock Linux guests: nothing is copied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tools.lab.check import require_no_copies
from tools.lab.picture import VF_KINDS

if TYPE_CHECKING:
    from tests.vm.conftest import Stage
    from tools.lab.picture import Picture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

LARGE_BYTES = 50_000_000
WAY = VF_KINDS["igb"]


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
