"""SIGINT, SIGTERM and SIGHUP of a run: the first ends it, the second forces the end."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Until `serve`, a signal raises SystemExit; from then on it makes `fileno` readable.

    A second signal ends the process at once; the kernel then takes back descriptors, mappings and
    child processes (PR_SET_PDEATHSIG). Either way the exit status is 128 + the signal's number. A
    signal that was ignored before (nohup) stays ignored.

    Thread rule: the main thread.
    """

    def __init__(self) -> None:
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

    def serve(self) -> None:
        """From now on the owner looks at `fileno` and `received`."""
        self._serving = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._received:
            os._exit(128 + number)
        self._received = number
        if not self._serving:
            raise SystemExit(128 + number)

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
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
