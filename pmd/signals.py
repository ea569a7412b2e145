"""SIGINT, SIGTERM, SIGHUP of a run: the first ends it, the second forces the end. SIGUSR1 asks."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DRAIN_BYTES = 4096  # a byte a signal


class Signals:
    """Until `serve`, a signal raises SystemExit; from then on it makes `fileno` readable.

    A second signal ends the process at once; the kernel then takes back descriptors, mappings and
    child processes (PR_SET_PDEATHSIG). Either way the exit status is 128 + the signal's number. A
    signal that was ignored before (nohup) stays ignored.

    Thread rule: the main thread.

    Args:
        asks: Whether SIGUSR1 is a question (`asked`); else it does what it did before.
    """

    def __init__(self, *, asks: bool = False) -> None:
        self._signals = (*_SIGNALS, signal.SIGUSR1) if asks else _SIGNALS
        self._asked = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._serving = False
        self._received = 0
        self._former: dict[signal.Signals, Any] = {}

    @property
    def received(self) -> bool:
        """Whether the run has been told to end."""
        return self._received != 0

    @property
    def exit_status(self) -> int:
        """What to end with once `received`."""
        return 128 + self._received

    def fileno(self) -> int:
        """Readable after a signal."""
        return self._reader

    def asked(self) -> bool:
        """Whether SIGUSR1 came since this was called last; `fileno` is quiet again then."""
        # In this order: one that comes in between is answered, and wakes the owner once in vain.
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, _DRAIN_BYTES)
        asked, self._asked = self._asked, False
        return asked

    def serve(self) -> None:
        """From now on the owner looks at `fileno` and `received`."""
        self._serving = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._asked = True
            return
        if self._received:
            os._exit(128 + number)
        self._received = number
        if not self._serving:
            raise SystemExit(128 + number)

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._signals:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)
