"""The virtio-net driver against a model of the device: up, down, and what goes wrong between."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from driver.virtio_net import control, device
from driver.virtio_net.features import Feature, accept
from driver.virtio_net.queue import BUFFER_BYTES, SIZE_MAX
from guest.errors import DeviceGoneError, VhostPciError
from guest.function import Identity
from tests.driver.virtio_net_model import OFFER
from tests.driver.virtio_net_model import VirtioNetModel as Model
from tests.driver.virtio_opener import assert_let_go, make, opened, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

VM1 = bytes.fromhex("525400aa0001")
PROMISCUOUS, ALL_MULTICAST, SET_MAC, SET_PAIRS = (0, 0), (0, 1), (1, 1), (4, 0)
NOT_PROMISCUOUS = (0, 0, b"\0")
MULTICAST_TOO = (0, 1, b"\1")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """A device that does not answer is given up soon: the model answers at once or never."""
    monkeypatch.setattr(control, "_ANSWER_S", 0.02)
    monkeypatch.setattr(device, "_RESET_S", 0.02)
    model = Model()
    yield model
    assert model.faults == []
    model.dispose()


def test_up_and_down(model: Model) -> None:
    vf, spec = opened(model)
    assert model.status == 15
    assert model.accepted == OFFER & ~(3 << 28)
    assert model.commands == [NOT_PROMISCUOUS, MULTICAST_TOO]
    assert sorted(model.rings) == [0, 1, 2]
    pair = spec.virtio
    assert pair is not None
    (mapping,) = model.mappings
    assert (pair.rx_notify, pair.tx_notify) == (mapping.address, mapping.address + 4)
    ((iova, (address, size)),) = model.dma.items()
    assert iova > 0
    spans = []
    for queue in (pair.rx, pair.tx):
        ring = model.rings[queue.number]
        areas = queue.areas
        assert (ring.size, areas.size) == (SIZE_MAX, SIZE_MAX)
        assert ring.descriptors == areas.descriptor - address + iova
        assert ring.driver == areas.driver - address + iova
        assert ring.device == areas.device - address + iova
        assert queue.buffers - address == queue.buffers_iova - iova
        spans += [(areas.descriptor, 16 * SIZE_MAX), (areas.driver, 6 + 2 * SIZE_MAX)]
        spans += [(areas.device, 6 + 8 * SIZE_MAX), (queue.buffers, SIZE_MAX * BUFFER_BYTES)]
    spans.sort()
    for (begin, length), (after, _) in zip(spans, [*spans[1:], (address + size, 0)], strict=True):
        assert begin + length <= after
    assert spans[0][0] >= address
    vf.close()
    assert_let_go(model)
    assert model.status == 0
    vf.close()


def test_opens_again_from_whatever_state(model: Model) -> None:
    model.status = 0x4F
    for _ in range(3):
        opened(model)[0].close()
    assert_let_go(model)


@pytest.mark.parametrize("packed", [False, True])
def test_many_commands(model: Model, packed: bool) -> None:
    """The control queue goes round: as often as the device is opened, and within one opening."""
    model.offer |= Feature.RING_PACKED if packed else 0
    vf = make(model, VM1)
    vf.open(1)
    assert vf._device is not None
    asked = control.ControlQueue.request
    queue = []

    def remember(self: control.ControlQueue, command: control.Command, data: bytes) -> bool:
        queue.append(self)
        return asked(self, command, data)

    vf.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control.ControlQueue, "request", remember)
        vf.open(1)
    model.commands.clear()
    for number in range(100):
        mac = bytes([2, 0, 0, 0, 0, number])
        assert asked(queue[0], control.Command.SET_ADDRESS, mac)
        assert model.mac == mac
    model.refuses = {SET_MAC}
    assert not asked(queue[0], control.Command.SET_ADDRESS, VM1)
    vf.close()


def test_vm1s_address_is_asked_for(model: Model) -> None:
    vf, _ = opened(model, VM1)
    assert model.commands == [(*SET_MAC, VM1), NOT_PROMISCUOUS, MULTICAST_TOO]
    assert model.mac == VM1
    vf.close()


def test_an_address_it_has_is_not_asked_for(model: Model) -> None:
    model.mac = VM1
    opened(model, VM1)[0].close()
    assert model.commands == [NOT_PROMISCUOUS, MULTICAST_TOO]


@pytest.mark.parametrize("offered", [True, False])
def test_one_that_keeps_its_address_receives_everything(model: Model, offered: bool) -> None:
    model.refuses = {SET_MAC} if offered else set()
    model.offer &= ~(0 if offered else Feature.CTRL_MAC_ADDR)
    opened(model, VM1)[0].close()
    assert model.commands[-2:] == [(*PROMISCUOUS, b"\1"), MULTICAST_TOO]


def test_one_that_keeps_its_address_and_no_other(model: Model) -> None:
    model.refuses = {SET_MAC, PROMISCUOUS}
    text = refusal(model, VM1)
    assert "the device does not let it have 52:54:00:aa:00:01" in text
    assert text.endswith("give VM1 52:54:00:12:34:56")


def test_one_without_a_control_queue(model: Model) -> None:
    model.offer &= ~Feature.CTRL_VQ
    assert "does not let it have" in refusal(model, VM1)
    opened(model)[0].close()
    assert model.commands == []
    assert not model.accepted & (Feature.CTRL_RX | Feature.CTRL_MAC_ADDR)


def test_one_without_an_address(model: Model) -> None:
    model.offer &= ~Feature.MAC
    assert "it tells no MAC address" in refusal(model)
    opened(model, VM1)[0].close()
    assert model.mac == VM1


def test_one_with_an_impossible_address(model: Model) -> None:
    model.mac = bytes(6)
    text = refusal(model)
    assert "it has no MAC address of its own (it is all zeros)" in text
    assert text.endswith("name VM1's: virtio-net:0000:01:00.0,MAC")


def test_one_that_refuses_all_multicast(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    model.refuses = {ALL_MULTICAST}
    opened(model)[0].close()
    assert "does not let it have all multicast" in caplog.text


def test_queue_pairs(model: Model) -> None:
    model.offer |= Feature.MQ
    model.pairs = 4
    vf = make(model)
    assert vf.queue_pairs_max is None
    specs = vf.open(3)
    assert vf.queue_pairs_max == 4
    assert model.commands[-1] == (*SET_PAIRS, struct.pack("<H", 3))
    assert sorted(model.rings) == [0, 1, 2, 3, 4, 5, 8]
    numbers = [(s.virtio.rx.number, s.virtio.tx.number) for s in specs if s.virtio]
    assert numbers == [(0, 1), (2, 3), (4, 5)]
    vf.close()
    with pytest.raises(VhostPciError, match="it has 4 queue pairs, not 5"):
        vf.open(5)
    assert_let_go(model)
    model.refuses = {SET_PAIRS}
    assert "it does not turn 1 queue pairs on" in refusal(model)


def test_queue_pairs_that_cannot_be(model: Model) -> None:
    model.offer |= Feature.MQ
    model.pairs = 0
    assert "it has 0 queue pairs" in refusal(model)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (Feature.VERSION_1, "it is no virtio 1 device"),
        (Feature.ACCESS_PLATFORM, "its DMA goes past the IOMMU"),
    ],
)
def test_what_it_must_offer(model: Model, missing: Feature, words: str) -> None:
    model.offer &= ~missing
    assert words in refusal(model)


def test_features_that_need_others() -> None:
    tso = Feature.HOST_TSO4 | Feature.HOST_TSO6 | Feature.HOST_ECN
    tso |= Feature.HOST_USO | Feature.HOST_UFO
    assert accept(tso) == 0
    assert accept(tso | Feature.CSUM) == tso | Feature.CSUM
    assert accept(Feature.CSUM | Feature.HOST_ECN) == Feature.CSUM
    assert accept(Feature.MQ | Feature.CTRL_RX) == 0
    assert accept((1 << 64) - 1) == sum(Feature)


def test_one_that_refuses_its_features(model: Model) -> None:
    model.refuses_features = True
    assert "it refuses the features 0x" in refusal(model)


def test_one_that_stays_in_reset(model: Model) -> None:
    model.resets = False
    model.status = 1
    assert "its status does not become 0" in refusal(model)


@pytest.mark.parametrize(("size", "taken"), [(64, 64), (100, 64), (1024, 256), (32768, 256)])
def test_sizes_of_queues(model: Model, size: int, taken: int) -> None:
    model.default_size = size
    vf, _ = opened(model)
    assert [model.rings[number].size for number in range(3)] == [taken, taken, 16]
    vf.close()


@pytest.mark.parametrize(("number", "size"), [(0, 32), (1, 63), (1, 0), (2, 1), (2, 0)])
def test_queues_that_are_too_small(model: Model, number: int, size: int) -> None:
    model.size_max[number] = size
    assert "fewer than 64" in refusal(model) or "too small for a command" in refusal(model)


@pytest.mark.parametrize(
    ("offer", "mtu", "buffer_bytes", "frame_bytes"),
    [
        (0, 1500, 2048, 9216 + 22),
        (Feature.MTU, 1500, 2048, 1500 + 22),
        (Feature.MTU, 9000, 9088, 9000 + 22),
        (Feature.MTU | Feature.MRG_RXBUF, 9000, 2048, 9000 + 22),
        (Feature.MTU, 65535, 0xFFC0, 65535 + 22),
    ],
)
def test_buffers_hold_what_comes(
    model: Model, offer: int, mtu: int, buffer_bytes: int, frame_bytes: int
) -> None:
    model.offer = OFFER & ~Feature.MRG_RXBUF | offer
    model.mtu = mtu
    vf, spec = opened(model)
    assert spec.virtio is not None
    assert (spec.virtio.buffer_bytes, spec.virtio.frame_bytes_max) == (buffer_bytes, frame_bytes)
    vf.close()


@pytest.mark.parametrize(
    ("vendor", "device", "subsystem", "good"),
    [
        (0x1AF4, 0x1041, 0x1100, True),
        (0x1AF4, 0x1000, 0x0001, True),
        (0x1AF4, 0x1000, 0x0002, False),
        (0x1AF4, 0x1042, 0x0001, False),
        (0x1AF4, 0x10F0, 0x0001, False),
        (0x8086, 0x1041, 0x0001, False),
    ],
)
def test_other_functions(
    model: Model, vendor: int, device: int, subsystem: int, good: bool
) -> None:
    model.identity_now = Identity(vendor, device, 0x020000, 1, vendor, subsystem)
    if good:
        opened(model)[0].close()
    else:
        assert f"it is {vendor:04x}:{device:04x}, no virtio network function" in refusal(model)


def test_a_device_that_is_gone(model: Model) -> None:
    vf, _ = opened(model)
    model.gone = True
    assert vf.look() == "its device_status reads all ones"
    vf.close()
    model.closed = False
    with pytest.raises(VhostPciError):
        make(model).open(1)
    assert_let_go(model)
    model.gone = False
    model.reset()


def test_a_device_that_goes_while_it_is_opened(model: Model) -> None:
    read = model.read

    def goes(index: int, offset: int, size: int) -> bytes:
        model.gone = index == 4
        return read(index, offset, size)

    model.read = goes  # type: ignore[method-assign]
    with pytest.raises(DeviceGoneError):
        make(model).open(1)
    assert_let_go(model)


def test_a_control_queue_that_does_not_answer(model: Model) -> None:
    model.answers = False
    assert "its control queue does not answer" in refusal(model)


def test_a_control_queue_that_answers_what_was_not_asked(model: Model) -> None:
    asked = model.control

    def twice(number: int) -> None:
        asked(number)
        model.rings[number].push(0, 1)

    model.control = twice  # type: ignore[method-assign]
    assert "its control queue used 2 commands of 1" in refusal(model)
