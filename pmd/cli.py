"""`pmd`: the door. stdout holds data, stderr logs and errors, one line each.

A `run` whose words are plain is begun at once, and so is `list`; whatever else comes is for
pmd/commands.py, whose library takes longer to import than a function to attach to.
"""

from __future__ import annotations

import contextlib
import logging
import sys

from pmd import program
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
        program.run("pmd", _perform)
    finally:
        logger.removeHandler(handler)


def _perform(arguments: list[str]) -> int:
    flags = plain_flags(arguments[1:]) if arguments[:1] == ["run"] else None
    if flags is not None:
        run_command(flags)
        return 0
    if arguments in (["list"], ["list", "--json"]):
        from pmd.listing import show  # noqa: PLC0415 - `run` does without

        show(json=len(arguments) > 1)
        return 0
    from pmd.commands import perform  # noqa: PLC0415 - see above

    return perform(arguments)


if __name__ == "__main__":
    main()
