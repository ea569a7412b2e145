"""Our side of a benchmark: devices, `pmd run` on the forwarding CPUs, and VM1s, as processes."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Any

from pmd.bench_case import Mode
from pmd.bench_cycles import ALL, Count
from pmd.bench_side import Side
from pmd.child import Child

if TYPE_CHECKING:
    from pathlib import Path

    from pmd.bench_case import Case
    from pmd.bench_cycles import Counts
    from pmd.bench_side import Places, Waiter

NAME = "pmd"
# By what `pmd run --json` counts, the kernel's stage. What the VF does is in it.
_STAGES = {"vm1_to_vf": "dequeue", "vf_to_vm1": "enqueue"}


class Ours(Side):
    """As a user runs them, each in a process of its own.

    Args:
        kernel: Another build of the kernel to run with, which the side is called after; None: ours.
    """

    def __init__(
        self,
        case: Case,
        directory: Path,
        places: Places,
        waiter: Waiter,
        kernel: Path | None = None,
    ) -> None:
        name = f"{NAME} without {case.feature}" if case.without else NAME
        super().__init__(name if kernel is None else kernel.stem, case, directory, places, waiter)
        self._environment = {} if kernel is None else {"PMD_KERNEL_LIBRARY": str(kernel)}

    def _start_back_end(self) -> list[Child]:
        case = self.case
        for index in range(case.functions):
            sockets = (
                *("--vhost-user", str(self.socket(index))),
                *("--vfio-user", str(self._function(index))),
            )
            command = (sys.executable, "-m", "tools.device.cli", *sockets)
            self._keep(Child(f"device {index}", command, first=True))
        for index in range(case.functions):
            self._wait_for_socket(self.socket(index))
            self._wait_for_socket(self._function(index))
        channels = [
            word
            for index in range(case.functions)
            for word in ("--device", f"vfio-user:{self._function(index)}", "--vf", case.vf(index))
        ]
        lcores = ",".join(map(str, self._places.lcores))
        run = (
            *(sys.executable, "-m", "pmd.cli", "run", "--bar", "2", "--json"),
            *("--lcores", lcores, "--burst", str(case.burst), "--poll", str(case.poll), *channels),
        )
        return [self._keep(Child("pmd run", run, first=True, environment=self._environment))]

    def _function(self, index: int) -> Path:
        return self._directory / f"{index}.vfio-user"

    def _ask(self, forwarding: Child) -> None:
        forwarding.signal(signal.SIGUSR1)

    def _read(self, answer: str) -> Counts | None:
        if not answer.endswith("\n"):
            return None
        channels = json.loads(answer)["channels"]
        found = {
            stage: sum((_counted(channel[way]) for channel in channels), Count(0, 0))
            for way, stage in _STAGES.items()
        }
        cycles = sum(count.cycles for count in found.values())
        # What goes from VM1 to VM1 is counted both ways, and is one packet.
        once = self.case.mode in (Mode.LOOP, Mode.PATCH)
        counted = [found["enqueue"]] if once else found.values()
        return {ALL: Count(sum(count.packets for count in counted), cycles), **found}


def _counted(way: dict[str, Any]) -> Count:
    return Count(way["packets"], way["cycles"])
