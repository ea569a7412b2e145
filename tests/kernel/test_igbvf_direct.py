"""A channel whose VF receives into VM1's memory: what lands where, and who may write it when."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from driver.igbvf import device as device_module
from driver.igbvf import mailbox
from driver.igbvf.queue import BUFFER_BYTES
from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction
from driver.state_area import PAGE_SIZE
from pmd import channel as channel_module
from pmd.kernel import Event, drop_names
from pmd.ports import Copy
from tests.driver.igb_model import RX, TAIL, IgbModel
from tests.pmd.fake_receiver import AVAIL, DATA, DESC, NOISE
from tests.pmd.receiving_rig import ReceivingRig, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

SET_SIZE = 5
ROOM = 1522  # for what a VF receives of an MTU of 1500: with a tag, and with FCS in case
LONGEST = ROOM - 4
LINUX = 1536  # what Linux's driver posts where buffers may be merged


class Rig(ReceivingRig):
    model: IgbModel

    def __init__(self, *sizes: int, copy: Copy = Copy.AUTO, promises: bool = True) -> None:
        self.model = IgbModel()
        self.model.pf_refuses = set() if promises else {SET_SIZE}
        vf = IgbVf("igbvf:01:10.0", self.model.name, None, lambda _: OpenFunction(self.model, ()))
        super().__init__(vf, copy, *sizes)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "_ANSWER_S", 0.02)
    monkeypatch.setattr(device_module, "_ENABLE_S", 0.02)
    monkeypatch.setattr(channel_module, "_DRAIN_S", 0.05)


@pytest.fixture
def rig() -> Iterator[Rig]:
    """VM1's buffers suit, one of them by the byte."""
    made = Rig(4096, 12 + ROOM, 4096)
    yield made
    made.close()


def test_a_frame_lands_in_vm1s_buffer_before_we_do_anything(rig: Rig) -> None:
    rig.turn()
    assert rig.model.receive(frame(1))
    assert rig.vm1.peek(DATA, 12 + 1000 + 1) == NOISE[:12] + frame(1) + NOISE[:1]
    assert rig.vm1.received() == []
    rig.turn()
    assert rig.vm1.received() == [frame(1)]
    assert rig.zero_copy == 1


def test_every_size_up_to_the_buffers_end(rig: Rig) -> None:
    rig.turn()
    sizes = [14, LONGEST, 1514]
    for number, size in enumerate(sizes):
        assert rig.model.receive(frame(number, size))
    rig.turn()
    assert rig.vm1.received() == [frame(number, size) for number, size in enumerate(sizes)]
    end = rig.vm1.peek(DATA + PAGE_SIZE + 12 + LONGEST, 8)
    assert end == NOISE[:8]


@pytest.mark.parametrize("posted", [LINUX, 12 + ROOM])
def test_linuxs_buffers_are_written_by_the_vf(posted: int) -> None:
    rig = Rig(*[posted] * 4, copy=Copy.NEVER)
    rig.turn()
    frames = [frame(number, size) for number, size in enumerate((60, 1514, LONGEST))]
    assert all(rig.model.receive(each) for each in frames)
    assert not rig.model.receive(frame(9, LONGEST + 1))  # its PF keeps that from it
    assert not rig.model.receive(frame(9, LONGEST - 3), tag=5)
    rig.turn()
    assert (rig.vm1.received(), rig.zero_copy) == (frames, 3)
    assert rig.vm1.peek(DATA + 2 * PAGE_SIZE + 12 + LONGEST, 8) == NOISE[:8]
    rig.close()


def test_a_pf_that_leaves_the_fcs_stays_in_the_buffer(rig: Rig) -> None:
    """VM1 sees it as well: nothing tells the VF whether the PF takes it out."""
    rig.model.keeps_fcs = True
    rig.turn()
    for _ in range(2):
        assert rig.model.receive(frame(1, LONGEST))
    rig.turn()
    assert [len(each) for each in rig.vm1.received()] == [ROOM, ROOM]
    assert rig.vm1.peek(DATA + PAGE_SIZE + 12 + ROOM, 8) == NOISE[:8]


@pytest.mark.parametrize("size", [ROOM + 1, BUFFER_BYTES, BUFFER_BYTES + 1])
def test_a_vf_that_is_given_more_than_agreed_is_at_fault(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Only its report tells. It is opened anew, and the rest is copied, though it would suit."""
    rig = Rig(*[4096] * 4)
    rig.turn()
    rig.model.heeds_limit = False
    assert rig.model.receive(frame(1, size))
    assert rig.model.receive(frame(2))
    assert rig.turn() == Event.UNSUITED
    assert rig.channel.vf_spoilt()
    assert "it wrote more to a buffer of VM1's than its PF lets it receive" in caplog.text
    rig.model.heeds_limit = True
    rig.channel.configure()
    assert not rig.channel.vf_spoilt()
    before = rig.vm1.received()
    assert frame(2) in before
    assert [each for each in before if each != frame(2)] in ([b""], [b"", b""])
    untouched = rig.vm1.peek(DATA + PAGE_SIZE * 3, 4096)
    assert rig.model.receive(frame(3))
    assert rig.vm1.peek(DATA + PAGE_SIZE * 3, 4096) == untouched
    rig.turn()
    assert rig.vm1.received() == [*before, frame(3)]
    assert rig.zero_copy == 1
    rig.close()


def test_what_is_posted_later_is_used_too(rig: Rig) -> None:
    rig.turn()
    for number in range(3):
        assert rig.model.receive(frame(number))
    assert not rig.model.receive(frame(9))  # VM1 has posted no more
    rig.vm1.post(4096)
    rig.turn()
    assert rig.model.receive(frame(3))
    rig.turn()
    assert rig.vm1.received() == [frame(number) for number in range(4)]
    assert rig.zero_copy == 4


def test_small_buffers_are_filled_by_copying() -> None:
    rig = Rig(12 + ROOM, 12 + ROOM - 1)
    rig.turn()
    for number in range(2):
        assert rig.model.receive(frame(number))
    assert rig.vm1.peek(DATA, 4096) == NOISE
    rig.turn()
    assert (rig.vm1.received(), rig.zero_copy) == ([frame(0), frame(1)], 0)
    rig.close()


def test_a_small_buffer_among_large_ones_ends_it(rig: Rig) -> None:
    assert not rig.turn()
    rig.vm1.post(12 + ROOM - 1)
    assert rig.turn() == Event.UNSUITED
    assert rig.model.receive(frame(0))  # before the queue is stopped: it is VM1's
    rig.channel.configure()
    assert not rig.turn()
    assert rig.vm1.received() == [frame(0)]
    for number in range(1, 4):
        assert rig.model.receive(frame(number))
        rig.turn()
    assert rig.vm1.received() == [frame(number) for number in range(4)]
    assert rig.zero_copy == 1


def test_a_buffer_outside_vm1s_memory_is_dropped_by_the_other_way(rig: Rig) -> None:
    rig.turn()
    rig.vm1.poke(DESC + 16 * 3, struct.pack("<QIHH", 1 << 40, 4096, 2, 0))
    rig.vm1.poke(AVAIL + 4 + 6, struct.pack("<H", 3))
    rig.vm1.poke(AVAIL + 2, struct.pack("<H", 4))
    assert rig.turn() == Event.UNSUITED
    rig.channel.configure()
    for number in range(4):
        assert rig.model.receive(frame(number))
        rig.turn()
    assert rig.vm1.received() == [*(frame(number) for number in range(3)), b""]
    drops = rig.channel.snapshot().pairs[0].vf_to_vm1.drops
    assert drops[1] == 1  # bad_address


def test_a_frame_over_the_mtu_is_none_of_vm1s(rig: Rig) -> None:
    rig.vm1.function.header["features"] = 1 << 32 | 1 << 3
    rig.vm1.function.header["mtu"] = 1000
    rig.vm1.start(4)
    rig.channel.configure()
    rig.turn()
    tagged = frame(3, 12) + b"\x81\x00\x00\x05\x08\x00" + frame(4)
    for each in (frame(1, 1015), tagged, frame(2, 1014)):
        assert rig.model.receive(each)
    rig.turn()
    assert rig.vm1.received() == [b"", tagged, frame(2, 1014)]
    pair = rig.channel.snapshot().pairs[0]
    assert dict(zip(drop_names(), pair.vf_to_vm1.drops, strict=False))["over_mtu"] == 1
    assert pair.at_vf.rx_zero_copy == 2


def test_without_a_promise_a_descriptors_worth_of_room_will_do() -> None:
    rig = Rig(12 + BUFFER_BYTES - 1, promises=False)
    assert rig.model.receive(frame(1))
    rig.turn()
    assert (rig.vm1.received(), rig.zero_copy) == ([frame(1)], 0)
    rig.close()


def test_without_a_promise_a_long_frame_is_no_frame() -> None:
    rig = Rig(*[12 + BUFFER_BYTES] * 3, promises=False)
    rig.model.heeds_limit = False
    rig.turn()
    assert rig.model.receive(frame(1, BUFFER_BYTES + 1))
    assert rig.model.receive(frame(2))
    rig.turn()
    assert rig.vm1.received() == [b"", b"", frame(2)]
    direction = rig.channel.snapshot().pairs[0]
    assert (direction.vf_to_vm1.drops[11], direction.at_vf.rx_missed) == (2, 1)
    assert not rig.channel.vf_spoilt()
    rig.close()


@pytest.mark.parametrize(("status", "length"), [(3, 0), (3, 13), (3 | 1 << 31, 60)])
def test_a_vf_that_reports_nonsense(rig: Rig, status: int, length: int) -> None:
    rig.turn()
    rig.model.report(b"x" * 60, status, length)
    assert rig.model.receive(frame(2))
    rig.turn()
    assert rig.vm1.received() == [b"", frame(2)]


def test_a_tag_taken_out_is_put_back_in_place(rig: Rig) -> None:
    """Which is a copy; the frames around it are none."""
    rig.turn()
    longest = bytes(at % 251 for at in range(LONGEST - 4))
    assert rig.model.receive(frame(1))
    assert rig.model.receive(longest, tag=0x6005)
    assert rig.model.receive(frame(2, 14), tag=5)
    assert not rig.turn()
    assert rig.vm1.received() == [
        frame(1),
        longest[:12] + b"\x81\x00\x60\x05" + longest[12:],
        frame(2, 12) + b"\x81\x00\x00\x05" + frame(2, 2),
    ]
    assert rig.vm1.peek(DATA + PAGE_SIZE + 12 + LONGEST, 8) == NOISE[:8]
    assert rig.zero_copy == 1


def test_a_tag_without_room_is_not_put_back(rig: Rig) -> None:
    """The VF says that it took out what its PF would not have let in."""
    rig.turn()
    rig.model.heeds_limit = False
    assert rig.model.receive(frame(1, ROOM - 3), tag=5)
    assert rig.turn() == Event.UNSUITED
    assert rig.vm1.received() == [b""]


def test_a_tag_left_in_is_a_part_of_the_frame(rig: Rig) -> None:
    rig.model.strips = False
    rig.turn()
    assert rig.model.receive(frame(1, LONGEST - 4), tag=5)
    rig.turn()
    tagged = frame(1)[:12] + b"\x81\x00\x00\x05" + frame(1, LONGEST - 4)[12:]
    assert (rig.vm1.received(), rig.zero_copy) == ([tagged], 1)


def test_vm1_that_stops_has_all_its_buffers_back(rig: Rig) -> None:
    rig.turn()
    assert rig.model.receive(frame(1))
    rig.vm1.start(4, started=False)
    rig.channel.configure()
    assert rig.vm1.received() == [frame(1)]  # what the VF had written is not lost
    assert rig.model.receive(frame(2))  # to the VF's own buffers
    assert rig.vm1.peek(DATA + PAGE_SIZE, 4096) == NOISE
    rig.vm1.start(6)
    rig.channel.configure()
    rig.turn()
    assert rig.model.receive(frame(3))
    rig.turn()
    assert rig.vm1.received() == [frame(1), frame(3)]
    assert rig.zero_copy == 2


def test_a_queue_that_does_not_stop(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The whole VF is reset before VM1 has its buffers back."""
    rig.turn()
    assert rig.model.receive(frame(1))
    rig.model.stops = False
    rig.vm1.start(4, started=False)
    rig.channel.configure()
    assert "its RXDCTL does not stop; closing it" in caplog.text
    assert len(rig.model.dma) == 1  # opened anew
    assert rig.model.receive(frame(2))
    assert rig.vm1.peek(DATA + PAGE_SIZE, 4096) == NOISE
    rig.model.stops = True
    rig.vm1.start(6)
    rig.channel.configure()
    rig.turn()
    assert rig.model.receive(frame(3))
    rig.turn()
    assert rig.vm1.received() == [frame(3)]


def test_a_pf_reset(rig: Rig) -> None:
    rig.turn()
    rig.model.ping(clear_to_send=False)
    rig.model.reset_vf()
    assert rig.channel.vf_spoilt()
    rig.channel.configure()
    rig.turn()
    assert rig.model.get(RX + TAIL) == 3
    assert rig.model.receive(frame(1))
    rig.turn()
    assert rig.vm1.received() == [frame(1)]


def test_copy_always_keeps_the_vf_out_of_vm1s_memory() -> None:
    rig = Rig(4096, 4096, copy=Copy.ALWAYS)
    assert len(rig.model.dma) == 1  # its own
    rig.turn()
    assert rig.model.receive(frame(1))
    assert rig.vm1.peek(DATA, 4096) == NOISE
    rig.turn()
    assert (rig.vm1.received(), rig.zero_copy) == ([frame(1)], 0)
    rig.close()


def test_copy_never_serves_what_suits() -> None:
    rig = Rig(4096, copy=Copy.NEVER)
    rig.turn()
    assert rig.model.receive(frame(1))
    rig.turn()
    assert (rig.vm1.received(), rig.zero_copy) == ([frame(1)], 1)
    rig.close()


def test_copy_never_refuses_buffers_that_do_not_suit(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(1526, copy=Copy.NEVER)
    assert rig.channel.works == {}
    assert (
        "cannot run without copying: VM1's buffers of ring 0 of fake do not suit VF igbvf:01:10.0; "
        "use --copy auto"
    ) in caplog.text
    rig.close()


def test_copy_never_refuses_pairs_that_share_a_queue(caplog: pytest.LogCaptureFixture) -> None:
    """A pair that only sends shares it without a copy."""
    rig = Rig(4096, copy=Copy.NEVER)
    ring, nothing = rig.vm1.function.rings
    rig.vm1.function.rings = [ring, nothing, ring, nothing]
    rig.vm1.function.publish(4)
    rig.channel.configure()
    assert rig.channel.works == {}
    assert (
        "VM1 does not use as many queue pairs as VF igbvf:01:10.0 has; use --copy auto"
        in caplog.text
    )
    rig.vm1.function.rings = [nothing, ring, nothing, ring]
    rig.vm1.function.publish(6)
    rig.channel.configure()
    assert list(rig.channel.works) == [0, 1]
    rig.close()
