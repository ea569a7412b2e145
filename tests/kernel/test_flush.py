"""What the kernel flushes from the caches: as VM1 sends faster; and no frame is another for it."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.software_vf import PortSpec
from pmd.kernel import DirectionStats, Port, Work
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import BIG, Rig, transmit

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = Path(__file__).resolve().parents[2] / "pmd" / "csrc"
LEVELS = ["never", "first", "all"]
NEVER, FIRST, ALL = range(3)
RING = 256
TRIAL = 270_000  # chains from one to the next
AWHILE = 12 * TRIAL
MOST = 0.95
SLOW = [40, 40, 40]
FRAMES = 100
FIT = 16  # buffers; the others lie where these do
FLAG = "clflushopt"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel's decision, and a VM1 to be decided about."""
    if FLAG not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this processor has no {FLAG}: nothing is ever flushed")
    output = tmp_path_factory.mktemp("flush") / "flush.so"
    sources = [Path(__file__).with_name("flush_machine.c"), SOURCES / "flush.c", SOURCES / "isa.c"]
    command = ["gcc", "-std=gnu11", "-O1", "-fPIC", "-shared", f"-I{SOURCES}", "-o", str(output)]
    subprocess.run([*command, *map(str, sources)], check=True)
    return ctypes.CDLL(str(output))


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this run of the tests is told."""
    monkeypatch.delenv("PMD_KERNEL_FLUSH", raising=False)


class Machine:
    """A transmit ring, and VM1 at its other end."""

    def __init__(self, library: ctypes.CDLL, *, possible: bool = True) -> None:
        self._library = library
        self._flush = ctypes.create_string_buffer(library.machine_bytes())
        self._now = ctypes.c_uint64(1 << 40)
        library.flush_begin(self._flush, RING, ctypes.c_bool(possible))

    def run(self, cycles: Sequence[int], chains: int = AWHILE, pause_every: int = 0) -> list[float]:
        """VM1 takes so many cycles a chain, by level; each level's part of the chains."""
        spent = (ctypes.c_uint64 * 3)()
        self._library.machine_run(
            self._flush,
            (ctypes.c_uint32 * 3)(*cycles),
            ctypes.c_uint64(chains),
            ctypes.c_uint64(pause_every),
            ctypes.byref(self._now),
            spent,
        )
        return [count / sum(spent) for count in spent]


@pytest.mark.parametrize(
    ("cycles", "best"),
    [
        (SLOW, NEVER),
        ([40, 60, 90], NEVER),
        ([40, 38, 37], NEVER),  # less than a tenth does not pay
        ([40, 25, 60], FIRST),
        ([100, 40, 40], FIRST),
        ([100, 90, 40], ALL),
        ([100, 60, 40], ALL),
    ],
)
def test_it_goes_the_way_that_is_faster(library: ctypes.CDLL, cycles: list[int], best: int) -> None:
    machine = Machine(library)
    machine.run(cycles)
    assert machine.run(cycles)[best] > MOST


def test_it_follows_a_machine_that_changes(library: ctypes.CDLL) -> None:
    machine = Machine(library)
    for cycles, best in (([100, 40, 40], FIRST), ([40, 50, 60], NEVER), ([90, 80, 30], ALL)):
        machine.run(cycles)
        assert machine.run(cycles)[best] > MOST


@pytest.mark.parametrize("pause_every", [1_000, 5_000, 30_000, 1_000_000])
def test_pauses_of_vm1_decide_nothing(library: ctypes.CDLL, pause_every: int) -> None:
    assert Machine(library).run(SLOW, 10 * AWHILE, pause_every)[NEVER] > MOST


def test_it_begins_with_nothing_flushed(library: ctypes.CDLL) -> None:
    assert Machine(library).run([100, 40, 40], TRIAL // 2) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("level", range(3))
def test_what_is_told(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    monkeypatch.setenv("PMD_KERNEL_FLUSH", LEVELS[level])
    assert Machine(library).run([100, 60, 40])[level] == 1.0
    assert Machine(library, possible=False).run([100, 60, 40])[NEVER] == 1.0


def _send(rig: Rig, bytes_each: int) -> None:
    for index in range(FRAMES):
        at = BIG + 2048 * (index % FIT)
        rig.poke(at, bytes(12) + bytes((index + i) % 256 for i in range(bytes_each)))
        rig.chain(index, [(at, 12 + bytes_each)])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [Rig, PackedRig])
@pytest.mark.parametrize("bytes_each", [60, 1518])
@pytest.mark.usefixtures("library")
def test_frames_are_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
    level: str,
    kind: type[Rig],
    bytes_each: int,
) -> None:
    monkeypatch.setenv("PMD_KERNEL_FLUSH", level)
    with kind(128) as rig:
        _send(rig, bytes_each)
        assert transmit(rig, 32).packets == FRAMES
    stats = DirectionStats()
    with kind(128) as rig, Port(PortSpec("copy")) as port:
        _send(rig, bytes_each)
        work = Work(rig.queue(stats), None, port)
        while work.turn(32):
            pass
    assert (stats.packets, stats.flushed) == (FRAMES, 0 if level == "never" else FRAMES)
