"""`vhost-pci-device` as a process, as its user starts it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.device.device_host import TIMEOUT_S, wait_until

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str | Path) -> list[str]:
    """The command line with these arguments."""
    return [sys.executable, "-m", "tools.device.cli", *(str(argument) for argument in arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it to an end that comes by itself."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


class DeviceProcess:
    """Runs with its sockets in folder while the context is open; then it is ended by SIGTERM.

    lines: what it said on stderr, complete after the end.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.vhost_user = folder / "vhost-user"
        self.vfio_user = folder / "vfio-user"
        self.control = folder / "control"
        self.log = folder / "stderr"
        self.arguments = arguments
        self.lines: list[str] = []
        self.status: int | None = None

    def state(self) -> dict[str, Any]:
        """What the control socket says."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(str(self.control))
            data = b""
            while more := client.recv(65536):
                data += more
        assert data.endswith(b"\n")
        found = json.loads(data)
        assert isinstance(found, dict)
        return found

    def said(self, line: str) -> bool:
        """Whether this is among the lines on stderr so far."""
        return line in self.log.read_text().splitlines()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by a signal and take its last words."""
        if self.status is None:
            self.process.send_signal(number)
            try:
                self.status = self.process.wait(TIMEOUT_S)
            finally:
                if self.status is None:
                    self.process.kill()
                    self.process.wait()
        self.lines = self.log.read_text().splitlines()

    def __enter__(self) -> Self:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(
                    "--vhost-user", self.vhost_user, "--vfio-user", self.vfio_user,
                    "--control", self.control, *self.arguments,
                ),
                cwd=ROOT,
                stderr=log,
            )  # fmt: skip
        try:
            wait_until(lambda: self.said(f"control: listening at {self.control}"))
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
