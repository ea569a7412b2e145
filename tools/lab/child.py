"""Processes of this machine that the lab starts: they end with us, whatever ends us."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text
from tools.lab.commands import require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_GRACE_S = 10.0


class Child(Closing):
    """A child process; its output goes to a file. A context manager that ends it.

    It dies with the thread that started it (prctl PR_SET_PDEATHSIG, set by setpriv).

    Args:
        name: For messages.
        command: Its words.
        environment: All of its environment.
        log: Where its output goes, from the start of the file.
        descriptors: What it inherits besides, under the same numbers.

    Raises:
        VhostPciError: It cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        descriptors: Sequence[int] = (),
    ) -> None:
        require("setpriv")
        self.name = name
        self.log = log
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=dict(environment),
                    pass_fds=tuple(descriptors),
                    start_new_session=True,
                )
        except OSError as error:
            raise VhostPciError("start", name, errno_text(error)) from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def require_running(self) -> None:
        """VhostPciError, with the last it said, if it has ended."""
        if not self.running:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            said = lines[-1] if lines else f"see {self.log}"
            status = self._process.returncode
            raise VhostPciError("keep up", self.name, f"it ended with status {status}: {said}")

    def wait(self, timeout_s: float) -> None:
        """Return once it has ended by itself; VhostPciError if it does not in time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            cause = f"it still runs after {timeout_s:g} s"
            raise VhostPciError("wait for the end of", self.name, cause) from error

    def kill(self) -> None:
        """End it at once, as if it had crashed."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ask it to end, then make it. Twice is fine."""
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        if self.running:
            self.kill()
