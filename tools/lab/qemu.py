"""The hypervisor: Debian's QEMU in the cache, or one of the user's."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guest.errors import UsageError
from tools.lab import debian
from tools.lab.cache import recipe_key
from tools.lab.commands import run
from tools.lab.loader import foreign, libraries

if TYPE_CHECKING:
    from pathlib import Path

    from tools.lab.cache import Cache
    from tools.lab.debian import Packages

_PROGRAM = "qemu-system-x86_64"
_PACKAGES = ("qemu-system-x86",)
_RECIPE = "1"
_VERSION = re.compile(r"version (\d+)\.(\d+)[.\d]*")
_OLDEST = (10, 1)  # the first with vfio-user-pci


@dataclass(frozen=True, slots=True)
class Qemu:
    """How to start it: words before all options, additions to the environment, its version."""

    command: tuple[str, ...]
    version: str
    environment: dict[str, str] = field(default_factory=dict)


def find_qemu(cache: Cache, packages: Packages, path: Path | None) -> Qemu:
    """The user's QEMU at path, or Debian's from the cache: fetched now if need be, 40 MB.

    Raises:
        UsageError: The user's is not there, is none, or is too old.
        VhostPciError: Debian's cannot be fetched.
    """
    if path is not None:
        return _own(path)
    key = recipe_key(_RECIPE, debian.BACKPORTS, *_PACKAGES)
    root = cache.layer("qemu", key, lambda path: _fetch(packages, path))
    share = root / "usr/share"
    firmware = ["-L", str(share / "qemu"), "-L", str(share / "seabios")]
    command = (*foreign(root, f"usr/bin/{_PROGRAM}"), *firmware)
    environment = {"QEMU_MODULE_DIR": str(libraries(root) / "qemu")}
    said = run("start", "QEMU", [*command, "--version"], {**os.environ, **environment})
    return Qemu(command, _checked(_PROGRAM, said), environment)


def _fetch(packages: Packages, root: Path) -> None:
    packages.unpack(_PACKAGES, root, debian.BACKPORTS)
    for surplus in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / surplus, ignore_errors=True)


def _own(path: Path) -> Qemu:
    if shutil.which(path) is None:
        raise UsageError("use", f"--qemu {path}", "there is no such program", _remedy())
    said = run("start", str(path), [str(path), "--version"], os.environ)
    return Qemu((str(path),), _checked(str(path), said))


def _checked(name: str, said: str) -> str:
    found = _VERSION.search(said)
    if not said.startswith("QEMU emulator") or found is None:
        raise UsageError("use", name, "it does not say that it is QEMU", _remedy())
    if (int(found[1]), int(found[2])) < _OLDEST:
        cause = f"it is {found[0]}, and vfio-user came with {_OLDEST[0]}.{_OLDEST[1]}"
        raise UsageError("use", name, cause, _remedy())
    return found[0].removeprefix("version ")


def _remedy() -> str:
    oldest = ".".join(map(str, _OLDEST))
    source = f"Debian's {debian.BACKPORTS}"
    return f"give it QEMU {oldest} or later; without --qemu the lab fetches one from {source}"
