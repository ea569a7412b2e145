"""What a signal does to a run, by when it comes."""

from __future__ import annotations

import contextlib
import os
import signal

from driver.software_vf import parse_vf
from driver.state_area import Register
from guest.function import Region
from pmd import report
from pmd.channel import Channel
from pmd.daemon import Daemon
from pmd.serving import Serving
from pmd.signals import Signals
from tests.driver.fake_function import FakeFunction
from tests.pmd.fake_source import FakeSource


class ImpatientFunction(FakeFunction):
    """A device whose host ends the driver as soon as that has said that it serves VM1."""

    def __init__(self) -> None:
        super().__init__()
        self.gone_fd = os.eventfd(0)

    def fileno(self) -> int:
        return self.gone_fd

    def write(self, index: int, offset: int, data: bytes) -> None:
        super().write(index, offset, data)
        if (index, offset) == (Region.BAR0, Register.ACK):
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        if self.gone_fd >= 0:
            os.close(self.gone_fd)
        self.gone_fd = -1
        super().close()


def test_a_signal_at_the_first_acknowledgement_ends_the_run_well() -> None:
    source = FakeSource(ImpatientFunction())
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        channel = Channel(source, parse_vf("null"), Serving())
        stack.callback(channel.close)
        channel.attach()
        cpu = min(os.sched_getaffinity(0))
        daemon = stack.enter_context(Daemon([channel], [cpu], 32, signals))
        _, last = daemon.run(report.view(json=True), 1.0, None)
        assert signals.received
    assert [each.state for each in last.channels] == ["forwarding"]
