"""The binding's objects: lifetimes, loops, ports, and the handshake with the library."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from driver.software_vf import PortSpec
from guest.errors import VhostPciError
from pmd.kernel import (
    BURST_MAX,
    DirectionStats,
    Event,
    Loop,
    Port,
    Queue,
    Work,
    drop_names,
    fault_names,
    tsc_hz,
)
from pmd.kernel_abi import ABI, DROP_SLOTS, SIGNATURES, SIZES
from pmd.kernel_library import load
from tests.kernel.rig import DATA, Rig, frames_of
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path


def test_names_fit_the_counters() -> None:
    assert drop_names()[0] == "sent"
    assert len(drop_names()) <= DROP_SLOTS
    assert fault_names() == ("none", "index_jump", "bad_head", "window", "long_chain", "missing")


def test_the_clock_runs_at_its_rate() -> None:
    with Loop(32) as loop:
        loop.run(50_000_000)
        assert loop.stats.cycles >= 0.05 * tsc_hz() * 0.9


def test_a_missing_library_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(VhostPciError, match=r"cannot load the kernel .*absent\.so: .*build it"):
        load(str(tmp_path / "absent.so"))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: apt-get install gcc")
@pytest.mark.parametrize(
    ("abi", "size", "cause"),
    [
        (ABI + 1, 0, f"its ABI is {ABI + 1}, this package wants {ABI}"),
        (ABI, 7, "struct rk_region has 7 bytes"),
    ],
)
def test_a_library_of_another_abi_is_refused(
    tmp_path: Path, abi: int, size: int, cause: str
) -> None:
    others = sorted(set(SIGNATURES) - {"rk_abi", "rk_sizeof"})
    source = "\n".join(f"void {name}(void) {{}}" for name in others)
    source += f"\nunsigned rk_abi(void) {{ return {abi}; }}"
    source += f"\nunsigned long rk_sizeof(const char *s) {{ (void)s; return {size}; }}\n"
    (tmp_path / "other.c").write_text(source)
    library = tmp_path / "other.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "other.c"],
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    with pytest.raises(VhostPciError, match=cause):
        load(str(library))
    assert SIZES["rk_region"] == 32


def test_a_library_without_our_functions_is_refused() -> None:
    with pytest.raises(VhostPciError, match="undefined symbol"):
        load("libc.so.6")


def test_what_is_used_cannot_be_closed() -> None:
    with Rig(8) as rig:
        map_ = rig.kernel_map()
        queue = Queue(rig.config(), map_, DirectionStats())
        port = Port(PortSpec("loop"))
        loop = Loop(32)
        loop.set([Work(queue, None, port)])
        for used in (map_, queue, port):
            with pytest.raises(BufferError, match="1 users"):
                used.close()
        loop.set([])
        port.close()
        with pytest.raises(BufferError):
            map_.close()
        loop.close()
        for each in (queue, map_, loop, port):
            each.close()
            each.close()
        with pytest.raises(ValueError, match="Queue is closed"):
            queue.call()
        with pytest.raises(ValueError, match="Loop is closed"):
            loop.run(1)


def test_closing_a_loop_lets_its_works_go() -> None:
    with Rig(8) as rig:
        queue = rig.queue(DirectionStats())
        with Loop(32) as loop:
            loop.set([Work(queue, None, rig.port())])
        queue.close()


def test_a_failed_queue_leaves_no_user_behind() -> None:
    with Rig(8) as rig:
        map_ = rig.kernel_map()
        with pytest.raises(VhostPciError):
            Queue(rig.config()._replace(size=3), map_, DirectionStats())
        map_.close()


@pytest.mark.parametrize("kind", ["", "nonsense"])
def test_a_port_that_cannot_open_says_why(kind: str) -> None:
    with pytest.raises(VhostPciError, match="cannot open VF 3") as caught:
        Port(PortSpec(kind), "VF 3")
    assert caught.value.cause


@pytest.mark.parametrize("burst", [1, BURST_MAX, BURST_MAX + 1])
def test_a_turn_keeps_to_its_burst(burst: int) -> None:
    with Rig(512) as rig:
        for head in range(512):
            rig.chain(head, [(DATA, 64)])
        queue, port = rig.queue(DirectionStats()), rig.port()
        assert Work(queue, None, port).turn(burst) == min(burst, BURST_MAX)
        assert len(frames_of(port)) == min(burst, BURST_MAX)


def test_a_loop_polls_every_work_and_beats() -> None:
    generation = np.array([4], dtype="<u4")
    heartbeat = np.zeros(1, dtype="<u8")
    with Rig(8) as one, Rig(16) as two, Loop(4) as loop:
        works = []
        for rig in (one, two):
            rig.chain(0, [(DATA, 100)])
            rig.chain(1, [(DATA, 100)])
            works.append(
                Work(
                    rig.queue(DirectionStats()),
                    None,
                    rig.port(),
                    generation_address=generation.ctypes.data,
                    expected=4,
                    heartbeat_address=heartbeat.ctypes.data,
                )
            )
        loop.set(works)
        assert loop.works == tuple(works)
        assert loop.run(10_000_000) == Event.BUDGET
        assert [work.tx.stats.packets for work in works if work.tx] == [2, 2]
        assert heartbeat[0] > 0
        assert loop.stats.busy_turns == 1
        assert loop.stats.turns > 1
        assert 0 < loop.stats.busy_cycles < loop.stats.cycles
        loop.set([])


def test_a_new_generation_stops_that_work_before_it_touches_the_ring() -> None:
    generation = np.array([6], dtype="<u4")
    with Rig(8) as rig, Rig(16) as other, Loop(4) as loop:
        rig.chain(0, [(DATA, 100)])
        address = generation.ctypes.data
        stale = Work(
            rig.queue(DirectionStats()),
            None,
            rig.port(),
            generation_address=address,
            expected=4,
        )
        current = Work(other.queue(DirectionStats()), None, other.port())
        loop.set([stale, current])
        assert loop.run(60_000_000_000) == Event.GENERATION
        assert stale.events == Event.GENERATION
        assert current.events == Event(0)
        assert rig.used_index() == 0
        # It is passed over until the works are set anew; the other goes on.
        other.chain(0, [(DATA, 100)])
        assert loop.run(1_000_000) == Event.BUDGET
        assert other.used_index() == 1
        assert rig.used_index() == 0
        generation[0] = 4
        loop.set([stale])
        assert stale.events == Event(0)
        assert loop.run(1_000_000) == Event.BUDGET
        assert rig.used_index() == 1
        loop.set([])


def test_a_quarantined_ring_stops_its_work_and_no_other() -> None:
    with Rig(8) as rig, Rig(16) as other, Loop(4) as loop:
        rig.make_available(8)
        bad = Work(rig.queue(DirectionStats()), None, rig.port())
        good = Work(other.queue(DirectionStats()), None, other.port())
        loop.set([bad, good])
        assert loop.run(60_000_000_000) == Event.FAULT
        assert (bad.events, good.events) == (Event.FAULT, Event(0))
        other.chain(0, [(DATA, 100)])
        assert loop.run(1_000_000) == Event.BUDGET
        assert other.used_index() == 1
        loop.set([])


def test_stop_ends_the_running_or_else_the_next_run() -> None:
    with Loop(4) as loop:
        loop.stop()
        assert loop.run(60_000_000_000) == Event.STOP
        assert loop.run(1_000_000) == Event.BUDGET
        found: list[Event] = []
        runner = threading.Thread(target=lambda: found.append(loop.run(1 << 60)))
        runner.start()
        for _ in range(2):  # its clock is to be seen while it runs
            before = loop.stats.cycles
            wait_for(lambda: loop.stats.cycles > before, "the loop's cycles")  # noqa: B023 - now
        loop.stop()
        runner.join()
        assert found == [Event.STOP]


def test_a_running_loop_can_be_neither_set_nor_closed() -> None:
    with Loop(4) as loop:
        events: list[Event] = []
        thread = threading.Thread(target=lambda: events.append(loop.run(60_000_000_000)))
        thread.start()
        deadline = time.monotonic() + 20
        while loop.stats.turns == 0 and time.monotonic() < deadline:
            pass
        with pytest.raises(BufferError, match="the loop runs"):
            loop.set([])
        with pytest.raises(BufferError, match="the loop runs"):
            loop.close()
        loop.stop()
        thread.join()
        assert events == [Event.STOP]


def test_both_directions_of_a_pair_through_one_port() -> None:
    with Rig(8) as sender, Rig(16) as receiver, Loop(32) as loop, Port(PortSpec("loop")) as port:
        sender.chain(0, [(DATA, 112)])
        receiver.chain(5, [(DATA, 500)], 2)
        frame = sender.peek(DATA + 12, 100)
        loop.set(
            [
                Work(
                    sender.queue(DirectionStats()),
                    receiver.queue(DirectionStats()),
                    port,
                )
            ]
        )
        loop.run(10_000_000)
        assert receiver.used(1) == [(5, 112)]
        assert receiver.peek(DATA + 12, 100) == frame
        loop.set([])
