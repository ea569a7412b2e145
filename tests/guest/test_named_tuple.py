"""Ours and typing's: the same declarations, and nobody can tell which is which."""

from __future__ import annotations

import copy
import pickle
import typing
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Ours(NamedTuple):
    index: int  # type: ignore[assignment] # and not tuple.index
    name: str
    parts: tuple[int, ...] = ()

    @property
    def both(self) -> str:
        return f"{self.index}{self.name}"


class Theirs(typing.NamedTuple):
    index: int  # type: ignore[assignment]
    name: str
    parts: tuple[int, ...] = ()

    @property
    def both(self) -> str:
        return f"{self.index}{self.name}"


Kind: TypeAlias = Any  # one of the two


def _matched(kind: Kind) -> object:
    match kind(1, "a"):
        case kind(index=1, name=name):
            return name
    return None


USES: dict[str, Callable[[Kind], object]] = {
    "in order": lambda kind: kind(1, "a", (2,)),
    "by name": lambda kind: kind(name="a", index=1),
    "mixed": lambda kind: kind(1, name="a").both,
    "text": lambda kind: repr(kind(1, "a")).partition("(")[2],
    "replaced": lambda kind: kind(1, "a")._replace(index=7),
    "as a dict": lambda kind: kind(1, "a")._asdict(),
    "its fields": lambda kind: (kind._fields, kind.__match_args__, kind.__slots__),
    "hashed": lambda kind: hash(kind(1, "a")),
    "copied": lambda kind: copy.deepcopy(kind(1, "a")),
    "pickled": lambda kind: pickle.loads(pickle.dumps(kind(1, "a"))).both,  # noqa: S301 - ours
    "unpacked": lambda kind: [*kind(1, "a")],
    "matched": _matched,
    "too few": lambda kind: kind(1),
    "too many": lambda kind: kind(1, "a", (), 3),
    "twice": lambda kind: kind(1, "a", index=2),
    "no such field": lambda kind: kind(1, "a", other=2),
    "set": lambda kind: setattr(kind(1, "a"), "index", 2),
    "added": lambda kind: setattr(kind(1, "a"), "other", 2),
}


def _outcome(use: Callable[[Kind], object], kind: Kind) -> object:
    try:
        return use(kind)
    except (TypeError, AttributeError) as error:
        return type(error)


@pytest.mark.parametrize("name", USES)
def test_alike(name: str) -> None:
    assert _outcome(USES[name], Ours) == _outcome(USES[name], Theirs)
