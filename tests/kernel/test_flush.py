"""What the kernel flushes from the caches: as VM1 sends faster; and no frame is another for it."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.software_vf import PortSpec
from guest.closing import Closing
from guest.errors import UsageError
from pmd import kernel_library
from pmd.kernel import DirectionStats, Port, Work
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import BIG, Rig, transmit

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = Path(__file__).resolve().parents[2] / "pmd" / "csrc"
LEVELS = ["never", "first", "all"]
NEVER, FIRST, ALL = range(3)
TRIAL = 394_000  # chains from one to the next, up to twice
AWHILE = 16 * TRIAL
MOST = 0.95
ALIKE = [40, 40, 40]
FRAMES = 100
FIT = 16  # buffers; the others lie where these do


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel's decision, and a VM1 to be decided about."""
    output = tmp_path_factory.mktemp("flush") / "flush.so"
    sources = [Path(__file__).with_name("flush_machine.c"), SOURCES / "flush.c"]
    command = ["gcc", "-std=gnu11", "-O1", "-fPIC", "-shared", f"-I{SOURCES}", "-o", str(output)]
    subprocess.run([*command, *map(str, sources)], check=True)
    library = ctypes.CDLL(str(output))
    library.machine_new.restype = ctypes.c_void_p
    library.machine_new.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_bool]
    library.machine_free.argtypes = [ctypes.c_void_p]
    library.machine_run.argtypes = [
        *(ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint64),
        *(ctypes.c_uint32, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64)),
    ]
    return library


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this run of the tests is told."""
    monkeypatch.delenv("PMD_KERNEL_FLUSH", raising=False)


class Machine(Closing):
    """A ring, and VM1 at its other end, whose driver goes round so many buffers."""

    def __init__(
        self, library: ctypes.CDLL, ring: int = 256, buffers: int = 256, *, possible: bool = True
    ) -> None:
        self._library = library
        self._machine = library.machine_new(ring, buffers, possible)

    def run(
        self, cycles: Sequence[int], chains: int = AWHILE, pause_every: int = 0, burst: int = 32
    ) -> list[float]:
        """VM1 takes so many cycles a chain, by level; each level's part of the chains."""
        spent = (ctypes.c_uint64 * 3)()
        costs = (ctypes.c_uint32 * 3)(*cycles)
        self._library.machine_run(self._machine, costs, chains, burst, pause_every, spent)
        return [count / sum(spent) for count in spent]

    def close(self) -> None:
        self._library.machine_free(self._machine)


@pytest.mark.parametrize("burst", [32, 1, 200])
@pytest.mark.parametrize(
    ("cycles", "best"),
    [
        (ALIKE, NEVER),
        ([40, 60, 90], NEVER),
        ([40, 38, 37], NEVER),  # less than a tenth does not pay
        ([40, 25, 60], FIRST),
        ([100, 40, 40], FIRST),
        ([100, 90, 40], ALL),
        ([100, 60, 40], ALL),
    ],
)
def test_it_goes_the_way_that_is_faster(
    library: ctypes.CDLL, cycles: list[int], best: int, burst: int
) -> None:
    with Machine(library) as machine:
        machine.run(cycles, burst=burst)
        assert machine.run(cycles, burst=burst)[best] > MOST


@pytest.mark.parametrize(("ring", "buffers"), [(1, 1), (256, 4000), (4096, 4096), (32768, 32768)])
def test_rings_and_pools_of_any_size(library: ctypes.CDLL, ring: int, buffers: int) -> None:
    with Machine(library, ring, buffers) as machine:
        for cycles, best in (([100, 60, 30], ALL), (ALIKE, NEVER)):
            machine.run(cycles, 8 * AWHILE)
            assert machine.run(cycles)[best] > MOST


def test_it_follows_a_machine_that_changes(library: ctypes.CDLL) -> None:
    with Machine(library) as machine:
        for cycles, best in (([100, 40, 40], FIRST), ([40, 50, 60], NEVER), ([90, 80, 30], ALL)):
            machine.run(cycles)
            assert machine.run(cycles)[best] > MOST


@pytest.mark.parametrize("pause_every", [1_000, 5_000, 30_000, 1_000_000])
def test_pauses_of_vm1_decide_nothing(library: ctypes.CDLL, pause_every: int) -> None:
    with Machine(library) as machine:
        assert machine.run(ALIKE, 4 * AWHILE, pause_every)[NEVER] > MOST
        if pause_every > TRIAL // 10:
            machine.run([100, 40, 40], AWHILE, pause_every)
            assert machine.run([100, 40, 40], AWHILE, pause_every)[FIRST] > MOST


def test_it_begins_with_nothing_flushed(library: ctypes.CDLL) -> None:
    with Machine(library) as machine:
        assert machine.run([100, 40, 40], TRIAL // 2) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("level", range(3))
def test_what_is_told(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    monkeypatch.setenv("PMD_KERNEL_FLUSH", LEVELS[level])
    with Machine(library) as machine, Machine(library, possible=False) as other:
        assert machine.run([100, 60, 40])[level] == 1.0
        assert other.run([100, 60, 40])[NEVER] == 1.0


def test_told_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMD_KERNEL_FLUSH", "sometimes")
    kernel_library.library.cache_clear()  # it is asked when it is loaded
    try:
        with pytest.raises(UsageError, match=r"FLUSH=sometimes: .*; give one of never, first, all"):
            kernel_library.library()
    finally:
        kernel_library.library.cache_clear()


def _send(rig: Rig, bytes_each: int) -> None:
    for index in range(FRAMES):
        at = BIG + 2048 * (index % FIT)
        rig.poke(at, bytes(12) + bytes((index + i) % 256 for i in range(bytes_each)))
        rig.chain(index, [(at, 12 + bytes_each)])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [Rig, PackedRig])
@pytest.mark.parametrize("bytes_each", [60, 1518])
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
    flushes = level != "never" and "clflushopt" in Path("/proc/cpuinfo").read_text()
    assert (stats.packets, stats.flushed) == (FRAMES, FRAMES if flushes else 0)
