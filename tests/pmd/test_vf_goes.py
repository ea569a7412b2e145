"""A VF that is unplugged or stalls while frames move: its channel alone does without it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction, PassthroughVf
from driver.software_vf import parse_vf
from driver.virtio_net.vf import VirtioNetVf
from guest.cpus import default_lcores
from guest.errors import VhostPciError
from pmd import channel as channel_module
from pmd import ports as ports_module
from pmd.channel import Channel
from pmd.daemon import Daemon
from pmd.report import Silent
from pmd.serving import Serving
from tests.driver.igb_model import CONTROL, ENABLE, TX, IgbModel
from tests.driver.virtio_function_model import DRIVER_OK
from tests.driver.virtio_net_model import VirtioNetModel as Model
from tests.pmd.fake_source import FakeSource
from tests.pmd.test_slots import Stop
from tests.pmd.wait import DEADLINE_S, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


class Plugged(FakeSource):
    """One whose function stays, however often it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self._gone = os.eventfd(0, os.EFD_CLOEXEC)
        self._close = self.function.close
        self.function.fileno = lambda: self._gone  # type: ignore[method-assign]
        self.function.close = lambda: None  # type: ignore[method-assign]

    def close(self) -> None:
        self._close()
        os.close(self._gone)


class Run:
    """Two channels on one lcore, by the model's VF and by none, with the daemon on a thread."""

    def __init__(self, stack: contextlib.ExitStack, model: Model | IgbModel) -> None:
        self.model = model
        stack.callback(self.model.dispose)
        self.unplugged = False
        self.opened = 0
        self.sources = [Plugged(), Plugged()]
        vfs = [self._vf(), parse_vf("null")]
        self.channels = []
        for source, vf in zip(self.sources, vfs, strict=True):
            self.channels.append(Channel(source, vf, Serving()))
            stack.callback(self.channels[-1].close)
            self.channels[-1].attach()
        self._stop = stack.enter_context(contextlib.closing(Stop()))
        daemon = stack.enter_context(
            Daemon(self.channels, default_lcores(1), 32, self._stop)  # type: ignore[arg-type]
        )
        self._thread = threading.Thread(target=lambda: daemon.run(Silent(), 1.0, DEADLINE_S))
        self._thread.start()
        stack.callback(self._end)

    def _vf(self) -> PassthroughVf:
        if isinstance(self.model, IgbModel):
            return IgbVf("igbvf:01:10.0", "", None, self._open)
        return VirtioNetVf("virtio-net:01:00.0", "", None, self._open)

    def _open(self, address: str) -> OpenFunction:
        if self.unplugged:
            raise VhostPciError("open", address, "there is no such function")
        self.opened += 1
        return OpenFunction(self.model, ())

    def _end(self) -> None:
        self._stop.give()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def wait_until_open(self, times: int) -> None:
        wait_for(lambda: self.opened == times and self._runs(), "the VF")

    def _runs(self) -> bool:
        if isinstance(self.model, IgbModel):
            return bool(self.model.get(TX + CONTROL) & ENABLE)
        return bool(self.model.status & DRIVER_OK)

    def wait_for_used(self, channel: int, heads: list[int]) -> None:
        def used() -> bool:
            self.model.run()
            return self.sources[channel].used() == heads

        wait_for(used, f"channel {channel} to return {heads}")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Run]:
    monkeypatch.setattr(ports_module, "_RETRY_S", 0.05)
    monkeypatch.setattr(channel_module, "_DRAIN_S", 0.05)
    monkeypatch.setattr(PassthroughVf, "look_period_s", 0.1)
    with contextlib.ExitStack() as stack:
        yield Run(stack, request.param())


def sent(model: Model | IgbModel) -> list[int]:
    """The first byte of each frame that the VF sent."""
    return [frame[0] for frame in (model.wire if isinstance(model, IgbModel) else model.sent)]


@pytest.mark.parametrize("run", [Model], indirect=True)
def test_its_channel_does_without_and_the_other_runs_on(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.wait_until_open(1)
    run.sources[0].send(0)
    run.wait_for_used(0, [0])
    run.unplugged = True
    os.eventfd_write(run.model.request, 1)
    wait_for(lambda: "there is no such function; trying again" in caplog.text, "its end")
    assert run.model.closed
    assert "VF virtio-net:01:00.0: the kernel wants it back" in caplog.text
    run.sources[0].send(1)
    for number in range(3):
        run.sources[1].send(number)
        run.wait_for_used(1, list(range(number + 1)))
    run.wait_for_used(0, [0, 1])  # dropped
    os.eventfd_read(run.model.request)
    run.unplugged = False
    run.wait_until_open(3)  # once to see that it is there
    run.sources[0].send(2)
    run.wait_for_used(0, [0, 1, 2])
    assert sent(run.model) == [0, 2]


@pytest.mark.parametrize("run", [Model, IgbModel], indirect=True)
def test_beside_one_that_reports_nothing_sent(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """It takes every frame all the same."""
    run.wait_until_open(1)
    run.sources[0].send(0)
    run.wait_for_used(0, [0])
    run.model.completes = False
    run.sources[0].send(1)

    def fetched() -> bool:
        run.model.run()
        return sent(run.model) == [0, 1]

    wait_for(fetched, "the VF to take it")
    run.model.completes = True  # what it has taken it never reports
    for number in range(3):
        run.sources[1].send(number)
        wait_for(lambda n=number: run.sources[1].used() == list(range(n + 1)), "the other")  # type: ignore[misc]
    run.wait_until_open(2)
    assert "it stopped sending; opening it anew" in caplog.text
    run.sources[0].send(2)
    run.wait_for_used(0, [0, 1, 2])
    run.sources[1].send(3)
    run.wait_for_used(1, [0, 1, 2, 3])
    assert sent(run.model) == [0, 1, 2]
    assert run.model.faults == []
