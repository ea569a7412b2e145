"""pmd, the device and VM1 as a user runs them: child processes, their output, what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.pmd.wait import DEADLINE_S, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent.parent
_MARK = "VHOST_PCI_TEST_MARK"


def marked(mark: str) -> list[int]:
    """The processes of this machine, zombies left out, that were started under mark."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def threads(pid: int) -> list[int]:
    """Those of a process that does not start or end any now."""
    return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]


def cpu_seconds(pid: int) -> float:
    """User and system time that a process used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Process:
    """A module of ours as a child process, in a directory for temporary files of its own.

    Leaving the context kills what still runs, and fails if any descendant was left behind.
    """

    def __init__(self, module: str, *arguments: str | Path) -> None:
        self.mark = uuid.uuid4().hex
        self._directory = tempfile.TemporaryDirectory(prefix="pmd-test-")
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self._error = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {_MARK: self.mark, "TMPDIR": self._directory.name},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._error,
        )

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def left_behind(self) -> list[str]:
        """What is in its directory for temporary files."""
        return sorted(entry.name for entry in Path(self._directory.name).iterdir())

    def stdout(self) -> str:
        """What it printed so far."""
        return os.pread(self._out.fileno(), 1 << 24, 0).decode()

    def stderr(self) -> str:
        """What it logged so far."""
        return os.pread(self._error.fileno(), 1 << 24, 0).decode()

    def json(self) -> dict[str, Any]:
        """Its stdout, which is one JSON object and nothing else."""
        loaded = json.loads(self.stdout())
        assert isinstance(loaded, dict)
        return loaded

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait(DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL; its children, if any, follow."""
        self._process.kill()
        self._process.wait()
        wait_for(lambda: not marked(self.mark), "the end of the killed process's children")

    def _wait_for(self, condition: Callable[[], object], what: str) -> None:
        """In a constructor: it ends if this never comes, for no context does that."""
        try:
            wait_for(condition, what)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            print(f"--- {self._process.args!r}: stderr\n{self.stderr()}--- stdout\n{self.stdout()}")
        ended = not self.running
        self._process.kill()
        self._process.wait()
        orphans = marked(self.mark)
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        self._out.close()
        self._error.close()
        self._directory.cleanup()
        assert not (ended and orphans), f"processes left behind: {orphans}"


def pmd(*arguments: str | Path) -> Process:
    """`pmd` with these arguments."""
    return Process("pmd.cli", *arguments)


class Device(Process):
    """`vhost-pci-device` listening at two sockets of directory."""

    def __init__(self, directory: Path, name: str = "device", *arguments: str) -> None:
        self.vhost_user = directory / f"{name}.vhost-user"
        self.vfio_user = directory / f"{name}.vfio-user"
        self._control = directory / f"{name}.control"
        super().__init__(
            "tools.device.cli",
            *("--vhost-user", self.vhost_user),
            *("--vfio-user", self.vfio_user),
            *("--control", self._control),
            *arguments,
        )
        sockets = (self.vhost_user, self.vfio_user, self._control)
        self._wait_for(lambda: all(path.is_socket() for path in sockets), "the device's sockets")

    @property
    def name(self) -> str:
        """As pmd's --device names it."""
        return f"vfio-user:{self.vfio_user}"

    def describe(self) -> dict[str, Any]:
        """What its control socket says."""
        return control(self._control)


def listens(path: Path) -> bool:
    """Whether somebody listens at the socket at path."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def control(path: Path) -> dict[str, Any]:
    """The JSON object that the control socket at path gives."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(path))
        text = b"".join(_received(client))
    loaded = json.loads(text)
    assert isinstance(loaded, dict)
    return loaded


def _received(client: socket.socket) -> Iterator[bytes]:
    while data := client.recv(65536):
        yield data


class Vm1(Process):
    """`vhost-pci-vm1` in a mode, with a control socket in directory."""

    def __init__(self, mode: str, device: Device, *arguments: str) -> None:
        self._control = device.vhost_user.with_name(uuid.uuid4().hex)
        super().__init__(
            "tools.vm1.cli",
            mode,
            *("--vhost-user", device.vhost_user),
            *("--control", self._control),
            "--json",
            *arguments,
        )
        ready = "VM1's control socket"
        self._wait_for(lambda: listens(self._control) or not self.running, ready)

    def counters(self) -> dict[str, Any]:
        """What its control socket says."""
        return control(self._control)

    def wait_for_traffic(self, frames: int = 10_000) -> None:
        """Until it received so many frames more, a sign that both directions work."""
        before = self.counters()["received"]
        wait_for(lambda: self.counters()["received"] >= before + frames, f"{frames} more frames")
