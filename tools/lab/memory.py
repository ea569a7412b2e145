"""A machine's memory: a file that exists in memory only, as vhost-user has to share it."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    from pathlib import Path

_PIECE = 1 << 18
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL  # as QEMU's own have


class Memory(Closing):
    """One memfd of a fixed size; a context manager that closes it. Others may hold it longer.

    Args:
        name: The machine's, for messages.
        size_bytes: Zero at first.
    """

    def __init__(self, name: str, size_bytes: int) -> None:
        self._name = name
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size_bytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def load(self, path: Path) -> None:
        """Fill it from a file that `save` made of a memory of this size.

        Raises:
            VhostPciError: The file cannot be read.
        """
        try:
            with path.open("rb") as file:
                for begin, end in _filled(file.fileno()):
                    os.lseek(self.fd, begin, os.SEEK_SET)
                    at = begin
                    while at < end:
                        at += os.sendfile(self.fd, file.fileno(), at, end - at)
        except OSError as error:
            raise VhostPciError("restore", f"memory of {self._name}", errno_text(error)) from error

    def save(self, path: Path) -> None:
        """Write it to a file; what is zero takes no room there.

        Raises:
            VhostPciError: The file cannot be written.
        """
        zeros = bytes(_PIECE)
        try:
            with path.open("wb") as file:
                for at in range(0, os.fstat(self.fd).st_size, _PIECE):
                    piece = os.pread(self.fd, _PIECE, at)
                    if piece != zeros[: len(piece)]:
                        os.pwrite(file.fileno(), piece, at)
        except OSError as error:
            raise VhostPciError("save", f"memory of {self._name}", errno_text(error)) from error

    def close(self) -> None:
        """Twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _filled(fd: int) -> list[tuple[int, int]]:
    """The pieces of a file that are no holes: begin and end."""
    pieces = []
    end = 0
    try:
        while True:
            begin = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, begin, os.SEEK_HOLE)
            pieces.append((begin, end))
    except OSError as error:
        if error.errno != errno.ENXIO:  # no more data, lseek(2)
            raise
    return pieces
