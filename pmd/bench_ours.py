"""Our side of a benchmark: devices, `pmd run` on the forwarding CPUs, and VM1s, as processes."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from pmd.bench_case import Mode
from pmd.bench_side import Side
from pmd.child import Child

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pmd.bench_case import Case
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

    def _cycles(self, output: str) -> float | None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            channels = json.loads(output)["channels"]
            ways = [channel[way] for channel in channels for way in _STAGES]
            for way, stage in _STAGES.items():
                self._tell(stage, [channel[way] for channel in channels])
            cycles = sum(way["packets"] * way["cycles_per_packet"] for way in ways)
            # What goes from VM1 to VM1 is counted both ways, and is one packet.
            once = self.case.mode in (Mode.LOOP, Mode.PATCH)
            packets = sum(way["packets"] for way in (ways[1::2] if once else ways))
            return cycles / packets if packets else None
        return None

    def _tell(self, stage: str, counted: Sequence[Mapping[str, float]]) -> None:
        """What the kernel counted of a stage, all channels together, unless nothing came to it."""
        packets = sum(each["packets"] for each in counted)
        if packets:
            cycles = sum(each["packets"] * each["cycles_per_packet"] for each in counted)
            self.stages[stage] = cycles / packets
