"""A channel whose VF reads VM1's memory: what becomes of frames in flight, whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.igbvf import mailbox
from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction
from pmd import channel as channel_module
from pmd import ports as ports_module
from pmd.channel import Channel
from pmd.serving import Serving
from tests.driver.igb_model import HEAD, TAIL, TX, IgbModel
from tests.pmd.fake_source import FakeSource

if TYPE_CHECKING:
    from collections.abc import Iterator


class Rig:
    """A configured channel, the device it reads and the VF's model."""

    def __init__(self) -> None:
        self.source = FakeSource()
        self.model = IgbModel()
        vf = IgbVf("igbvf:01:10.0", self.model.name, None, lambda _: OpenFunction(self.model, ()))
        self.channel = Channel(self.source, vf, Serving())
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
        rig.source.send(number, 60 if number == 1 else 1000)
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


@pytest.mark.parametrize("finishes", [True, False])
def test_a_pf_that_stays_down(rig: Rig, monkeypatch: pytest.MonkeyPatch, *, finishes: bool) -> None:
    """VM1 has its buffers back all the while, and is served again once the PF is up."""
    monkeypatch.setattr(ports_module, "_RETRY_S", 0)
    rig.source.send(0)
    rig.turn()
    if finishes:
        rig.model.run()
        rig.model.ping(clear_to_send=False)
        assert rig.channel.vf_spoilt()
    else:
        rig.source.start(4)
    rig.model.pf_up = False
    rig.channel.configure()
    for number in (1, 2):
        rig.source.send(number)
        rig.turn()
        assert rig.source.used() == list(range(number + 1))
        assert not rig.channel.vf_spoilt()
    assert rig.counters() == ((1, 0, 2) if finishes else (0, 1, 2))
    rig.model.pf_up = True
    assert rig.channel.vf_spoilt()
    rig.channel.configure()
    rig.source.send(3)
    rig.turn()
    rig.model.run()
    rig.turn()
    assert rig.source.used() == [0, 1, 2, 3]
    assert rig.model.wire[-1][0] == 3


def test_a_link_that_is_down(rig: Rig) -> None:
    rig.model.link(up=False)
    assert not rig.channel.vf_spoilt()
    rig.source.send(0)
    rig.turn()
    assert rig.source.used() == [0]
    assert rig.counters() == (0, 0, 1)


@pytest.mark.parametrize("fetches", [True, False])
def test_a_vf_that_stops_sending(
    rig: Rig, caplog: pytest.LogCaptureFixture, *, fetches: bool
) -> None:
    """Whether its head stands still, or goes on and nothing is reported sent."""
    rig.source.send(0)
    rig.turn()
    rig.model.run()
    rig.model.completes = False
    for number in (1, 2):
        rig.source.send(number)
    rig.turn()
    if fetches:
        rig.model.run()
    turns = 0
    while not rig.channel.vf_spoilt():
        rig.turn()
        turns += 1
        assert turns < 10
    assert rig.source.used() == [0]
    assert "VF igbvf:01:10.0: it stopped sending; opening it anew" in caplog.text
    rig.model.completes = True
    rig.channel.configure()
    assert not rig.channel.vf_spoilt()
    assert rig.source.used() == [0, 1, 2]
    assert rig.counters() == (1, 2, 0)
    rig.source.send(3)
    for _ in range(8):
        rig.turn()
        rig.model.run()
        assert not rig.channel.vf_spoilt()
    assert rig.source.used() == [0, 1, 2, 3]
    assert rig.counters() == (2, 2, 0)


def test_a_vf_that_reports_what_it_was_not_given(rig: Rig) -> None:
    """Too early, or once more: VM1 has each buffer back once, and none that the VF has not."""
    rig.model.report_all_sent()
    for number in (0, 1):
        rig.source.send(number)
    for _ in range(2):
        rig.turn()
        assert rig.source.used() == []
    rig.model.run()
    for _ in range(3):
        rig.turn()
        assert rig.source.used() == [0, 1]
        rig.model.report_all_sent()
    rig.source.send(2)
    for _ in range(2):
        rig.turn()
        assert rig.source.used() == [0, 1]
    rig.model.report_all_sent()  # it has not even fetched it: it is taken by its word
    for _ in range(3):
        rig.turn()
        assert rig.source.used() == [0, 1, 2]
        rig.model.report_all_sent()
    assert rig.counters() == (3, 0, 0)
    rig.model.put(TX + HEAD, rig.model.get(TX + TAIL))  # nor will it
