"""A VF that is unplugged or stalls while frames move: its channel alone does without it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from tests.driver.virtio_net_model import VirtioNetModel
from tests.pmd.fake_source import FakeSource
from tests.pmd.vf_run import Run, patch_times, told_nothing
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    patch_times(monkeypatch)
    with contextlib.ExitStack() as stack:
        yield Run(stack, VirtioNetModel(), FakeSource(told_nothing()))


def test_its_channel_does_without_and_the_other_runs_on(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.wait_until_served(1)
    run.vm1.send(0)
    run.wait_for_used([0])
    run.unplugged = True
    os.eventfd_write(run.model.request, 1)
    wait_for(lambda: "there is no such function; trying again" in caplog.text, "its end")
    assert run.model.closed
    assert "VF virtio-net:01:00.0: the kernel wants it back" in caplog.text
    run.vm1.send(1)
    for _ in range(3):
        run.neighbour.move()
    run.wait_for_used([0, 1])  # dropped
    os.eventfd_read(run.model.request)
    run.unplugged = False
    run.wait_until_served(3)  # once to see that it is there
    run.vm1.send(2)
    run.wait_for_used([0, 1, 2])
    assert run.sent == [0, 2]
