"""A channel for which no descriptor is left: it waits, says so, and serves once there are some."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING

from driver.software_vf import parse_vf
from pmd.channel import Channel
from pmd.serving import Serving
from tests.pmd.fake_source import FakeSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

LIMIT = 256


@contextlib.contextmanager
def _no_descriptors() -> Iterator[None]:
    """As far as this process may, all are open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, before[1]))
    held = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        assert held
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_channel_waits_for_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    source = FakeSource()
    source.function.sleeps = True
    channel = Channel(source, parse_vf("null"), Serving(sleeps=True))
    channel.attach()
    with _no_descriptors():
        channel.configure()
        assert channel.works == {}
    assert "oo many open files" in caplog.text
    assert "waiting for its next state" in caplog.text
    source.start(4)
    channel.configure()
    assert list(channel.works) == [0]
    source.send(0, 100)
    assert channel.works[0].turn(32) == 1
    channel.close()
