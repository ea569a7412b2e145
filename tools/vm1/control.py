"""The control socket: whoever connects gets the counters as one line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
from typing import TYPE_CHECKING, Any

from guest.closing import Closing
from tools.unix_socket import UnixListener

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

_SEND_TIMEOUT_S = 1.0


class Control(Closing):
    """Answers at path, from a thread of its own, until closed. Owns the socket and its path.

    Args:
        path: Where to listen.
        snapshot: What to answer; called on the thread.

    Raises:
        VhostPciError, UsageError: As UnixListener does.
    """

    def __init__(self, path: Path, snapshot: Callable[[], dict[str, Any]]) -> None:
        self._snapshot = snapshot
        self._listener = UnixListener(path)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="control")
        self._thread.start()

    def _serve(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener.socket.fileno(), self._stop], [], [])
            if self._stop in readable:
                return
            with contextlib.suppress(OSError):
                self._answer(self._listener.socket.accept()[0])

    def _answer(self, peer: socket.socket) -> None:
        with peer:
            peer.settimeout(_SEND_TIMEOUT_S)
            peer.sendall(json.dumps(self._snapshot()).encode() + b"\n")

    def close(self) -> None:
        """Stop answering and remove the path. Twice is fine."""
        if self._stop < 0:
            return
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)
        self._stop = -1
        self._listener.close()
