"""Loops that sleep while their igb VF has nothing, as in test_sleeping_ports."""

from __future__ import annotations

import contextlib
import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.driver.igb_model import HEAD, RX, TAIL, IgbModel
from tests.kernel.direct_rig import ORDINARY, IgbRig, frame
from tests.kernel.direct_rig import SIZE as RING
from tests.kernel.port_user import until
from tests.kernel.rig import Rig
from tests.kernel.senders import SIZE
from tests.kernel.test_sleeping_ports import (
    ARM,
    ARMED,
    DISARM,
    LAPS,
    fills_and_sleeps,
    looping,
    operation,
    posted,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMD_KERNEL_TRUST_WAKES", "1")


@contextlib.contextmanager
def igb(kick_fd: int, *, direct: bool) -> Iterator[IgbRig]:
    """VM1 has posted SIZE buffers; nothing runs yet."""
    rig = IgbRig(Rig(RING), IgbModel())
    rig.vm1.rig.kick_fd = kick_fd
    with posted(rig, direct=direct):
        yield rig


def owned(rig: IgbRig) -> int:
    """Descriptors that the VF has to receive into."""
    return (rig.model.get(RX + TAIL) - rig.model.get(RX + HEAD)) % rig.model.receive_count


@pytest.mark.parametrize("masks", [True, False], ids=["masks itself", "does not"])
@pytest.mark.parametrize("direct", [False, True], ids=["copy", "direct"])
def test_no_wake_up_is_lost(direct: bool, masks: bool, kick_fd: int) -> None:
    chance = random.Random(5)
    found: list[bytes] = []
    sent: list[bytes] = []
    with igb(kick_fd, direct=direct) as rig, looping(rig) as loop:
        rig.model.masks_itself = masks

        def arrived() -> bool:
            rig.model.interrupt()  # as soon as it is turned on
            found.extend(rig.vm1.received())
            return len(found) == len(sent)

        for _ in range(LAPS * SIZE // 2):
            burst = chance.randrange(1, 3)
            new = [frame(len(sent) + i, 100) for i in range(burst)]
            sent += new
            assert all(rig.model.receive(each) for each in new)
            until(arrived, "a frame that wakes the loop")
            rig.vm1.post(*[ORDINARY] * burst)
            os.eventfd_write(kick_fd, 1)
            if chance.random() < 0.2:
                time.sleep(chance.random() / 2000)
            if direct:  # a VF without buffers drops
                until(lambda: owned(rig) == SIZE, "buffers")
        assert loop.stats.sleeps > 0
    assert found == sent
    assert rig.model.interrupts > 0


@pytest.mark.parametrize("direct", [False, True], ids=["copy", "direct"])
def test_it_interrupts_only_who_sleeps(direct: bool, kick_fd: int) -> None:
    with igb(kick_fd, direct=direct) as rig:
        rig.model.masks_itself = False
        arm, disarm = operation(rig, ARM), operation(rig, DISARM)
        assert rig.model.receive(frame(1, 60))
        assert rig.model.interrupts == 0
        assert arm() == ARMED
        rig.model.interrupt()
        assert rig.model.interrupts == 1  # of what came before, it is said now
        assert rig.model.receive(frame(2, 60))
        assert rig.model.interrupts == 2
        disarm()
        assert rig.model.receive(frame(3, 60))
        assert rig.model.interrupts == 2
        rig.turn()
        assert rig.vm1.received() == [frame(number, 60) for number in (1, 2, 3)]


@pytest.mark.parametrize("frames", [0, 3])
def test_an_idle_loop_is_left_alone(
    frames: int, kick_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is one whose port has frames, for which VM1 has no buffers."""
    monkeypatch.delenv("PMD_KERNEL_TRUST_WAKES")  # a sleep ends after 40 ms
    with igb(kick_fd, direct=False) as rig:
        fills_and_sleeps(rig, frames, kick_fd)


def test_a_function_without_interrupts_is_polled(
    kick_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IgbModel, "irq_max", 0)
    with igb(kick_fd, direct=True) as rig, looping(rig):
        for number in range(SIZE):
            assert rig.model.receive(frame(number, 60))
            until(lambda: len(rig.vm1.received()) == 1, "a frame that the loop looks for")
        assert rig.model.interrupts == 0
