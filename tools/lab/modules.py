"""The kernel modules the machines need, with what those need."""

from __future__ import annotations

import lzma
import os
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from tools.lab.commands import run
from tools.lab.loader import foreign

if TYPE_CHECKING:
    from collections.abc import Iterable
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
    _make_lib_link(path)
    target = path / _FOLDER / release
    target.mkdir(parents=True)
    source = kernel / _FOLDER / release
    for index in source.glob("modules.*"):
        (target / index.name).write_bytes(index.read_bytes())
    (target / "kernel").symlink_to(source / "kernel")
    _depmod(path, root, release)
    wanted = _closure((target / "modules.dep").read_text().splitlines(), release)
    (target / "kernel").unlink()
    for name in wanted:
        data = (source / name).read_bytes()
        if name.endswith(".xz"):
            data = lzma.decompress(data)
        file = target / name.removesuffix(".xz")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    _depmod(path, root, release)
    (path / "lib").unlink()


def _make_lib_link(path: Path) -> None:
    (path / "lib").symlink_to("usr/lib")


def _depmod(base: Path, root: Path, release: str) -> None:
    command = [*foreign(root, "usr/bin/kmod", "depmod"), "-b", str(base), release]
    run("index", "the kernel's modules", command, os.environ)


def _closure(dependencies: Iterable[str], release: str) -> list[str]:
    """Files of MODULES and all they need; dependencies: the lines of modules.dep(5)."""
    needs: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    for line in dependencies:
        file, _, rest = line.partition(":")
        needs[file] = rest.split()
        files[_module_name(file)] = file
    wanted: set[str] = set()
    for module in MODULES:
        file = files.get(module.replace("-", "_"), "")
        if not file:
            raise VhostPciError("make", "the machines' image", f"{release} has no module {module}")
        wanted |= {file, *needs[file]}
    return sorted(wanted)


def _module_name(file: str) -> str:
    return file.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
