"""The project's three programs as child processes, run as a user would."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest.closing import Closing
from tests.system.network import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0

_IDLE = re.compile(r"0\.000 Mpps 0\.000 Gbit/s")
_SENT_DROPS = re.compile(r"VM1->VF .*? (\d+) drops, VF->VM1")
_SUMMARY = re.compile(
    r"(?:VM1 -> VF|VF -> VM1): (\d+) packets, (\d+) bytes,.* \d+ dropped((?:\n +dropped \w+: \d+)*)"
)
_REASON = re.compile(r"dropped (\w+): (\d+)")


class Program(Closing):
    """A child process whose output is kept; a context manager that ends it, however it goes.

    Args:
        module: `tools.device.cli` and the like, run by this Python.
        arguments: Its command line.
        namespace: The network namespace to run in; empty: ours.
        environment: What it has beside our own.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        namespace: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        try:
            self._process = subprocess.Popen(
                [*inside(namespace), sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **(environment or {})},
            )
        except OSError:
            self._errors.close()
            raise
        self._output = b""

    @property
    def errors(self) -> str:
        """What it wrote to stderr so far."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def _explain(self, what: str) -> str:
        said = self._output.decode(errors="replace")[-1000:]
        return f"{self.name} {what}; it said: {said!r} and {self.errors[-2000:]!r}"

    def require_running(self) -> None:
        """RuntimeError, with what it said, if it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(self._explain(f"ended with {self._process.returncode}"))

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def line(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """The next line it prints, without its end."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._output:
            left_s = max(deadline - time.monotonic(), 0)
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                raise TimeoutError(self._explain(f"was silent for {timeout_s} s"))
            piece = self._process.stdout.read1()  # type: ignore[attr-defined]
            if not piece:
                raise RuntimeError(self._explain("closed its output"))
            self._output += piece
        line, _, self._output = self._output.partition(b"\n")
        return str(line.decode())

    def forget_lines(self, seconds: float = 0.0) -> None:
        """Reads on for so long, and drops every whole line printed until then."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
            piece = self._process.stdout.read1()  # type: ignore[attr-defined]
            if not piece:
                raise RuntimeError(self._explain("closed its output"))
            self._output = (self._output + piece).rpartition(b"\n")[2]

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> str:
        """Its remaining output, once it has ended with status 0."""
        try:
            rest, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(self._explain(f"still ran after {timeout_s} s")) from error
        self._output += rest
        if self._process.returncode != 0:
            raise RuntimeError(self._explain(f"ended with {self._process.returncode}"))
        return self._output.decode()

    @property
    def pid(self) -> int:
        """Of the process, or of what put it into its namespace."""
        return self._process.pid

    def end(self) -> str:
        """Asks it to end as a service manager would, and returns its remaining output."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """Ends it by force if it still runs. Twice is fine."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()


class Device(Program):
    """`vhost-pci-device` with both its sockets in a directory."""

    def __init__(self, directory: Path, name: str = "device") -> None:
        self.vhost_user = directory / f"{name}.vhost-user"
        self.vfio_user = directory / f"{name}.vfio-user"
        sockets = ["--vhost-user", str(self.vhost_user), "--vfio-user", str(self.vfio_user)]
        super().__init__("tools.device.cli", sockets)
        try:
            self._wait_for_sockets()
        except BaseException:
            self.close()
            raise

    def _wait_for_sockets(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self.vhost_user.exists() and self.vfio_user.exists()):
            self.require_running()
            if time.monotonic() > deadline:
                raise TimeoutError(self._explain("made no sockets"))
            time.sleep(0.02)

    @property
    def function(self) -> str:
        """The name that `pmd run --device` takes."""
        return f"vfio-user:{self.vfio_user}"


@dataclass(frozen=True, slots=True)
class Moved:
    """One direction in the summary of `pmd run`."""

    packets: int
    bytes: int
    drops: dict[str, int]

    @property
    def dropped(self) -> int:
        return sum(self.drops.values())


@dataclass(frozen=True, slots=True)
class Summary:
    """One channel in the summary of `pmd run`."""

    vm1_to_vf: Moved
    vf_to_vm1: Moved


class Pmd(Program):
    """`pmd run` on one CPU, until it is ended. Its lines tell when nothing moves any more."""

    def __init__(
        self,
        channels: Sequence[tuple[str, str]],
        *options: str,
        cpu: int = 1,
        namespace: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        arguments = ["run", "--bar", "2", "--lcores", str(cpu), "--stats-period", "0.1", *options]
        for device, vf in channels:
            arguments += ["--device", device, "--vf", vf]
        self._channel_count = len(channels)
        super().__init__("pmd.cli", arguments, namespace, environment)

    def wait_until_forwarding(self) -> None:
        """Returns once every channel has VM1's rings."""
        states: list[str] = [""]
        while set(states) != {"forwarding"}:
            states = [line.rpartition(", ")[2] for line in self._lines_of_a_period()]

    def drops_within(self, seconds: float) -> list[int]:
        """What its only channel drops of VM1's frames, by period, for so long from now on."""
        deadline = time.monotonic() + seconds
        found = []
        while time.monotonic() < deadline:
            (count,) = _SENT_DROPS.findall(self.line())
            found.append(int(count))
        return found

    def wait_until(self, tells: Callable[[str], bool]) -> None:
        """Returns once it has printed, from now on, a line that tells so."""
        self.forget_lines()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not tells(self.line()):
            if time.monotonic() > deadline:
                raise TimeoutError(self._explain("did not come to it"))

    def wait_until_quiet(self, quiet_periods: int = 5) -> None:
        """Returns once so many periods of 100 ms went by, from now on, in which no frame moved."""
        self.forget_lines()
        self._lines_of_a_period()  # it may have begun before
        periods = 0
        while periods < quiet_periods:
            moving = [line for line in self._lines_of_a_period() if len(_IDLE.findall(line)) != 2]
            periods = 0 if moving else periods + 1

    def _lines_of_a_period(self) -> list[str]:
        return [self.line() for _ in range(self._channel_count)]

    def summaries(self) -> list[Summary]:
        """Ends it, and returns what each channel did, in the order of the command line."""
        text = self.end()
        moved = [
            Moved(
                int(packets),
                int(size),
                {reason: int(count) for reason, count in _REASON.findall(drops)},
            )
            for packets, size, drops in _SUMMARY.findall(text)
        ]
        assert len(moved) == 2 * self._channel_count, text
        return [Summary(*moved[i : i + 2]) for i in range(0, len(moved), 2)]

    def summary(self) -> Summary:
        """summaries() of the only channel."""
        (only,) = self.summaries()
        return only


class Vm1(Program):
    """`vhost-pci-vm1` on the CPU that `pmd` leaves it."""

    def __init__(self, mode: str, back_end: Path, *options: str, namespace: str = "") -> None:
        arguments = [mode, "--vhost-user", str(back_end), "--cpu", "0", "--json", *options]
        super().__init__("tools.vm1.cli", arguments, namespace)

    def result(self, timeout_s: float = END_TIMEOUT_S) -> dict[str, Any]:
        """Its JSON object, once it has ended by itself and found nothing wrong."""
        found: dict[str, Any] = json.loads(self.wait(timeout_s))
        return found
