"""Holds for every test: what it opened is closed, and what it started has ended."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def _descriptors() -> dict[str, str]:
    """This process's open descriptors and what they are, the listing's own one left out."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:
            continue
    return found


def _children() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """Fails what leaves a descriptor open or a child process behind."""
    descriptors, children = _descriptors(), _children()
    yield
    gc.collect()
    left = {fd: what for fd, what in _descriptors().items() if descriptors.get(fd) != what}
    assert left == {}, f"descriptors left open: {left}"
    orphans = _children() - children
    assert orphans == set(), f"child processes left behind: {orphans} (of {os.getpid()})"


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Every test by itself."""
    with no_leaks():
        yield


@pytest.fixture
def seed() -> int:
    """Of what a test draws: another with each run, or what TEST_SEED says. A failure shows it."""
    given = os.environ.get("TEST_SEED")
    chosen = int(given) if given else random.SystemRandom().randrange(1 << 32)
    print(f"TEST_SEED={chosen}")
    return chosen
