"""`pmd run`: its flags as far as they are plain, and what it prints at the end."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmd.config import options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CONFIG = "config"
_WORDS = ("lcores", "window-map", "poll", "copy", CONFIG)
_INTEGERS = ("bar", "burst", "coalesce-us")
_SECONDS = ("duration", "stats-period")
_REPEATED = ("device", "vf")
_SWITCHES = ("json",)
_SHORT = {"-l": "--lcores"}
_INTEGER = re.compile(r"0|[1-9][0-9]{0,8}")
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?")


class _NotPlainError(Exception):
    """The command line's library has to look at these words."""


def plain_flags(words: Sequence[str]) -> dict[str, Any] | None:
    """The flags of `pmd run`, by key, where its words are plain; None where they are not.

    Plain is `--key value` or `--key=value`, each key in full and no more often than it may come, no
    value that a reader could take for a flag, numbers in digits. All else, mistakes and calls for
    help too, is for pmd/commands.py, which reads plain words alike.
    """
    found: dict[str, Any] = {}
    rest = iter(words)
    try:
        for word in rest:
            _take(word, rest, found)
    except _NotPlainError:
        return None
    return found


def _take(word: str, rest: Iterator[str], found: dict[str, Any]) -> None:
    flag, equals, value = word.partition("=")
    key = _SHORT.get(flag, flag).removeprefix("--")
    if flag not in _SHORT and flag != f"--{key}":
        raise _NotPlainError
    if key in found and key not in _REPEATED:
        raise _NotPlainError
    if key in _SWITCHES and not equals:
        found[key] = True
        return
    if not equals:
        value = next(rest, "")
    if not value or value.startswith("-"):
        raise _NotPlainError
    if key in _REPEATED:
        found.setdefault(key, []).append(value)
    elif key in _WORDS:
        found[key] = value
    elif key in _INTEGERS and _INTEGER.fullmatch(value):
        found[key] = int(value)
    elif key in _SECONDS and _NUMBER.fullmatch(value):
        found[key] = float(value)
    else:
        raise _NotPlainError


def run_command(flags: Mapping[str, Any]) -> None:
    """Run, and print the statistics at the end.

    Args:
        flags: What the user gave, by key; `config` is the path of a file.

    Raises:
        VhostPciError: As of `pmd.run.run`.
    """
    path = flags.get(CONFIG)
    wanted = options(
        {key: value for key, value in flags.items() if key != CONFIG},
        None if path is None else Path(path),
    )
    # What is imported stays: looking through it for garbage is a twentieth of the start.
    gc.disable()
    try:
        from pmd import report  # noqa: PLC0415 - these load the kernel: once the options are right
        from pmd.run import run  # noqa: PLC0415
    finally:
        gc.enable()
    view = report.view(json=wanted.json)
    first, last = run(wanted, view)
    view.tell(first, last)
