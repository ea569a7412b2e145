"""Programs of an unpacked Debian root, run on this system without entering the root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.errors import VhostPciError

if TYPE_CHECKING:
    from pathlib import Path

_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def libraries(root: Path) -> Path:
    """Where the root's shared libraries are."""
    return root / _LIBRARIES


def foreign(root: Path, program: str, name: str = "") -> list[str]:
    """The words that start a program by its own root's dynamic loader, with its own libraries.

    Args:
        root: Where Debian packages were unpacked.
        program: Its path below root.
        name: What it is to be called (argv[0]), for programs that go by it; by default its own.

    Raises:
        VhostPciError: It is not there.
    """
    path = root / program
    loader = libraries(root) / "ld-linux-x86-64.so.2"
    for file in (loader, path):
        if not file.exists():
            raise VhostPciError("run", program, f"there is no {file}", f"remove {root}")
    search = f"{libraries(root)}:{libraries(root) / 'systemd'}"
    return [str(loader), "--argv0", name or path.name, "--library-path", search, str(path)]
