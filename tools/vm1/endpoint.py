"""Reaching the back-end's socket: connecting to it, or listening for it."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text
from tools.unix_socket import UnixListener

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.vm1.options import Socket

_LOOK_S = 0.05
_COMING = {errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN}


class Endpoint(Closing):
    """Gives connections to the back-end, one after another. Owns the listening socket, if any.

    Args:
        where: The path, and who listens.
        stopped: Ends every wait when it returns true.

    Raises:
        VhostPciError, UsageError: As UnixListener does.
    """

    def __init__(self, where: Socket, stopped: Callable[[], bool]) -> None:
        self._where = where
        self._stopped = stopped
        self._listener = self._listen() if where.listen else None

    def _listen(self) -> UnixListener:
        listener = UnixListener(self._where.path)
        listener.socket.settimeout(_LOOK_S)
        return listener

    def connection(self, timeout_s: float | None) -> socket.socket | None:
        """The next connection, blocking, which the caller owns; None when told to stop.

        timeout_s None waits for ever. A listener waits for ever in any case.

        Raises:
            VhostPciError: Nobody listens at the path, or it is no such socket.
        """
        if self._listener is not None:
            return self._accept(self._listener.socket)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._stopped():
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                peer.connect(str(self._where.path))
            except OSError as error:
                peer.close()
                late = deadline is not None and time.monotonic() >= deadline
                if late or error.errno not in _COMING or self._is_no_socket():
                    raise self._refused(error) from error
                time.sleep(_LOOK_S)
            else:
                return peer
        return None

    def _is_no_socket(self) -> bool:
        return self._where.path.exists() and not self._where.path.is_socket()

    def _refused(self, error: OSError) -> VhostPciError:
        path = str(self._where.path)
        if self._is_no_socket():
            remedy = "give the path that the back-end was started with"
            return VhostPciError("connect to", path, "this is not a socket", remedy)
        remedy = "start the back-end first, or give PATH,listen"
        return VhostPciError("connect to", path, errno_text(error), remedy)

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        while not self._stopped():
            with contextlib.suppress(TimeoutError):
                return listener.accept()[0]
        return None

    def close(self) -> None:
        """Stop listening and remove the path. Twice is fine."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
