"""The peer of a benchmark: DPDK's testpmd with its vhost driver, doing what our side does.

What null (or copy), loop, patch and gen are to us are to it: a net_null port that takes frames and
has none; the vhost port's own transmit side; another vhost port; a net_null port that has frames
without end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pmd.bench_case import Direction, Mode
from pmd.bench_cycles import ALL, VAIN, Count
from pmd.bench_side import Side
from pmd.child import Child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pmd.bench_case import Case
    from pmd.bench_cycles import Counts
    from pmd.bench_side import Places, Waiter

KIND = "testpmd"
MEMORY_MIB = 256
_VERSION = re.compile(r"RTE Version: 'DPDK ([^']+)'")
# Of all ports. What it calls dropped it could not send: a net_null port made it for nobody. Total
# cycles (22.11) and busy cycles (23.11 to 26.07) are those of bursts that moved something.
_COUNTED = re.compile(
    r"Accumulated forward.*?TX-packets: *(\d+) *TX-dropped: *(\d+)"
    r".*?\((?:total|busy) cycles=(\d+) / .* MHz Clock\n",
    re.DOTALL,
)


class Testpmd(Side):
    """One testpmd with a vhost port a channel.

    Its memory is of huge pages where VM1's is; else DPDK makes a memfd of small ones.
    """

    __test__ = False  # a name that test runners take for a test

    def __init__(
        self, program: str, case: Case, directory: Path, places: Places, waiter: Waiter
    ) -> None:
        super().__init__(KIND, case, directory, places, waiter)
        self._program = program

    @property
    def label(self) -> str:
        """With its version, as it tells it."""
        found = _VERSION.search(self._said())
        return f"{self.name} {found[1]}" if found else self.name

    def _start_back_end(self) -> list[Child]:
        case, lcores = self.case, self._places.lcores
        memory = ["--in-memory", "--single-file-segments"] if self._places.huge_pages else []
        # lcore 0 is the main one, which is asked while VM1 is stopped; each other forwards, pinned
        # where ours does.
        threads = [
            f"0@{self._places.vm1_cpus[0]}",
            *(f"{i + 1}@{cpu}" for i, cpu in enumerate(lcores)),
        ]
        command = [
            # By lines: an answer that is not in the file yet would be waited for in vain.
            *("stdbuf", "-oL", self._program, "-v"),
            *("--lcores", ",".join(threads), "--main-lcore", "0"),
            *("--no-pci", "--no-telemetry", "-m", str(MEMORY_MIB), *(memory or ["--no-huge"])),
            *(f"--vdev={port}" for port in self._ports()),
            *("--", "-i", "--auto-start", f"--nb-cores={len(lcores)}", f"--burst={case.burst}"),
            *("--no-lsc-interrupt", "--disable-link-check"),
            *(f"--rxd={case.queue_size}", f"--txd={case.queue_size}"),
            *("--total-num-mbufs=16384", "--mbcache=256", "--forward-mode=io"),
            *(f"--port-topology={'loop' if case.mode == Mode.LOOP else 'paired'}",),
            *("--record-core-cycles", f"--mbuf-size={self._mbuf_bytes()}"),
        ]
        environment = {"RUNTIME_DIRECTORY": str(self._directory)}
        child = self._keep(Child(self.name, command, first=True, environment=environment))
        for index in range(self.case.functions):
            self._wait_for_socket(self.socket(index))
        return [child]

    def _mbuf_bytes(self) -> int:
        """DPDK's default, or what makes one segment of a frame."""
        return max(2176, self.case.frame_bytes + 256)

    def _ports(self) -> Iterator[str]:
        case = self.case
        for index in range(case.functions):
            yield f"net_vhost{index},iface={self.socket(index)},queues=1"
            active = index < case.channels * case.ends
            if case.mode == Mode.LOOP or (active and case.mode == Mode.PATCH):
                continue
            # Without no-rx a null port's frames would flood the direction that is not measured.
            silent = case.direction == Direction.TX or not active
            frames = "no-rx=1" if silent else f"size={case.frame_bytes}"
            yield f"net_null{index},{frames}"

    def _ask(self, forwarding: Child) -> None:
        forwarding.say("show fwd stats all")

    def _read(self, answer: str) -> Counts | None:
        found = _COUNTED.search(answer)
        if found is None:
            return None
        sent, thrown, cycles = map(int, found.groups())
        return {ALL: Count(sent, cycles), VAIN: Count(thrown, cycles)}
