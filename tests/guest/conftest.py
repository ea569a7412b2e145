"""What every test of guest/ is held to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_fds() -> dict[str, str]:
    """This process's descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - Path.iterdir holds one open itself
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - may be gone
        except FileNotFoundError:
            continue
    return found


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Whatever a test does, refused or not, afterwards no descriptor is left."""
    before = open_fds()
    yield
    after = open_fds()
    assert after == before
