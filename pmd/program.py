"""How the programs begin and end: open streams, one line of what failed, an exit status."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, NoReturn, TextIO, cast

from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Callable

_INTERRUPTED = 130  # as a shell says of SIGINT


def run(name: str, perform: Callable[[list[str]], int]) -> NoReturn:
    """Perform this process's command line, and exit with its status.

    A reader of stdout that leaves, as `head` does, is no failure.

    Args:
        name: The program's, which its lines on stderr begin with.
        perform: Called with the command line's words; gives the exit status.
    """
    _open_streams()
    sys.exit(_status(name, perform))


def _status(name: str, perform: Callable[[list[str]], int]) -> int:
    try:
        status = perform(sys.argv[1:])
        sys.stdout.flush()
    except VhostPciError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except OSError as error:
        _forget_stdout()
        remedy = "; raise ulimit -n" if error.errno == errno.EMFILE else ""
        print(f"{name}: cannot go on: {errno_text(error)}{remedy}", file=sys.stderr)
        return VhostPciError.exit_status
    return status


def _open_streams() -> None:
    """Open /dev/null as each standard stream that was closed, before a file of ours is.

    Python has None for such a stream, and prints to stdout what is for stderr.
    """
    if sys.stdin is not None and sys.stdout is not None and sys.stderr is not None:
        return
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    sys.stdin = sys.stdin or _stream(0, "r")
    sys.stdout = sys.stdout or _stream(1, "w")
    sys.stderr = sys.stderr or _stream(2, "w")


def _stream(fd: int, mode: str) -> TextIO:
    return cast("TextIO", os.fdopen(fd, mode, encoding="utf-8"))


def _forget_stdout() -> None:
    """What could not be written stays unwritten: at exit Python would try once more."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
