"""What every test of guest/ is held to."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from guest.vfio_user import VfioUserFunction
from tests.guest.vfio_user_server import DEADLINE_S, Device, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


@pytest.fixture
def device() -> Iterator[Device]:
    with contextlib.closing(Device()) as device:
        yield device


@pytest.fixture
def server(device: Device, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "s", device) as server:
        yield server


@pytest.fixture
def function(server: Server) -> Iterator[VfioUserFunction]:
    with VfioUserFunction(server.path, DEADLINE_S) as function:
        yield function
