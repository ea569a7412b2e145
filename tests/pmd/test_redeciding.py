"""A channel whose VM1 changes what it posts: one queue changes its way, and nothing else does."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

import pytest

from driver.igbvf import device as igbvf_device
from driver.passthrough import OpenFunction
from driver.virtio_net import device as virtio_device
from pmd import channel as channel_module
from pmd.kernel import Event
from pmd.ports import Copy
from pmd.stats import Receives
from tests.driver.vf_kinds import MODELS, vf_for
from tests.pmd.fake_receiver import DATA, SIZE, Receiver
from tests.pmd.receiving_rig import ReceivingRig, frame
from tests.pmd.vf_run import Run, patch_times, told_nothing
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.driver.vf_kinds import VfModel

SMALL, LARGE = 1400, 2048


class Rig(ReceivingRig):
    model: VfModel

    def __init__(self, kind: str, copy: Copy = Copy.AUTO) -> None:
        self.model = MODELS[kind]()
        self.opened = 0
        super().__init__(vf_for(self.model, self._open), copy, *[SMALL] * SIZE)
        self.number = 0

    def _open(self, _: str) -> OpenFunction:
        self.opened += 1
        self.model.stops = True  # it has been reset
        return OpenFunction(self.model, ())

    def receive(self, count: int) -> None:
        """Frames come, each with a number of its own, and VM1 has them."""
        for _ in range(count):
            assert self.model.receive(frame(self.number))
            self.number += 1
        self.turn()
        assert self.vm1.received() == [frame(number) for number in range(self.number)]


@pytest.fixture(params=list(MODELS))
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(igbvf_device, "_ENABLE_S", 0.02)
    monkeypatch.setattr(virtio_device, "_RESET_S", 0.05)
    monkeypatch.setattr(channel_module, "_DRAIN_S", 0.05)
    return str(request.param)


@pytest.fixture
def rig(kind: str) -> Iterator[Rig]:
    rig = Rig(kind)
    yield rig
    rig.close()


def test_one_queue_changes_its_way_and_nothing_else_does(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    before = rig.channel.works[0]
    windows = dict(rig.model.dma)
    rig.receive(SIZE)
    rig.vm1.post(*[LARGE] * SIZE)
    assert rig.turn() == Event.SUITED
    rig.channel.configure()
    assert rig.ways == Receives("zero-copy", 1)
    rig.turn()
    data = rig.vm1.peek(DATA + 12, 1000)
    assert rig.model.receive(frame(rig.number))
    assert rig.vm1.peek(DATA + 12, 1000) == frame(rig.number) != data  # before any turn
    rig.number += 1
    rig.receive(SIZE - 1)
    rig.vm1.post(SMALL)
    assert rig.turn() == Event.UNSUITED
    rig.channel.configure()
    assert rig.ways == Receives("copy", 2)
    rig.receive(1)
    assert rig.zero_copy == SIZE
    assert (rig.channel.works[0], rig.model.dma, rig.opened) == (before, windows, 1)
    assert rig.channel.snapshot().reconfigurations == 0
    told = [each.getMessage() for each in caplog.records if "buffers have changed" in each.message]
    line = "ring 0 of fake: VM1's buffers have changed: it receives"
    assert told == [f"{line} by the VF's DMA now", f"{line} by copies now"]


def test_copy_always_never_changes(kind: str) -> None:
    rig = Rig(kind, Copy.ALWAYS)
    for size in (SMALL, LARGE, LARGE):
        assert rig.turn() == Event(0)
        rig.receive(SIZE)
        rig.vm1.post(*[size] * SIZE)
    assert (rig.ways, rig.zero_copy) == (Receives("copy", 0), 0)
    rig.close()


def test_memory_that_the_vf_does_not_reach_never_suits(kind: str) -> None:
    rig = Rig(kind)
    rig.model.dma_limit = 2 << 20
    rig.vm1.start(4)
    rig.channel.configure()
    for size in (LARGE, LARGE, LARGE):
        assert rig.turn() == Event(0)
        rig.receive(SIZE)
        rig.vm1.post(*[size] * SIZE)
    assert (rig.ways, rig.zero_copy) == (Receives("copy", 0), 0)
    rig.close()


def test_a_vf_that_does_not_stop_for_it_is_opened_anew(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """And VM1's buffers, which suit now, are filled by it."""
    rig.receive(SIZE)
    rig.vm1.post(*[LARGE] * SIZE)
    assert rig.turn() == Event.SUITED
    rig.model.stops = False
    rig.channel.configure()
    assert "does not stop" in caplog.text
    assert rig.opened == 2
    rig.turn()
    rig.receive(SIZE)
    assert (rig.ways.mode, rig.zero_copy) == ("zero-copy", SIZE)


def test_others_go_on_while_vm1_changes_its_mind(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's part: by its events, on an lcore, with another channel's frames in between."""
    patch_times(monkeypatch)
    with contextlib.ExitStack() as stack:
        vm1 = Receiver(told_nothing())
        vm1.post(*[SMALL] * SIZE)
        run = Run(stack, MODELS[kind](), vm1)
        run.wait_until_served(1)
        expected: list[bytes] = []

        def has_changed(way: tuple[str, int]) -> bool:
            return run.channel.snapshot().pairs[0].receives == way

        changes = {15: ("zero-copy", 1), 16: ("copy", 2), 39: ("zero-copy", 3)}
        for turn, size in enumerate((SMALL, LARGE, SMALL, LARGE, LARGE)):
            for number in range(SIZE * turn, SIZE * (turn + 1)):
                expected.append(frame(number))
                wait_for(lambda: run.model.receive(expected[-1]), "room at the VF")
                wait_for(lambda: vm1.received() == expected, "the frame")
                vm1.post(size)
                run.neighbour.move()
                if number in changes:
                    wait_for(functools.partial(has_changed, changes[number]), "the change")
        assert run.channel.snapshot().reconfigurations == 0
        assert run.channel.snapshot().pairs[0].at_vf.rx_missed == 0
