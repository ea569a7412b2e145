"""`pmd run --poll`: lcores that sleep lose nothing, and cost nothing while nothing moves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.system.processes import Device, Pmd, Vm1

pytestmark = pytest.mark.system

COUNT = 4000
# VM1 is silent half a millisecond between frames, so `interrupt` sleeps before nearly each.
RATE = 2000
IDLE_S = 3.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("poll", ["adaptive", "interrupt"])
@pytest.mark.parametrize(
    "ring",
    [["--no-event-idx"], [], ["--packed"], ["--packed", "--no-event-idx"]],
    ids=" ".join,
)
def test_no_frame_waits_for_ever(tmp_path: Path, poll: str, ring: list[str]) -> None:
    options = ["--poll", poll, "--coalesce-us", "20" if poll == "adaptive" else "0"]
    with (
        Device(tmp_path) as device,
        Pmd([(device.function, "loop")], *options) as pmd,
        Vm1("verify", device.vhost_user, "--count", str(COUNT), "--rate", str(RATE), *ring) as vm1,
    ):
        result = vm1.result()
        assert (result["received"], result["lost"]) == (COUNT, 0)
        assert result["protocol_error_kinds"] == {}
        assert pmd.summary().vm1_to_vf.packets == COUNT


def test_an_idle_daemon_costs_nothing(tmp_path: Path) -> None:
    with (
        Device(tmp_path) as device,
        Pmd([(device.function, "loop")], "--poll", "adaptive") as pmd,
        Vm1("idle", device.vhost_user),
    ):
        pmd.wait_until_forwarding()
        pmd.wait_until_quiet()
        begin = _cpu_s(pmd.pid)
        time.sleep(IDLE_S)
        # What prints the statistics ten times a second has its part in it.
        assert _cpu_s(pmd.pid) - begin < 0.02 * IDLE_S
