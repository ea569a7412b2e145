"""A channel whose VF is a virtio device: what becomes of VM1's frames when that misbehaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.passthrough import OpenFunction
from driver.virtio_net.features import Feature
from driver.virtio_net.vf import VirtioNetVf
from pmd import channel as channel_module
from pmd.channel import Channel
from pmd.serving import Serving
from tests.driver.virtio_net_model import OFFER
from tests.driver.virtio_net_model import VirtioNetModel as Model
from tests.pmd.fake_source import FakeSource

if TYPE_CHECKING:
    from collections.abc import Iterator


class Rig:
    """A configured channel, the device it reads and the VF's model."""

    def __init__(self, offer: int) -> None:
        self.source = FakeSource()
        self.model = Model(offer)
        opened = OpenFunction(self.model, ())
        vf = VirtioNetVf("virtio-net:01:00.0", self.model.name, None, lambda _: opened)
        self.channel = Channel(self.source, vf, Serving())
        self.channel.attach()
        self.channel.configure()

    def turn(self) -> None:
        self.channel.works[0].turn(32)

    def counters(self) -> tuple[int, int, int]:
        """Frames sent; frames lost to the VF: for its errors, and while its link was down."""
        direction = self.channel.snapshot().pairs[0].vm1_to_vf
        return direction.packets, direction.drops[11], direction.drops[10]

    def see_trouble(self) -> None:
        assert self.channel.vf_spoilt()
        self.channel.configure()
        assert not self.channel.vf_spoilt()


@pytest.fixture(params=[0, Feature.RING_PACKED], ids=["split", "packed"])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(channel_module, "_DRAIN_S", 0.05)
    rig = Rig(OFFER | request.param)
    yield rig
    rig.channel.close()
    assert (rig.model.faults, rig.model.dma) == ([], {})
    rig.model.dispose()


def test_vm1_has_its_buffers_back_once_the_device_has_sent_them(rig: Rig) -> None:
    for number in range(3):
        rig.source.send(number, 100 if number == 1 else 1000)
    rig.turn()
    assert rig.source.used() == []
    rig.model.run(limit=1)
    rig.turn()
    assert rig.source.used() == [0, 1]
    rig.model.run()
    rig.turn()
    assert rig.source.used() == [0, 1, 2]
    assert [frame[0] for frame in rig.model.sent] == [0, 1, 2]
    assert rig.counters() == (3, 0, 0)


def test_a_new_state_waits_for_what_is_in_flight(rig: Rig) -> None:
    rig.source.send(0)
    rig.turn()
    rig.model.run()
    rig.source.start(4, started=False)
    rig.channel.configure()
    assert rig.source.used() == [0]
    assert rig.counters() == (1, 0, 0)
    assert len(rig.model.dma) == 1  # the window is no longer the device's to read


def test_a_device_that_does_not_finish(rig: Rig) -> None:
    """It is reset before VM1 has its buffers back."""
    for number in range(3):
        rig.source.send(number)
    rig.turn()
    rig.source.start(4)
    rig.channel.configure()
    assert rig.source.used() == [0, 1, 2]
    assert rig.counters() == (0, 3, 0)
    rig.model.run()
    assert rig.model.sent == []
    rig.source.send(3)
    rig.turn()
    rig.model.run()
    rig.turn()
    assert rig.source.used() == [0, 1, 2, 3]
    assert [frame[0] for frame in rig.model.sent] == [3]


def test_a_device_that_reports_what_it_does_not_have(rig: Rig) -> None:
    """Each of VM1's buffers is returned exactly once, and the rest of its life is as before."""
    for number in range(2):
        rig.source.send(number)
    rig.turn()
    rig.model.rings[1].push(9, 0)
    rig.source.send(2)
    rig.turn()
    assert rig.source.used() == []  # it may still read the first two
    rig.see_trouble()
    assert rig.source.used() == [0, 1, 2]
    assert rig.counters() == (0, 3, 0)
    rig.source.send(3)
    rig.turn()
    rig.model.run()
    rig.turn()
    assert rig.source.used() == [0, 1, 2, 3]
    assert rig.counters() == (1, 3, 0)


def test_a_device_that_wants_a_reset(rig: Rig) -> None:
    rig.source.send(0)
    rig.turn()
    rig.model.status |= 64
    rig.see_trouble()
    assert rig.source.used() == [0]
    assert rig.counters() == (0, 1, 0)


def test_a_link_that_is_down(rig: Rig) -> None:
    rig.model.link = 0
    assert not rig.channel.vf_spoilt()
    rig.source.send(0)
    rig.turn()
    assert rig.source.used() == [0]
    assert rig.counters() == (0, 0, 1)
