"""A server that comes back late keeps nobody waiting but its own channel."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from driver.software_vf import parse_vf
from pmd import report
from pmd.channel import Channel
from pmd.daemon import Daemon
from pmd.serving import Serving
from pmd.signals import Signals
from pmd.source import SocketSource
from tests.pmd.fake_source import FakeSource, Told
from tests.pmd.processes import Device
from tests.pmd.wait import DEADLINE_S, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from guest.function import Function


class LateSource(FakeSource):
    """A server that goes as soon as it is served; its successor does not answer for long."""

    comes_back = True

    def __init__(self, wait: Callable[[], None], end: Callable[[], None]) -> None:
        first = Told(lambda _: os.eventfd_write(first.gone_fd, 1))
        super().__init__(first)
        self._successor = FakeSource(Told(lambda _: end()))
        self._wait = wait
        self._opened = 0

    def open(self) -> Function:
        self._opened += 1
        if self._opened == 1:
            return self.function
        self._wait()
        return self._successor.function


def test_a_server_that_does_not_answer_keeps_no_neighbour_waiting() -> None:
    """The neighbour's next generation is acknowledged while the late one is being opened."""
    acknowledged = threading.Event()
    neighbour = FakeSource(Told(lambda generation: acknowledged.set() if generation == 4 else None))
    in_time: list[bool] = []

    def wait() -> None:
        neighbour.start(4)
        in_time.append(acknowledged.wait(DEADLINE_S))

    late = LateSource(wait, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        channels = [Channel(source, parse_vf("null"), Serving()) for source in (late, neighbour)]
        for channel in channels:
            stack.callback(channel.close)
            channel.attach()
        cpu = min(os.sched_getaffinity(0))
        daemon = stack.enter_context(Daemon(channels, [cpu], 32, signals))
        _, last = daemon.run(report.view(json=True), 1.0, DEADLINE_S)
    assert in_time == [True]
    assert signals.received
    assert [channel.state for channel in last.channels] == ["forwarding", "forwarding"]


def test_a_server_that_dies_before_it_was_served(tmp_path: Path) -> None:
    """Attached, and gone at the first look: its successor is served."""
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        device = stack.enter_context(Device(tmp_path))
        channel = Channel(SocketSource(str(device.vfio_user)), parse_vf("null"), Serving())
        stack.callback(channel.close)
        channel.attach()
        device.kill()
        for path in (device.vhost_user, device.vfio_user):
            path.unlink()
        successor = stack.enter_context(Device(tmp_path))

        def end_when_served() -> None:
            wait_for(
                lambda: successor.describe()["function"]["driver_pid"] == os.getpid(),
                "the successor's driver",
            )
            os.kill(os.getpid(), signal.SIGTERM)

        cpu = min(os.sched_getaffinity(0))
        daemon = stack.enter_context(Daemon([channel], [cpu], 32, signals))
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(end_when_served)
            _, last = daemon.run(report.view(json=True), 1.0, DEADLINE_S)
            waiting.result()
    assert [channel.state for channel in last.channels] == ["waiting"]
