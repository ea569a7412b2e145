"""How soon a frame goes out: from VM1's driver being ready, and from a function being opened.

The device is a process of its own, VM1 is this one: a frame lies in its transmit ring before its
driver is ready. Time is up when the frame is received at a `dgram` VF's other end.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from driver.software_vf import parse_vf
from guest.cpus import usable_cpus
from pmd.channel import Channel
from pmd.kernel import Poll
from pmd.lcore import Lcore
from pmd.serving import Serving
from pmd.source import SocketSource
from tests.pmd.hand_vm1 import HandVm1
from tests.pmd.processes import Device, pmd
from tests.pmd.wait import DEADLINE_S, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 30
FRAME = bytes(60)


class Outside:
    """The other end of a dgram VF, at a path of directory."""

    def __init__(self, directory: Path) -> None:
        ours, self._path = directory / "vf", directory / "outside"
        self.vf = f"dgram:{ours},{self._path}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(DEADLINE_S)
        self._socket.bind(str(self._path))

    def receive(self) -> None:
        """Wait for the one frame."""
        assert self._socket.recv(2048) == FRAME

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    end = Outside(tmp_path)
    yield end
    end.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with Device(tmp_path) as process:
        yield process


def settled(device: Device, *, connected: bool) -> bool:
    """Whether the driver knows the device's state, with VM1 or without."""
    found = device.describe()
    function = found["function"]
    known = function["generation"] == function["acknowledged"]
    return known and found["vhost_user"]["connected"] is connected


def vacant(device: Device) -> bool:
    """Whether it has neither a VM1 nor a driver."""
    found = device.describe()
    return found["function"]["client"] is None and not found["vhost_user"]["connected"]


def test_vm1_is_ready_to_first_frame(
    benchmark: BenchmarkFixture, device: Device, outside: Outside
) -> None:
    """pmd runs and has attached; VM1's VMM has negotiated. From DRIVER_OK on."""
    benchmark.group = "time to serve"
    with (
        ExitStack() as rounds,
        pmd("run", "--bar", "2", "--device", device.name, "--vf", outside.vf),
    ):

        def setup() -> tuple[tuple[HandVm1], dict[str, object]]:
            rounds.close()
            wait_for(lambda: settled(device, connected=False), "the end of the last VM1")
            vm1 = rounds.enter_context(HandVm1(device.vhost_user, ready=False))
            vm1.send()
            return (vm1,), {}

        def serve(vm1: HandVm1) -> None:
            vm1.driver_ok()
            outside.receive()

        benchmark.pedantic(serve, setup=setup, rounds=ROUNDS)  # type: ignore[no-untyped-call]


def test_function_is_opened_to_first_frame(
    benchmark: BenchmarkFixture, device: Device, outside: Outside
) -> None:
    """VM1 waits. What pmd does for a function that appears, its modules loaded: from open() on."""
    benchmark.group = "time to serve"
    lcore = Lcore(max(usable_cpus()), 32, lambda _: None, Poll())
    with ExitStack() as stack, ExitStack() as rounds:
        stack.callback(lcore.close)

        def end(channel: Channel) -> None:
            lcore.pause()
            lcore.set_works([])
            channel.close()

        def setup() -> tuple[tuple[Channel], dict[str, object]]:
            rounds.close()
            wait_for(lambda: vacant(device), "the end of the last VM1 and its driver")
            vm1 = rounds.enter_context(HandVm1(device.vhost_user))
            vm1.send()
            source = SocketSource(str(device.vfio_user))
            channel = Channel(source, parse_vf(outside.vf), Serving())
            rounds.callback(end, channel)
            return (channel,), {}

        def serve(channel: Channel) -> None:
            channel.attach()
            channel.configure()
            lcore.set_works(list(channel.works.values()))
            lcore.resume()
            outside.receive()

        benchmark.pedantic(serve, setup=setup, rounds=ROUNDS)  # type: ignore[no-untyped-call]
