"""An honest vfio-user server and a client attached to it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from guest.vfio_user import VfioUserFunction
from tests.guest.vfio_user_server import DEADLINE_S, Device, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
