"""What a signal does to a run, by when it comes."""

from __future__ import annotations

import contextlib
import os
import signal

from driver.software_vf import parse_vf
from pmd import report
from pmd.channel import Channel
from pmd.daemon import Daemon
from pmd.serving import Serving
from pmd.signals import Signals
from tests.pmd.fake_source import FakeSource, Told


def test_a_signal_at_the_first_acknowledgement_ends_the_run_well() -> None:
    source = FakeSource(Told(lambda _: os.kill(os.getpid(), signal.SIGTERM)))
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
