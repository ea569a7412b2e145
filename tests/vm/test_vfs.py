"""A virtio card in VM2 as VM1's way out: its interface by AF_XDP, then itself by its own rings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.lab.check import require_no_copies

if TYPE_CHECKING:
    from tests.vm.conftest import Stage
    from tools.lab.picture import Picture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

TRANSFER_BYTES = 8_000_000
SLEEPS = ("--poll", "interrupt")  # each frame that comes has to wake it


@pytest.fixture
def plugged(stage: Stage, cleared: None) -> Picture:  # noqa: ARG001 - what it does comes after
    """A VM1 that leaves nothing to its device, and VM2 with the function and the card."""
    return stage.picture(_bring_up)


def _bring_up(picture: Picture) -> None:
    picture.start_device()
    picture.start_vm1()
    picture.start_vm2(kind="virtio-net")
    picture.bind(picture.plug())
    picture.finish_checksums()


def traffic(picture: Picture) -> None:
    picture.ping(3)
    picture.transfer(picture.vm1, picture.outside, TRANSFER_BYTES)
    picture.transfer(picture.outside, picture.vm1, TRANSFER_BYTES)


def test_the_interface_by_af_xdp(plugged: Picture) -> None:
    pmd = plugged.run_pmd("--json", *SLEEPS, "--vf", "xdp:eth0")
    traffic(plugged)
    (channel,) = plugged.stop_pmd()["channels"]
    assert "copy, driver mode, 1 queue" in pmd.text
    for direction in ("vm1_to_vf", "vf_to_vm1"):
        assert channel[direction]["bytes"] > TRANSFER_BYTES


def test_the_card_without_a_copy(plugged: Picture) -> None:
    """The last one: its driver does not have the card back."""
    plugged.start_pmd("virtio-net", "--json", *SLEEPS, "--copy", "never")
    traffic(plugged)
    require_no_copies(plugged.stop_pmd())
