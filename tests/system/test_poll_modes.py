"""`pmd run --poll`: lcores that sleep lose nothing, and cost nothing while nothing moves."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.pmd.processes import cpu_seconds
from tests.soak import RINGS, served, soak_ring
from tests.system.processes import Device, Pmd, Vm1

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system

COUNT = 6000  # a minute for all modes and rings
IDLE_S = 5.0
IDLE_SHARE = 0.01


@pytest.mark.parametrize(("poll", "coalesce_us"), [("busy", 0), ("adaptive", 20), ("interrupt", 0)])
def test_no_frame_waits_for_ever(tmp_path: Path, poll: str, coalesce_us: int, seed: int) -> None:
    """A minute of `python -m tests.soak`: each ring layout, VM1 asleep or paused at random.

    Every call is one that VM1 sleeps for (vm1/sleeping shows that it does), on either ring.
    """
    chance = random.Random(seed)
    with served(tmp_path, poll, coalesce_us) as (device, pmd):
        for ring in RINGS:
            soaked = soak_ring(device, ring, COUNT, chance, sleeps=True)
            assert (soaked.received, soaked.lost, soaked.error_kinds) == (COUNT, 0, ()), ring
            assert soaked.calls > 0, ring
        assert pmd.summary().vm1_to_vf.packets == len(RINGS) * COUNT


def test_an_idle_daemon_costs_nothing(tmp_path: Path) -> None:
    with (
        Device(tmp_path) as device,
        Pmd([(device.function, "loop")], "--poll", "adaptive") as pmd,
        Vm1("idle", device.vhost_user),
    ):
        pmd.wait_until_forwarding()
        pmd.wait_until_quiet()
        begin = cpu_seconds(pmd.pid)
        time.sleep(IDLE_S)
        # What prints the statistics ten times a second has its part in it.
        assert cpu_seconds(pmd.pid) - begin < IDLE_SHARE * IDLE_S
