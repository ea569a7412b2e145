"""What `pmd doctor` found: one finding a line."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class Level(enum.Enum):
    """How bad: a problem keeps pmd from running, a warning makes it slow or fragile."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; the remedy is empty where it is ok."""

    level: Level
    what: str
    found: str
    remedy: str = ""


def ok(what: str, found: str) -> Finding:
    """As it should be."""
    return Finding(Level.OK, what, found)


def warning(what: str, found: str, remedy: str) -> Finding:
    """Works, but not well."""
    return Finding(Level.WARNING, what, found, remedy)


def problem(what: str, found: str, remedy: str) -> Finding:
    """Does not work."""
    return Finding(Level.PROBLEM, what, found, remedy)


def has_problem(findings: Sequence[Finding]) -> bool:
    """Whether any of them is a problem."""
    return any(finding.level is Level.PROBLEM for finding in findings)


def lines(findings: Sequence[Finding]) -> str:
    """One line each: level, what, what was found; and the remedy where it is not ok."""
    width = max(len(finding.what) for finding in findings)
    return "\n".join(
        f"{each.level.value:8} {each.what:{width}}  {each.found}"
        + (f"; remedy: {each.remedy}" if each.remedy else "")
        for each in findings
    )


def json_object(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same as a JSON object; `ok` is false where the exit status is 1."""
    return {
        "ok": not has_problem(findings),
        "findings": [
            {
                "level": each.level.value,
                "what": each.what,
                "found": each.found,
                "remedy": each.remedy,
            }
            for each in findings
        ],
    }
