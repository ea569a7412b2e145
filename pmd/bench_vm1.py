"""The driver of a benchmark: an embedded VM1 whose rings are always full, or always stocked."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError
from pmd.bench_case import Direction, Ring
from pmd.bench_feature import Feature, vm1_words
from pmd.child import Child

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pmd.bench_case import Case

_END_TIMEOUT_S = 20.0
_ASK_TIMEOUT_S = 2.0
_MOVED_MIN = 1000  # frames: the rings work


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
    """One `vhost-pci-vm1`, a child process: a replay, or one that stocks its rings and waits.

    Thread rule: one thread.

    Args:
        name: Of the back-end it drives, for messages.
        back_ends: The vhost-user sockets it connects to: one, or one to transmit at and one to
            receive at.
        control: A path for its control socket.
        idle: Whether it is one that waits.
    """

    def __init__(
        self,
        name: str,
        case: Case,
        back_ends: Sequence[Path],
        control: Path,
        place: Vm1Place,
        *,
        idle: bool,
    ) -> None:
        self._control = control
        self._case = case
        self.idle = idle
        command = [
            *(sys.executable, "-m", "tools.vm1.cli", "idle" if idle else "replay", "--json"),
            *("--vhost-user", str(back_ends[0]), "--control", str(control)),
            *("--cpu", str(place.cpu), "--direction", str(case.direction)),
            *("--size", str(case.frame_bytes), "--queue-size", str(case.queue_size)),
            *("--touch", str(case.touch)),
        ]
        command += [word for each in back_ends[1:] for word in ("--second", str(each))]
        command += ["--huge-pages"] if place.huge_pages else []
        tagged = place.peer_cpu is not None and not idle
        command += ["--peer-cpu", str(place.peer_cpu)] if tagged else []
        packed = case.ring == Ring.PACKED and case.feature != Feature.PACKED
        command += ["--packed"] if packed else []
        if case.feature is not None:
            command += vm1_words(case.feature, without=case.without)
        self.child = Child(f"VM1 of {name}", command, first=True)

    def ready(self) -> bool:
        """Whether frames move on all its rings that are to carry some; else, whether it has any."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_ASK_TIMEOUT_S)
                client.connect(str(self._control))
                text = b"".join(iter(lambda: client.recv(65536), b""))
            counters = json.loads(text)
        except (OSError, ValueError):
            return False
        if self.idle:
            return bool(counters["connected"])
        wanted = [
            name
            for name, direction in (("sent", Direction.TX), ("received", Direction.RX))
            if self._case.direction in {direction, Direction.BOTH}
        ]
        return all(counters[name] >= _MOVED_MIN for name in wanted)

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
