"""Eventfds that came from another process, which keeps a descriptor and may misbehave."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ONE = (1).to_bytes(8, "little")


def is_eventfd(fd: int) -> bool:
    """Whether fd is an eventfd, by what /proc calls it."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventfd]"
    except OSError:
        return False


def signal_eventfd(fd: int) -> None:
    """Add one to the counter. A full counter stays full: its reader has not looked yet.

    O_NONBLOCK belongs to the open file, so the other side may have taken it away: it is set anew.
    """
    with contextlib.suppress(OSError):
        os.set_blocking(fd, False)
        os.write(fd, ONE)


def drain_eventfd(fd: int) -> bool:
    """Take the counter to zero without ever blocking; False if the descriptor is of no use."""
    try:
        return os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT) == len(ONE)
    except BlockingIOError:
        return True
    except OSError:
        return False
