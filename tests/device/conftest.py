"""A function served in this process, for the tests of its PCI side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.device.device_host import DeviceHost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.device.vm1_memory import Vm1


@pytest.fixture
def host(tmp_path: Path) -> Iterator[DeviceHost]:
    """A function and its vfio-user server, nothing attached at either side."""
    with DeviceHost(tmp_path / "vfio-user") as host:
        yield host


@pytest.fixture
def vm1(host: DeviceHost) -> Vm1:
    """What VM1 owns; closed after the host has stopped."""
    return host.vm1
