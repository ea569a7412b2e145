"""Command lines read by cyclopts: words that are none, and `--version`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cyclopts import CycloptsError

from guest.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cyclopts import App

_DISTRIBUTION = "vhost-pci-toolkit"


def perform(app: App, words: Iterable[str]) -> int:
    """Run what these words ask for; its exit status, 2 after one line if they ask for nothing.

    Raises:
        VhostPciError: As the command says.
    """
    try:
        status = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        name = app.name[0]
        help_words = " ".join((name, *(error.command_chain or ()), "--help"))
        print(f"{name}: {_line(error)}; see {help_words}", file=sys.stderr)
        return UsageError.exit_status
    return status if isinstance(status, int) else 0


def _line(error: CycloptsError) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text[:1].lower() + text[1:]


def version(name: str) -> str:
    """What `--version` says of the program called name."""
    import importlib.metadata  # noqa: PLC0415 - as slow as numpy, and asked for here alone

    try:
        return f"{name} {importlib.metadata.version(_DISTRIBUTION)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name}, not installed"
