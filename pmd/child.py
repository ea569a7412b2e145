"""A child process that dies with this one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STOP_TIMEOUT_S = 3.0
_FIRST = -20  # nice(2): of all priorities the highest
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SAID_BYTES_MAX = 1 << 24
_LIBC = ctypes.CDLL(None)  # once: a turn of a benchmark asks many times for CPU time


class Child:
    """Started at once; what it writes is kept. Its stdin stays open.

    Thread rule: one thread, and the child dies when that one ends.

    Args:
        name: For messages.
        command: A program and its arguments.
        first: Let it run before all others, if this process may decide that (root).
        environment: Variables beside this process's own.

    Raises:
        VhostPciError: It cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        first: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        # Python calls functions around a fork, and what a signal's handler raises in one is lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

        def settle() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if first:
                _go_first()

        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._log,
                env=os.environ | dict(environment or {}),
                # A terminal's ^C is for us; we stop them in their order.
                start_new_session=True,
                # Safe: bring-up has one thread, and these few system calls take no lock.
                preexec_fn=settle,  # noqa: PLW1509
            )
        except OSError as error:
            self._close_files()
            raise VhostPciError("start", name, errno_text(error)) from error
        except BaseException:
            self._close_files()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def pid(self) -> int:
        """Its process's."""
        return self._process.pid

    @property
    def ran_s(self) -> float:
        """CPU time of all its threads so far; 0 where it has ended."""
        clock = ctypes.c_int()
        if _LIBC.clock_getcpuclockid(self.pid, ctypes.byref(clock)):
            return 0.0
        with contextlib.suppress(OSError):
            return time.clock_gettime(clock.value)
        return 0.0

    @property
    def output(self) -> str:
        """What it wrote to stdout so far."""
        return _text(self._output.fileno())

    @property
    def written(self) -> int:
        """How many bytes it wrote to stdout so far."""
        return os.fstat(self._output.fileno()).st_size

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. Nothing to do where it has ended."""
        self._process.send_signal(number)

    def say(self, line: str) -> None:
        """Write a line to its stdin; one that has ended, or closed it, does not hear it."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(line.encode() + b"\n")

    def output_from(self, begin: int) -> str:
        """What it wrote to stdout behind so many bytes."""
        return _text(self._output.fileno(), begin)

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return _text(self._log.fileno())

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def check(self) -> None:
        """VhostPciError, with the last line it wrote, if it has ended."""
        status = self._process.poll()
        if status is None:
            return
        said = [line for line in (self.log or self.output).split("\n") if line.strip()]
        cause = _end(status)
        raise VhostPciError("run", self.name, f"{cause}: {said[-1].strip()}" if said else cause)

    def pause(self) -> None:
        """Stop it where it is; it has stopped, or ended, when this returns. Twice is fine."""
        self._process.send_signal(signal.SIGSTOP)
        # It stays as it is for Popen: WNOWAIT.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on. Nothing to do where it has not stopped, or has ended."""
        self._process.send_signal(signal.SIGCONT)

    def ask_to_end(self) -> None:
        """As a service manager would: SIGTERM. Nothing to do where it has ended."""
        self._process.terminate()

    def end(self, timeout_s: float) -> str:
        """Ask it to end if it still runs; all it wrote to stdout.

        Raises:
            VhostPciError: It does not end in time, or not with status 0.
        """
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            cause = f"it still runs {timeout_s:g} s after SIGTERM"
            raise VhostPciError("end", self.name, cause) from error
        if self._process.returncode != 0:
            self.check()
        return self.output

    def close(self) -> None:
        """Terminate it, then kill it. Twice is fine."""
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._close_files()

    def _close_files(self) -> None:
        self._output.close()
        self._log.close()


def _go_first() -> None:
    """For this process and its threads to come. A session's processes share its priority as well.

    See sched(7), "The autogroup feature".
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST)
        Path("/proc/self/autogroup").write_text(str(_FIRST))


def _text(fd: int, begin: int = 0) -> str:
    """The file from begin on; the child shares its offset, so that is left alone."""
    return os.pread(fd, _SAID_BYTES_MAX, begin).decode("utf-8", "replace")


def _end(status: int) -> str:
    return f"it ended with status {status}" if status >= 0 else f"signal {-status} ended it"
