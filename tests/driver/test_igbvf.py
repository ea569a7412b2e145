"""The igbvf driver against a model of the VF and its PF: up, down, and what goes wrong between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.igbvf import mailbox
from driver.igbvf.device import MTU_MAX, Counters
from driver.igbvf.queue import BUFFER_BYTES, RX_COUNT, TX_COUNT
from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction
from guest.errors import DeviceGoneError, VhostPciError
from guest.function import Identity
from tests.driver.igb_model import (
    CONTROL,
    COUNTERS,
    ENABLE,
    HEAD,
    HIGH,
    LENGTH,
    LOW,
    MAILBOX,
    RSTD,
    RSTI,
    RX,
    TAIL,
    TX,
    IgbModel,
)
from tests.kernel.port_user import PortUser

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from driver.software_vf import PortSpec

VM1 = bytes.fromhex("525400aa0001")
RESET, SET_MAC, SET_VLAN, SET_SIZE, SET_PROMISCUOUS = 1, 2, 4, 5, 6
ALL_MULTICAST = SET_PROMISCUOUS | 2 << 16


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[IgbModel]:
    """A PF that does not answer is given up soon: the model answers at once or never."""
    monkeypatch.setattr(mailbox, "_ANSWER_S", 0.02)
    model = IgbModel()
    yield model
    assert model.faults == []
    model.dispose()


def make(
    model: IgbModel, mac: bytes | None = None, mtu: int = 1500, vlans: Sequence[int] = ()
) -> IgbVf:
    def open_function(_: str) -> OpenFunction:
        return OpenFunction(model, model.iova_ranges)

    return IgbVf("igbvf:01:10.0", model.name, mac, open_function, mtu=mtu, vlans=vlans)


def opened(model: IgbModel, mac: bytes | None = None) -> tuple[IgbVf, PortSpec]:
    vf = make(model, mac)
    (spec,) = vf.open(1)
    return vf, spec


def assert_let_go(model: IgbModel) -> None:
    assert model.closed
    assert (model.dma, model.irqs) == ({}, ())
    assert [model.get(ring + CONTROL) & ENABLE for ring in (RX, TX)] == [0, 0]
    for mapping in model.mappings:
        with pytest.raises(ValueError, match="closed"):
            mapping.array("u1")


def refusal(model: IgbModel, mac: bytes | None = None) -> str:
    """What open says; nothing stays open."""
    with pytest.raises(VhostPciError) as error:
        make(model, mac).open(1)
    assert_let_go(model)
    return str(error.value)


def test_up_and_down(model: IgbModel) -> None:
    vf, spec = opened(model)
    assert model.messages == [RESET, ALL_MULTICAST, SET_SIZE]
    assert model.mac == model.pf_mac
    assert model.frame_limit == 1522  # 1500, an Ethernet header, a tag and the FCS
    (mapping,) = model.mappings
    ((iova, (address, size)),) = model.dma.items()
    assert iova > 0
    pair = spec.igbvf
    assert pair is not None
    assert (pair.rx_tail, pair.tx_tail) == (
        mapping.address + RX + TAIL,
        mapping.address + TX + TAIL,
    )
    assert model.irqs == (pair.wake_fd,)
    for ring, base, count in ((pair.rx, RX, RX_COUNT), (pair.tx, TX, TX_COUNT)):
        assert model.get(base + HIGH) << 32 | model.get(base + LOW) == ring.iova
        assert model.get(base + LENGTH) == 16 * count == ring.size
        assert model.get(base + CONTROL) == ENABLE
        assert ring.address - address == ring.iova - iova
        assert ring.buffers - address == ring.buffers_iova - iova
    spans = sorted(
        [(ring.address, ring.size) for ring in (pair.rx, pair.tx)]
        + [(ring.buffers, ring.count * pair.buffer_bytes) for ring in (pair.rx, pair.tx)]
    )
    for (begin, length), (after, _) in zip(spans, [*spans[1:], (address + size, 0)], strict=True):
        assert begin + length <= after
    assert spans[0][0] >= address
    vf.close()
    assert_let_go(model)
    vf.close()


def test_opens_again_from_whatever_state(model: IgbModel) -> None:
    vf, _ = opened(model)
    vf.close()
    model.put(RX + HEAD, 5)
    model.put(TX + TAIL, 7)
    model.put(TX + CONTROL, ENABLE)
    vf.open(1)
    assert [model.get(ring + end) for ring in (RX, TX) for end in (HEAD, TAIL)] == [0, 0, 0, 0]
    vf.close()


def test_vm1s_address_is_asked_for(model: IgbModel) -> None:
    vf, _ = opened(model, VM1)
    assert model.messages == [RESET, SET_MAC, ALL_MULTICAST, SET_SIZE]
    assert model.mac == VM1
    vf.close()


def test_an_address_the_vf_has_is_not_asked_for(model: IgbModel) -> None:
    model.pf_mac = VM1
    model.pf_refuses = {SET_MAC}
    opened(model, VM1)[0].close()


def test_a_pf_without_an_address_for_it(model: IgbModel) -> None:
    model.pf_mac = bytes(6)
    assert "its PF gave it no MAC address" in refusal(model)
    opened(model, VM1)[0].close()
    assert model.mac == VM1


def test_a_pf_that_refuses_the_address(model: IgbModel) -> None:
    model.pf_refuses = {SET_MAC}
    text = refusal(model, VM1)
    assert "its PF does not let it have 52:54:00:aa:00:01" in text
    assert text.endswith("ip link set PF vf NUMBER mac 52:54:00:aa:00:01")


@pytest.mark.parametrize(
    ("mtu", "room"), [(68, 90), (1500, 1522), (2026, 2048), (2027, 0), (MTU_MAX, 0)]
)
def test_the_room_that_a_buffer_of_vm1s_must_have(model: IgbModel, mtu: int, room: int) -> None:
    """What the PF lets the VF receive, as long as that is one descriptor's."""
    vf = make(model, mtu=mtu)
    (spec,) = vf.open(1)
    assert spec.igbvf is not None
    assert spec.igbvf.direct_bytes == room
    assert model.frame_limit == mtu + 22
    vf.close()


def test_a_pf_that_promises_no_size(model: IgbModel, caplog: pytest.LogCaptureFixture) -> None:
    model.pf_refuses = {SET_SIZE}
    vf, spec = opened(model)
    assert "its PF does not keep frames of more than 1522 bytes from it" in caplog.text
    assert spec.igbvf is not None
    assert spec.igbvf.direct_bytes == BUFFER_BYTES
    vf.close()


def test_vlans_whose_tags_stay(model: IgbModel) -> None:
    """The PF takes tags out as soon as there is a VLAN, but for VLAN 0, which comes last."""
    vf = make(model, vlans=(5, 4094))
    vf.open(1)
    assert model.vlans == [5, 4094, 0]
    vf.close()
    assert_let_go(model)


def test_a_pf_that_refuses_a_vlan(model: IgbModel) -> None:
    model.pf_refuses = {SET_VLAN}
    with pytest.raises(VhostPciError, match="its PF does not let it into VLAN 5"):
        make(model, vlans=(5,)).open(1)
    assert_let_go(model)


def test_a_pf_that_refuses_all_multicast(model: IgbModel, caplog: pytest.LogCaptureFixture) -> None:
    model.pf_refuses = {SET_PROMISCUOUS}
    opened(model)[0].close()
    assert "does not let it have all multicast" in caplog.text


def test_a_pf_that_is_down(model: IgbModel) -> None:
    model.pf_up = False
    assert refusal(model).endswith("see that the PF's interface is up: ip link set PF up")


def test_a_pf_in_reset(model: IgbModel) -> None:
    model.put(MAILBOX, RSTI)
    assert "its PF stays in reset" in refusal(model)


def test_another_function(model: IgbModel) -> None:
    model.identity_now = Identity(0x8086, 0x10C9, 0x020000, 1, 0x8086, 0)
    assert "it is 8086:10c9, no VF of an 82576 or I350" in refusal(model)


def test_a_vf_that_is_gone(model: IgbModel) -> None:
    model.gone = True
    with pytest.raises(DeviceGoneError, match="its CTRL reads all ones"):
        make(model).open(1)
    assert_let_go(model)


def test_an_iommu_without_room(model: IgbModel) -> None:
    model.iova_ranges = ((0, (1 << 20) - 1),)
    assert "the IOMMU translates at most 1048576 in one piece" in refusal(model)


def test_one_queue_pair(model: IgbModel) -> None:
    with pytest.raises(VhostPciError, match="it has 1 queue pair, not 2"):
        make(model).open(2)
    assert model.messages == []


def test_nothing_to_say_of_a_vf_that_is_well(model: IgbModel) -> None:
    vf = make(model)
    assert vf.look() == ""
    vf.open(1)
    for _ in range(3):
        assert vf.look() == ""
        model.ping(clear_to_send=True)
    vf.close()


def test_the_pf_is_going_to_be_reset(model: IgbModel) -> None:
    vf, _ = opened(model)
    model.ping(clear_to_send=False)
    assert vf.look() == "its PF wants it to be reset"
    vf.close()
    vf.open(1)
    assert vf.look() == ""
    vf.close()


@pytest.mark.parametrize(
    ("bits", "words"), [(RSTI, "its PF is in reset"), (RSTD, "its PF was reset")]
)
def test_the_pf_was_reset(model: IgbModel, bits: int, words: str) -> None:
    vf, _ = opened(model)
    model.put(MAILBOX, bits)
    assert vf.look() == words
    model.put(MAILBOX, 0)
    vf.close()


def test_the_vf_was_reset(model: IgbModel) -> None:
    vf, _ = opened(model)
    model.reset_vf()
    assert vf.look() == "it was reset"
    vf.close()


def test_the_vf_went_away(model: IgbModel) -> None:
    vf, _ = opened(model)
    model.gone = True
    assert vf.look() == "its VFMailbox reads all ones"
    model.gone = False
    vf.close()


@pytest.mark.parametrize("fetches", [True, False])
def test_a_vf_that_reports_nothing_sent(model: IgbModel, *, fetches: bool) -> None:
    """Wherever its head is: a VF may take every frame and write none back."""
    vf, spec = opened(model)
    model.completes = False
    with PortUser(spec) as user:
        assert user.tx([bytes(64)] * 3) == ["sent"] * 3
        if fetches:
            model.run()
            assert model.get(TX + HEAD) == model.get(TX + TAIL) == 3
        looks = [vf.look() for _ in range(10)]
        assert looks == [""] * 10  # nobody looks for what was sent: no loop runs
        looks = []
        for _ in range(6):
            user.tx([])
            looks.append(vf.look())
        assert looks == ["", "", *["it stopped sending"] * 4]  # the first of the ten counted
    vf.close()
    vf.open(1)
    assert vf.look() == ""
    vf.close()


def test_a_vf_that_is_slow(model: IgbModel) -> None:
    vf, spec = opened(model)
    with PortUser(spec) as user:
        user.tx([bytes(64)] * 20)
        for _ in range(19):
            model.run(limit=1)
            user.tx([])
            assert vf.look() == ""
        model.link(up=False)
        for _ in range(10):
            user.tx([])
            assert vf.look() == ""
    vf.close()


def test_counters_go_round(model: IgbModel) -> None:
    model.put(COUNTERS["rx"], 0xFFFFFFF0)
    vf, _ = opened(model)
    assert vf.counters() == Counters()._asdict()
    model.put(COUNTERS["rx"], 0x10)
    model.put(COUNTERS["tx_bytes"], 100)
    assert vf.counters() == Counters(packets_received=0x20, bytes_sent=100)._asdict()
    model.put(COUNTERS["rx"], 0x0F)
    told = Counters(packets_received=0x1_0000_001F, bytes_sent=100)
    assert vf.counters() == told._asdict()
    vf.close()
    assert vf.counters() == told._asdict()
    vf.open(1)
    model.put(COUNTERS["rx"], 0x11)
    assert vf.counters() == told._replace(packets_received=0x1_0000_0021)._asdict()
    model.gone = True
    assert vf.counters() == told._replace(packets_received=0x1_0000_0021)._asdict()
    model.gone = False
    vf.close()
    assert vf.counters() == told._replace(packets_received=0x1_0000_0021)._asdict()


def test_counters_of_before_a_reset_stay(model: IgbModel) -> None:
    vf, _ = opened(model)
    model.put(COUNTERS["rx"], 10)
    assert vf.look() == ""
    model.reset_vf()
    model.put(COUNTERS["rx"], 0)
    assert vf.look() == "it was reset"
    assert vf.counters() == Counters(packets_received=10)._asdict()
    vf.close()
