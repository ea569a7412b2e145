"""Holds for every test: what it opened is closed, what it started has ended, and CPUs are left."""

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


def pytest_collection_finish() -> None:
    """What is loaded now stays: the collection after a test looks only at what came since."""
    gc.collect()
    gc.freeze()


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
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread that was joined may still be on its way out.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update(int(pid) for pid in (task / "children").read_text().split())
    return found


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """Fails what leaves a descriptor open, a child process behind, or this process pinned."""
    descriptors, children = _descriptors(), _children()
    allowed = os.sched_getaffinity(0)
    yield
    assert os.sched_getaffinity(0) == allowed, "the process is left with other CPUs"
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
