"""Our side of a benchmark: devices, `pmd run` on the forwarding CPUs, and VM1s, as processes."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from pmd.bench_side import Side
from pmd.child import Child

if TYPE_CHECKING:
    from pathlib import Path

    from pmd.bench_case import Case
    from pmd.bench_side import Places, Waiter

NAME = "pmd"


class Ours(Side):
    """As a user runs them, each in a process of its own."""

    def __init__(self, case: Case, directory: Path, places: Places, waiter: Waiter) -> None:
        super().__init__(NAME, case, directory, places, waiter)

    def _start_back_end(self) -> list[Child]:
        case = self._case
        for index in range(self._functions):
            sockets = (
                *("--vhost-user", str(self.socket(index))),
                *("--vfio-user", str(self._function(index))),
            )
            command = (sys.executable, "-m", "tools.device.cli", *sockets)
            self._keep(Child(f"device {index}", command, first=True))
        for index in range(self._functions):
            self._wait_for_socket(self.socket(index))
            self._wait_for_socket(self._function(index))
        channels = [
            word
            for index in range(self._functions)
            for word in ("--device", f"vfio-user:{self._function(index)}", "--vf", self._vf(index))
        ]
        lcores = ",".join(map(str, self._places.lcores))
        run = (
            *(sys.executable, "-m", "pmd.cli", "run", "--bar", "2", "--json"),
            *("--lcores", lcores, "--burst", str(case.burst), *channels),
        )
        return [self._keep(Child("pmd run", run, first=True))]

    def _function(self, index: int) -> Path:
        return self._directory / f"{index}.vfio-user"

    def _cycles(self, output: str) -> float | None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            channels = json.loads(output)["channels"]
            moved = [
                (channel[way]["packets"], channel[way]["cycles_per_packet"])
                for channel in channels
                for way in ("vm1_to_vf", "vf_to_vm1")
            ]
            packets = sum(count for count, _ in moved)
            return sum(count * cycles for count, cycles in moved) / packets if packets else None
        return None
