"""The lcore against the real kernel: what it polls, when it wakes, and that a pause is exact."""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.software_vf import PortSpec
from guest.errors import VhostPciError
from pmd.kernel import Event, Loop, Poll, Port, Work, tsc_hz
from pmd.lcore import Lcore
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

CPU = max(os.sched_getaffinity(0))


class Device:
    """The words of a state area that a work watches and beats."""

    def __init__(self, generation: int = 2) -> None:
        self.generation = ctypes.c_uint32(generation)
        self.heartbeat = ctypes.c_uint64(0)
        self.port = Port(PortSpec("null"))
        self.work = Work(
            None,
            None,
            self.port,
            generation_address=ctypes.addressof(self.generation),
            heartbeat_address=ctypes.addressof(self.heartbeat),
            expected=generation,
        )

    def wait_for_beat(self) -> None:
        before = self.heartbeat.value
        wait_for(lambda: self.heartbeat.value != before, "the heartbeat")


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.port.close()


@pytest.fixture
def woken() -> queue.SimpleQueue[Lcore]:
    return queue.SimpleQueue()


@pytest.fixture
def lcore(woken: queue.SimpleQueue[Lcore], device: Device) -> Iterator[Lcore]:
    _ = device  # closed after the lcore
    made = Lcore(CPU, 32, woken.put, Poll())
    yield made
    made.close()


def test_runs_only_between_resume_and_pause(lcore: Lcore, device: Device) -> None:
    lcore.set_works([device.work])
    for _ in range(50):
        lcore.resume()
        device.wait_for_beat()
        lcore.pause()
        beats, turns = device.heartbeat.value, lcore.stats.turns
        assert turns > 0
        for _ in range(1000):
            os.sched_yield()
        assert (device.heartbeat.value, lcore.stats.turns) == (beats, turns)


def test_does_not_come_back_while_there_is_nothing_to_tell(
    device: Device, woken: queue.SimpleQueue[Lcore]
) -> None:
    runs: list[str] = []

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        if frame.f_code is Loop.run.__code__:
            runs.append(event)

    threading.setprofile(watch)  # of threads that are started from now on
    try:
        lcore = Lcore(CPU, 32, woken.put, Poll())
    finally:
        threading.setprofile(None)
    with closing(lcore):
        lcore.set_works([device.work])
        lcore.resume()
        wait_for(lambda: lcore.stats.cycles > 0.15 * tsc_hz(), "150 ms of polling")
        assert "return" not in runs
    assert runs[-1] == "return"


def test_another_generation_wakes_once_and_is_passed_over(
    lcore: Lcore, device: Device, woken: queue.SimpleQueue[Lcore]
) -> None:
    lcore.set_works([device.work])
    lcore.resume()
    device.wait_for_beat()
    assert woken.empty()
    device.generation.value = 4
    assert woken.get(timeout=20) is lcore
    device.wait_for_beat()
    lcore.pause()
    assert device.work.events == Event.GENERATION
    assert woken.empty()


def test_other_works_run_on(lcore: Lcore, device: Device, woken: queue.SimpleQueue[Lcore]) -> None:
    other = Device()
    lcore.set_works([device.work, other.work])
    lcore.resume()
    device.generation.value = 4
    assert woken.get(timeout=20) is lcore
    other.wait_for_beat()
    other.generation.value = 4
    assert woken.get(timeout=20) is lcore
    lcore.pause()
    assert (device.work.events, other.work.events) == (Event.GENERATION, Event.GENERATION)
    lcore.set_works([])
    other.port.close()


def test_sleeps_without_works(lcore: Lcore) -> None:
    lcore.resume()
    lcore.resume()
    lcore.pause()
    assert lcore.stats.turns == 0


def test_runs_on_its_cpu_alone(lcore: Lcore) -> None:
    tasks = Path("/proc/self/task").iterdir()
    affinities = {int(task.name): os.sched_getaffinity(int(task.name)) for task in tasks}
    mine = affinities.pop(os.getpid())
    assert {CPU} in affinities.values()
    assert mine == os.sched_getaffinity(0)
    assert lcore.cpu == CPU


def test_a_cpu_that_is_not_there_is_refused(woken: queue.SimpleQueue[Lcore]) -> None:
    missing = (os.cpu_count() or 1) + 4000
    with pytest.raises(
        VhostPciError, match=f"cannot pin a thread to CPU {missing}: invalid argument"
    ):
        Lcore(missing, 32, woken.put, Poll())


def test_closing_twice_is_fine(woken: queue.SimpleQueue[Lcore]) -> None:
    made = Lcore(CPU, 32, woken.put, Poll())
    made.resume()
    made.close()
    made.close()
