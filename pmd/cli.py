"""`pmd`: the door. stdout holds data, stderr logs and errors, one line each.

A `run` whose words are plain is begun at once; whatever else comes is for pmd/commands.py, whose
library takes longer to import than a function to attach to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from guest.errors import VhostPciError, errno_text
from pmd.run_command import plain_flags, run_command


class _StandardError(logging.Handler):
    """Logs to whatever sys.stderr is now: the live table puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # nobody reads the log; forwarding goes on
            print(self.format(record), file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of `pmd`: runs the command and exits with its status."""
    logger = logging.getLogger("pmd")
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("pmd: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        sys.exit(_status(sys.argv[1:]))
    finally:
        logger.removeHandler(handler)


def _status(arguments: list[str]) -> int:
    try:
        status = _perform(arguments)
        sys.stdout.flush()
    except VhostPciError as error:
        print(f"pmd: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except OSError as error:
        _forget_stdout()
        print(f"pmd: cannot go on: {errno_text(error)}", file=sys.stderr)
        return VhostPciError.exit_status
    return status


def _perform(arguments: list[str]) -> int:
    flags = plain_flags(arguments[1:]) if arguments[:1] == ["run"] else None
    if flags is not None:
        run_command(flags)
        return 0
    from pmd.commands import perform  # noqa: PLC0415 - see above

    return perform(arguments)


def _forget_stdout() -> None:
    """What could not be written stays unwritten: at exit Python would try once more."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


if __name__ == "__main__":
    main()
