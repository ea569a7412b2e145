"""`python -m tests.soak --minutes N`: frames while everybody sleeps, wakes and stops at random.

Each round is a device and a `pmd run` in one of `--poll`'s modes; four VM1s, one a ring layout,
come to it in turn, each with numbered frames that are looped back. VM1 is paused at random, so that
it finds the lcore in any state. Nothing may be lost. The lcores sleep until they are woken, be it
for ever: a lost wake-up is not mended by the heartbeat's, nor by a pause of theirs, which ends one.
Most of the VM1s sleep likewise, and look at each of their two rings only once it is called for: a
call that is lost ends their run, and is told as `lost_call`. The others poll.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rounds import rounds
from tests.system.processes import Device, Pmd, Vm1

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

POLLS = ("busy", "adaptive", "interrupt")
RINGS = ((), ("--no-event-idx",), ("--packed",), ("--packed", "--no-event-idx"))
# VM1 is silent half a millisecond between frames, so `interrupt` sleeps before nearly each.
RATE = 2000
PAUSE_MAX_S = 0.02
ROUND_FRAMES = 10 * RATE
# In flight: one, so that each frame depends on its own wake-up; some; all that the rings hold.
WINDOWS = (1, 8, 0)
SLEEPERS = (True, True, False)
RUN_TIMEOUT_S = 120.0


TRUSTING = {"PMD_KERNEL_TRUST_WAKES": "1"}


@dataclass(frozen=True, slots=True)
class Soaked:
    """One VM1's frames: how many came back, and how many never did."""

    received: int
    lost: int
    calls: int
    error_kinds: tuple[str, ...]
    seconds: float


def _pause(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def soak_ring(
    device: Device,
    ring: tuple[str, ...],
    frames: int,
    chance: random.Random,
    *,
    sleeps: bool,
) -> Soaked:
    """Sends so many frames from a new VM1, which sleeps or polls, with random pauses of it.

    Raises:
        RuntimeError: VM1 found something wrong, a lost frame among it; it says what.
        TimeoutError: VM1 did not end.
    """
    window = chance.choice(WINDOWS)
    options = ["--count", str(frames), "--rate", str(RATE), "--window", str(window), *ring]
    options += ["--timeout", "30"]  # a machine that others use has kept it waiting for five
    options += ["--sleep"] if sleeps else []
    with Vm1("verify", device.vhost_user, *options) as vm1:
        begin = time.monotonic()
        while vm1.running and time.monotonic() - begin < RUN_TIMEOUT_S:
            _pause(vm1.pid, chance.random() * PAUSE_MAX_S)
            time.sleep(chance.random() * 2 * PAUSE_MAX_S)
        result = vm1.result()
        kinds = tuple(result["protocol_error_kinds"])
        seconds = time.monotonic() - begin
        return Soaked(result["received"], result["lost"], result["calls"], kinds, seconds)


@contextmanager
def served(directory: Path, poll: str, coalesce_us: int) -> Iterator[tuple[Device, Pmd]]:
    """A device with its sockets in directory, and `pmd run --vf loop` at it."""
    options = ("--poll", poll, "--coalesce-us", str(coalesce_us))
    with (
        Device(directory) as device,
        Pmd([(device.function, "loop")], *options, environment=TRUSTING) as pmd,
    ):
        yield device, pmd


def _round(poll: str, chance: random.Random) -> int:
    """One mode with all rings; how many of them failed."""
    coalesce_us = chance.choice((0, 20, 1000))
    failed = 0
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as directory,
        served(Path(directory), poll, coalesce_us) as (device, _),
    ):
        for ring in chance.sample(RINGS, len(RINGS)):
            sleeps = chance.choice(SLEEPERS)
            vm1 = " ".join((*ring, *(["--sleep"] if sleeps else [])))
            name = f"--poll {poll} --coalesce-us {coalesce_us} {vm1}".strip()
            try:
                soaked = soak_ring(device, ring, ROUND_FRAMES, chance, sleeps=sleeps)
            except (RuntimeError, TimeoutError) as error:
                print(f"{name}: FAILED: {error}", flush=True)
                failed += 1
                continue
            wrong = soaked.received != ROUND_FRAMES or soaked.lost or soaked.error_kinds
            failed += bool(wrong)
            rate = soaked.received / soaked.seconds
            verdict = f"FAILED {soaked.error_kinds}" if wrong else "ok"
            print(
                f"{name}: {soaked.received} frames, {soaked.lost} lost, "
                f"{soaked.calls} calls, {rate:.0f}/s: {verdict}",
                flush=True,
            )
    return failed


def main() -> int:
    """Rounds until the time is over; 1 if any VM1 lost a frame."""
    failed = count = 0
    for chance in rounds("tests.soak", "Soaks sleep and wake-up.", minutes=60):
        failed += _round(POLLS[count % len(POLLS)], chance)
        count += 1
    print(f"{len(RINGS) * count} runs, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
