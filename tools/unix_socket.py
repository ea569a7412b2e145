"""Listening unix sockets at paths that the user named."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import UsageError, VhostPciError, errno_text
from guest.vfio_user_abi import SOCKET_PATH_MAX

if TYPE_CHECKING:
    from pathlib import Path

BACKLOG = 8


class UnixListener(Closing):
    """A stream socket listening at path, unlinked by `close`. A stale one is replaced.

    Its mode is what the process's umask leaves of 0777.

    Raises:
        UsageError: Not a path that a socket can have.
        VhostPciError: Something else is there, or a process listens there, or the system refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not 0 < len(os.fsencode(path)) <= SOCKET_PATH_MAX:
            cause = f"it is longer than the {SOCKET_PATH_MAX} bytes of a socket's path"
            raise UsageError("listen at", str(path), cause, "choose a shorter one")
        self._replace_stale()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind(os.fspath(path))
            self._identity = _identity(path)
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.socket.close()
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> VhostPciError:
        return VhostPciError("listen at", str(self.path), errno_text(error))

    def _replace_stale(self) -> None:
        """Unlink a socket at which no process listens; leave everything else alone."""
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refused(error) from error
        if not stat.S_ISSOCK(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "a file that is no socket"
            raise VhostPciError("listen at", str(self.path), f"it is {kind}", "choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(self.path))
            except ConnectionRefusedError:
                pass
            except BlockingIOError:  # its backlog is full: somebody is there
                raise self._in_use() from None
            except OSError as error:
                raise self._refused(error) from error
            else:
                raise self._in_use()
        try:
            self.path.unlink()
        except OSError as error:
            raise self._refused(error) from error

    def _in_use(self) -> VhostPciError:
        cause = "in use: another process listens there"
        return VhostPciError("listen at", str(self.path), cause, "stop it or choose another path")

    def close(self) -> None:
        """Stop listening, and unlink the path if it still is ours. Twice is fine."""
        self.socket.close()
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return (status.st_dev, status.st_ino)
