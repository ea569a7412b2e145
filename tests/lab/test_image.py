"""Where an unpacked kernel package has what is booted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.lab.image import bootable

if TYPE_CHECKING:
    from pathlib import Path

RELEASE = "7.3.4+deb13-amd64"


@pytest.mark.parametrize("place", [f"boot/vmlinuz-{RELEASE}", f"usr/lib/modules/{RELEASE}/vmlinuz"])
def test_of_one_package_and_of_several(tmp_path: Path, place: str) -> None:
    """A later Debian splits it up, and has /boot made by its maintainer scripts."""
    (tmp_path / "usr/lib/modules" / RELEASE / "kernel").mkdir(parents=True)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    assert bootable(tmp_path) == (tmp_path / place, RELEASE)
