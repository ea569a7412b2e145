"""A channel whose VF, a virtio device, receives into VM1's memory: who may write it when."""

from __future__ import annotations

import itertools
import os
import struct
from typing import TYPE_CHECKING

import pytest

from driver.passthrough import OpenFunction
from driver.state_area import PAGE_SIZE
from driver.virtio_net import device as device_module
from driver.virtio_net.features import Feature
from driver.virtio_net.vf import VirtioNetVf
from guest.errors import VhostPciError
from pmd import channel as channel_module
from pmd import ports as ports_module
from pmd.kernel import Event
from pmd.ports import Copy
from tests.driver.virtio_net_model import OFFER
from tests.driver.virtio_net_model import VirtioNetModel as Model
from tests.pmd.fake_receiver import AVAIL, DATA, DESC, NOISE, SIZE, USED
from tests.pmd.receiving_rig import ReceivingRig, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

RX, TX = 0, 1
STARTED = 1
ORDINARY = 1536
NEW = Feature.RING_RESET


class Rig(ReceivingRig):
    model: Model

    def __init__(
        self, *sizes: int, copy: Copy = Copy.AUTO, offer: int = NEW, pairs: int = 1
    ) -> None:
        self.model = Model(OFFER | offer)
        self.model.pairs = pairs
        self.unplugged = False
        vf = VirtioNetVf("virtio-net:01:00.0", self.model.name, None, self._open)
        super().__init__(vf, copy, *sizes)

    def _open(self, address: str) -> OpenFunction:
        if self.unplugged:
            raise VhostPciError("open", address, "there is no such function")
        return OpenFunction(self.model, ())

    def to_own_memory(self, frame: bytes) -> None:
        """The device receives, and nothing of it gets to VM1's memory."""
        before = self.vm1.peek(DATA, 8 * PAGE_SIZE)
        assert self.model.receive(frame)
        assert self.vm1.peek(DATA, 8 * PAGE_SIZE) == before


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_RESET_S", 0.05)
    monkeypatch.setattr(channel_module, "_DRAIN_S", 0.05)


@pytest.fixture(params=[0, Feature.RING_PACKED], ids=["split", "packed"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(*[ORDINARY] * 4, offer=NEW | request.param)
    yield made
    made.close()


def test_vm1_that_stops_has_all_its_buffers_back(rig: Rig) -> None:
    rig.turn()
    assert rig.model.receive(frame(1))
    rig.vm1.start(4, started=False)
    rig.channel.configure()
    assert rig.vm1.received() == [frame(1)]  # what the device had written is not lost
    assert len(rig.model.dma) == 1  # the window is no longer its own to write
    rig.to_own_memory(frame(2))
    rig.vm1.start(6)
    rig.channel.configure()
    rig.turn()
    assert rig.model.receive(frame(3))
    rig.turn()
    assert rig.vm1.received() == [frame(1), frame(3)]
    assert rig.zero_copy == 2


def test_a_new_memory_table(rig: Rig) -> None:
    """It is acknowledged when nothing goes to the old one any more; then all goes on."""
    for number in range(3):
        rig.turn()
        assert rig.model.receive(frame(number))
        rig.vm1.start(4 + 2 * number)
        rig.channel.configure()
        assert rig.channel.changed is False
    rig.turn()
    assert rig.vm1.received() == [frame(number) for number in range(3)]


def test_a_pair_that_vm1_switches_off() -> None:
    """Its frames come by the other's ring, which is then no queue's own to write."""
    rig = Rig(*[ORDINARY] * 4, offer=NEW | Feature.MQ, pairs=2)
    rings = rig.vm1.function.rings
    off = (SIZE, STARTED, DESC, AVAIL, USED, 0, 0)
    rig.vm1.function.rings = [*rings, off, rings[1]]
    rig.vm1.function.publish(4)
    rig.channel.configure()
    for number, pair in enumerate((1, 0)):
        for work in itertools.chain(*rig.channel.groups.values()):
            work.turn(32)
        assert rig.model.receive(frame(number), pair)
        for work in itertools.chain(*rig.channel.groups.values()):
            work.turn(32)
    assert rig.vm1.received() == [frame(0), frame(1)]
    assert rig.zero_copy == 0
    rig.close()


def test_a_queue_that_does_not_stop(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The whole device is reset before VM1 has its buffers back."""
    rig.turn()
    assert rig.model.receive(frame(1))
    rig.model.stops = False
    rig.vm1.start(4, started=False)
    rig.channel.configure()
    assert "its queue 0 does not stop; closing it" in caplog.text
    assert len(rig.model.rings) == 3  # opened anew
    rig.to_own_memory(frame(2))
    rig.model.stops = True
    rig.vm1.start(6)
    rig.channel.configure()
    rig.turn()
    assert rig.model.receive(frame(3))
    rig.turn()
    assert rig.vm1.received() == [frame(3)]


def test_a_device_that_wants_a_reset(rig: Rig) -> None:
    rig.turn()
    assert rig.model.receive(frame(1))
    rig.model.status |= 64
    assert rig.channel.vf_spoilt()
    rig.channel.configure()
    assert not rig.channel.vf_spoilt()
    rig.turn()
    assert rig.model.receive(frame(2))
    rig.turn()
    assert rig.vm1.received() == [frame(1), frame(2)]


def test_a_device_that_the_kernel_wants_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is let go of at once, with nothing of VM1's in its hands; and served once it is here."""
    monkeypatch.setattr(ports_module, "_RETRY_S", 0.0)
    rig.turn()
    assert rig.model.receive(frame(1))
    assert not rig.channel.vf_spoilt()
    os.eventfd_write(rig.model.request, 1)
    assert rig.channel.vf_spoilt()
    rig.unplugged = True
    rig.channel.configure()
    assert not rig.channel.vf_spoilt()  # still away
    assert (rig.model.closed, rig.model.dma) == (True, {})
    assert rig.vm1.received() == [frame(1)]
    rig.unplugged = False
    os.eventfd_read(rig.model.request)
    assert rig.channel.vf_spoilt()
    rig.channel.configure()
    rig.turn()
    assert rig.model.receive(frame(2))
    rig.turn()
    assert rig.vm1.received() == [frame(1), frame(2)]


def test_a_device_that_lies_is_set_up_anew(rig: Rig) -> None:
    rig.turn()
    chain = rig.model.rings[RX].pop()
    assert chain is not None
    rig.model.rings[RX].push(chain.id, ORDINARY + 1)
    rig.turn()
    assert rig.vm1.received() == []
    assert rig.channel.vf_spoilt()
    rig.channel.configure()
    rig.turn()
    assert rig.model.receive(frame(2))
    rig.turn()
    assert rig.vm1.received() == [frame(2)]


def test_a_small_buffer_among_large_ones_ends_it(rig: Rig) -> None:
    assert not rig.turn()
    rig.vm1.post(100, ORDINARY)
    assert rig.turn() == Event.UNSUITED
    assert rig.model.receive(frame(0))
    rig.channel.configure()
    assert not rig.turn()
    assert rig.vm1.received() == [frame(0)]
    rig.to_own_memory(frame(1))
    rig.turn()
    assert rig.vm1.received() == [frame(0), frame(1)]
    assert rig.zero_copy == 1


def test_a_buffer_outside_vm1s_memory_is_dropped_by_the_other_way(rig: Rig) -> None:
    rig.turn()
    rig.vm1.post(ORDINARY)
    rig.vm1.poke(16 * 4, struct.pack("<QIHH", 1 << 40, ORDINARY, 2, 0))
    assert rig.turn() == Event.UNSUITED
    rig.channel.configure()
    for number in range(5):
        assert rig.model.receive(frame(number))
        rig.turn()
    assert rig.vm1.received() == [*(frame(number) for number in range(4)), b""]
    drops = rig.channel.snapshot().pairs[0].vf_to_vm1.drops
    assert drops[1] == 1  # bad_address


def test_a_device_whose_queues_cannot_be_stopped_copies() -> None:
    rig = Rig(ORDINARY, offer=0)
    rig.turn()
    rig.to_own_memory(frame(1))
    rig.turn()
    assert (rig.vm1.received(), rig.zero_copy) == ([frame(1)], 0)
    assert rig.model.read_only == set(list(rig.model.dma)[1:])
    rig.close()


def test_copy_always_keeps_the_device_out_of_vm1s_memory() -> None:
    rig = Rig(ORDINARY, copy=Copy.ALWAYS)
    assert len(rig.model.dma) == 1  # its own
    rig.turn()
    rig.to_own_memory(frame(1))
    rig.turn()
    assert (rig.vm1.received(), rig.zero_copy) == ([frame(1)], 0)
    rig.close()


def test_copy_never_serves_what_suits() -> None:
    rig = Rig(ORDINARY, copy=Copy.NEVER)
    rig.turn()
    assert rig.model.receive(frame(1))
    rig.turn()
    assert (rig.vm1.received(), rig.zero_copy) == ([frame(1)], 1)
    rig.close()


def test_copy_never_ends_where_a_later_buffer_does_not_suit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until VM1 sets the ring up anew."""
    rig = Rig(ORDINARY, copy=Copy.NEVER)
    rig.turn()
    rig.vm1.post(100, ORDINARY)
    assert rig.turn() == Event.UNSUITED
    for count in (1, 2):
        rig.channel.configure()
        assert (rig.channel.state, rig.channel.works) == ("waiting", {})
        assert caplog.text.count("VM1's buffers of ring 0 of fake do not suit VF") == count
    assert rig.vm1.received() == []
    rig.close()


@pytest.mark.parametrize(
    ("size", "offer", "cause"),
    [
        (1000, NEW, "VM1's buffers of ring 0 of fake do not suit VF virtio-net:01:00.0"),
        (ORDINARY, 0, "VF virtio-net:01:00.0 does not write to VM1's memory by itself"),
    ],
)
def test_copy_never_refuses(
    size: int, offer: int, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(size, copy=Copy.NEVER, offer=offer)
    assert rig.channel.works == {}
    assert f"cannot run without copying: {cause}; use --copy auto" in caplog.text
    assert rig.vm1.peek(DATA, PAGE_SIZE) == NOISE
    rig.close()
