"""The kernel modules the machines need, with what those need."""

from __future__ import annotations

import lzma
import os
import re
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from tools.lab.commands import run
from tools.lab.loader import foreign

if TYPE_CHECKING:
    from pathlib import Path

MODULES = (
    "bridge",
    "e1000e",
    "igb",
    "igbvf",
    "tun",
    "uio_pci_generic",
    "veth",
    "vfio-pci",
    "vfio_iommu_type1",
    "virtio_net",
)
_FOLDER = "usr/lib/modules"
_NEEDS = re.compile(rb"\0depends=([^\0]*)\0")  # Linux, include/linux/module.h MODULE_INFO


def stage(path: Path, kernel: Path, root: Path) -> None:
    """Fill path with MODULES and what they need, unpacked and indexed.

    Args:
        path: An empty directory that will hold usr/lib/modules/RELEASE.
        kernel: An unpacked kernel package.
        root: An unpacked root with kmod in it.

    Raises:
        VhostPciError: The kernel has no such module, or depmod fails.
    """
    (release,) = (each.name for each in (kernel / _FOLDER).iterdir())
    source, target = kernel / _FOLDER / release, path / _FOLDER / release
    target.mkdir(parents=True)
    for index in source.glob("modules.*"):
        (target / index.name).write_bytes(index.read_bytes())
    for name, data in _closure(source).items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    _index(path, root, release)


def _index(path: Path, root: Path, release: str) -> None:
    """By depmod, which looks below lib."""
    link = path / "lib"
    link.symlink_to("usr/lib")
    command = [*foreign(root, "usr/bin/kmod", "depmod"), "-b", str(path), release]
    run("index", "the kernel's modules", command, os.environ)
    link.unlink()


def _closure(source: Path) -> dict[str, bytes]:
    """MODULES and all they need, by the name of the file below source, unpacked.

    Each module's section .modinfo names what it needs itself: that takes reading a dozen of them,
    where an index takes reading thousands.
    """
    files = {_module_name(file.name): file for file in source.rglob("*.ko*")}
    found: dict[str, bytes] = {}
    wanted = [module.replace("-", "_") for module in MODULES]
    while wanted:
        module = wanted.pop()
        file = files.get(module)
        if file is None:
            cause = f"{source.name} has no module {module}"
            raise VhostPciError("make", "the machines' image", cause)
        name = str(file.relative_to(source)).removesuffix(".xz")
        if name not in found:
            data = file.read_bytes()
            found[name] = lzma.decompress(data) if file.suffix == ".xz" else data
            wanted += _needs(found[name])
    return found


def _needs(module: bytes) -> list[str]:
    """What a module needs, by its own word."""
    needs = _NEEDS.search(module)
    return [_module_name(name) for name in needs[1].decode().split(",") if name] if needs else []


def _module_name(file: str) -> str:
    return file.partition(".ko")[0].replace("-", "_")
