"""A function of this machine that cannot be used is refused before it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guest.errors import DeviceGoneError, VhostPciError
from pmd.source import require_usable
from tests.guest.tree import ADDRESS, write_function

if TYPE_CHECKING:
    from pathlib import Path


def test_a_window_without_addresses(tmp_path: Path) -> None:
    with pytest.raises(VhostPciError) as caught:
        require_usable(write_function(tmp_path, bars={}))
    assert str(caught.value) == (
        f"cannot map BAR 2 of {ADDRESS}: no addresses were left for it when it was plugged; "
        "give the root port room: pcie-root-port,pref64-reserve=64G (more than VM1's memory)"
    )


def test_a_window_that_is_there(tmp_path: Path) -> None:
    require_usable(write_function(tmp_path))


def test_a_function_whose_server_died(tmp_path: Path) -> None:
    """Before the kernel opens it: that would take a minute."""
    require_usable(write_function(tmp_path / "alive"))
    dead = write_function(tmp_path / "dead", config=b"\xff" * 256)
    with pytest.raises(DeviceGoneError, match=f"cannot use {ADDRESS}: the device is gone; unplug"):
        require_usable(dead)
