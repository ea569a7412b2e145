"""The control socket: whoever connects gets the counters as one line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SEND_TIMEOUT_S = 1.0


class Control(Closing):
    """Answers at path, from a thread of its own, until closed. Owns the socket and its path.

    Args:
        path: Where to listen.
        snapshot: What to answer; called on the thread.

    Raises:
        VhostPciError: The path cannot be listened at.
    """

    def __init__(self, path: Path, snapshot: Callable[[], dict[str, Any]]) -> None:
        self._path = path
        self._snapshot = snapshot
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            self._listener.listen(8)
        except OSError as error:
            self._listener.close()
            raise VhostPciError("listen at", str(path), errno_text(error)) from error
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="control")
        self._thread.start()

    def _serve(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener.fileno(), self._stop], [], [])
            if self._stop in readable:
                return
            with contextlib.suppress(OSError):
                self._answer(self._listener.accept()[0])

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
        with contextlib.suppress(OSError):
            self._path.unlink()
