"""The driver of a benchmark: an embedded VM1 whose rings are always full, or always stocked."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError
from pmd.bench_case import Direction, Ring
from pmd.child import Child

if TYPE_CHECKING:
    from pathlib import Path

    from pmd.bench_case import Case

_END_TIMEOUT_S = 20.0
_ASK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Vm1Place:
    """Where a VM1 runs.

    Attributes:
        cpu: Its own.
        peer_cpu: The forwarding CPU, to tell the placement by; None: it is not told.
        huge_pages: Whether its memory is of them.
    """

    cpu: int
    peer_cpu: int | None
    huge_pages: bool


class BenchVm1:
    """One `vhost-pci-vm1 replay`, a child process.

    Thread rule: one thread.

    Args:
        name: Of the back-end it drives, for messages.
        back_end: The vhost-user socket it connects to.
        control: A path for its control socket.
    """

    def __init__(
        self, name: str, case: Case, back_end: Path, control: Path, place: Vm1Place
    ) -> None:
        self._control = control
        self._case = case
        command = [
            *(sys.executable, "-m", "tools.vm1.cli", "replay", "--json"),
            *("--vhost-user", str(back_end), "--control", str(control)),
            *("--cpu", str(place.cpu), "--direction", str(case.direction)),
            *("--size", str(case.frame_bytes), "--queue-size", str(case.queue_size)),
        ]
        command += ["--huge-pages"] if place.huge_pages else []
        command += [] if place.peer_cpu is None else ["--peer-cpu", str(place.peer_cpu)]
        command += ["--packed"] if case.ring == Ring.PACKED else []
        self.child = Child(f"VM1 of {name}", command, first=True)

    def moved(self) -> int:
        """Frames that went over its rings so far; 0 while it cannot say."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_ASK_TIMEOUT_S)
                client.connect(str(self._control))
                text = b"".join(iter(lambda: client.recv(65536), b""))
            counters = json.loads(text)
        except (OSError, ValueError):
            return 0
        return min(
            (
                int(counters[name])
                for name, direction in (("sent", Direction.TX), ("received", Direction.RX))
                if self._case.direction in {direction, Direction.BOTH}
            ),
            default=0,
        )

    def result(self) -> dict[str, Any]:
        """End it; its JSON object.

        Raises:
            VhostPciError: It ended badly, or found the back-end to break the protocol.
        """
        text = self.child.end(_END_TIMEOUT_S)
        try:
            found = json.loads(text)
        except ValueError as error:
            raise VhostPciError("read", f"the result of {self.child.name}", str(error)) from error
        if not isinstance(found, dict):
            raise VhostPciError("read", f"the result of {self.child.name}", "it is no object")
        return found
