"""A channel whose VF reads VM1's memory: what becomes of frames in flight, whatever happens."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from driver.igbvf import mailbox
from driver.igbvf.vf import IgbVf, OpenFunction
from driver.state_area import PAGE_SIZE, Status
from guest.function import Area
from pmd import channel as channel_module
from pmd.channel import Channel
from tests.driver.fake_function import FakeFunction
from tests.driver.igb_model import IgbModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest.function import Function

DESC, AVAIL, USED, DATA = 0, PAGE_SIZE, 2 * PAGE_SIZE, 4 * PAGE_SIZE
WINDOW = 16 * PAGE_SIZE
STARTED_AND_ENABLED = 3
SIZE = 8


class FakeSource:
    """Opens one device of memory."""

    name = "fake"
    comes_back = False

    def __init__(self) -> None:
        self.function = FakeFunction()
        self.function.add_window(2, Area(0, WINDOW))
        self.function.header["status"] = Status.CONNECTED | Status.RUNNING
        self.function.header["features"] = 1 << 32
        self.function.memory = [(0, WINDOW, 0, 2, 3)]
        self.start(2)

    def start(self, generation: int, *, started: bool = True) -> None:
        flags = STARTED_AND_ENABLED if started else 0
        self.function.rings = [(0,) * 7, (SIZE, flags, DESC, AVAIL, USED, 0, 0)]
        self.function.publish(generation)

    def open(self) -> Function:
        return self.function

    def settled(self) -> None:
        pass

    def close(self) -> None:
        self.function.close()

    # ---- VM1

    def poke(self, offset: int, data: bytes) -> None:
        os.pwrite(self.function.files[2], data, offset)

    def peek(self, offset: int, size: int) -> bytes:
        return os.pread(self.function.files[2], size, offset)

    def send(self, number: int, size: int = 1000) -> None:
        """Head number, filled with its number, becomes available."""
        buffer = DATA + 4096 * number
        self.poke(buffer, bytes(12) + bytes([number]) * size)
        self.poke(DESC + 16 * number, struct.pack("<QIHH", buffer, 12 + size, 0, 0))
        self.poke(AVAIL + 4 + 2 * number, struct.pack("<H", number))
        self.poke(AVAIL + 2, struct.pack("<H", number + 1))

    def used(self) -> list[int]:
        """Heads returned, in order."""
        count = struct.unpack("<H", self.peek(USED + 2, 2))[0]
        return [struct.unpack("<I", self.peek(USED + 4 + 8 * i, 4))[0] for i in range(count)]


class Rig:
    """A configured channel, the device it reads and the VF's model."""

    def __init__(self) -> None:
        self.source = FakeSource()
        self.model = IgbModel()
        vf = IgbVf("igbvf:01:10.0", self.model.name, None, lambda _: OpenFunction(self.model, ()))
        self.channel = Channel(self.source, vf, 2)
        self.channel.attach()
        self.channel.configure()

    def turn(self) -> None:
        self.channel.works[0].turn(32)

    def counters(self) -> tuple[int, int, int]:
        """Frames sent; frames lost to the VF: while in flight, and while its link was down."""
        direction = self.channel.snapshot().pairs[0].vm1_to_vf
        return direction.packets, direction.drops[11], direction.drops[10]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(mailbox, "_ANSWER_S", 0.02)
    monkeypatch.setattr(channel_module, "_DRAIN_S", 0.05)
    rig = Rig()
    yield rig
    rig.channel.close()
    assert (rig.model.faults, rig.model.dma) == ([], {})
    rig.model.dispose()


def test_vm1_has_its_buffers_back_once_the_vf_has_sent_them(rig: Rig) -> None:
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
    assert [frame[0] for frame in rig.model.wire] == [0, 1, 2]
    assert rig.counters() == (3, 0, 0)


def test_a_new_state_waits_for_what_is_in_flight(rig: Rig) -> None:
    rig.source.send(0)
    rig.turn()
    rig.model.run()
    rig.source.start(4, started=False)
    rig.channel.configure()
    assert rig.source.used() == [0]
    assert rig.counters() == (1, 0, 0)
    assert len(rig.model.dma) == 1  # the window is no longer the VF's to read
    rig.source.start(6)
    rig.channel.configure()
    assert len(rig.model.dma) == 2


def test_a_vf_that_does_not_finish_is_closed_before_vm1_has_its_buffers(rig: Rig) -> None:
    for number in range(3):
        rig.source.send(number)
    rig.turn()
    assert rig.source.used() == []
    rig.source.start(4)
    rig.channel.configure()
    assert rig.source.used() == [0, 1, 2]
    assert rig.counters() == (0, 3, 0)
    rig.model.run()
    assert rig.model.wire == []  # its ring was emptied, and opened anew
    rig.source.send(3)
    rig.turn()
    rig.model.run()
    rig.turn()
    assert rig.source.used() == [0, 1, 2, 3]
    assert [frame[0] for frame in rig.model.wire] == [3]


def test_a_pf_reset_costs_what_was_in_flight(rig: Rig) -> None:
    rig.source.send(0)
    rig.turn()
    assert not rig.channel.vf_spoilt()
    rig.model.ping(clear_to_send=False)
    assert rig.channel.vf_spoilt()
    rig.channel.configure()
    assert not rig.channel.vf_spoilt()
    assert rig.source.used() == [0]
    assert rig.counters() == (0, 1, 0)
    rig.source.send(1)
    rig.turn()
    rig.model.run()
    rig.turn()
    assert rig.source.used() == [0, 1]
    assert rig.counters() == (1, 1, 0)


def test_a_link_that_is_down(rig: Rig) -> None:
    rig.model.link(up=False)
    assert not rig.channel.vf_spoilt()
    rig.source.send(0)
    rig.turn()
    assert rig.source.used() == [0]
    assert rig.counters() == (0, 0, 1)
