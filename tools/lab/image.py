"""What the lab's machines boot: Debian's kernel, and an initramfs with Python in it.

Made in layers, each kept in the cache under a key of its recipe: packages, Python packages, and
the archive of all of it. Our own package is not in it (`own`): it changes more often.
"""

from __future__ import annotations

import os
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tools.lab import debian
from tools.lab.bytecode import MODULES as COMPILED
from tools.lab.bytecode import Python
from tools.lab.cache import recipe_key
from tools.lab.commands import run
from tools.lab.cpio import Archive
from tools.lab.modules import MODULES, stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tools.lab.cache import Cache
    from tools.lab.debian import Packages

KERNEL_PACKAGE = "linux-image-amd64"
PACKAGES = (
    "busybox-static",
    "dash",
    "ethtool",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libc-bin",
    "libstdc++6",
    "libudev1",
    "pciutils",
    "python3",
    "udev",
)
_PYTHON_VERSION = "3.13"  # trixie's
_PLATFORM = "manylinux_2_28_x86_64"
_DIST_PACKAGES = "usr/lib/python3/dist-packages"
_SKIPPED = frozenset(
    {
        "usr/include",
        "usr/lib/systemd",
        "usr/lib/udev/hwdb.d",
        "usr/lib/x86_64-linux-gnu/gconv",
        "usr/share/bash-completion",
        "usr/share/doc",
        "usr/share/i18n",
        "usr/share/info",
        "usr/share/lintian",
        "usr/share/locale",
        "usr/share/man",
        "usr/share/zoneinfo",
        *(f"{_DIST_PACKAGES}/numpy/{name}" for name in ("f2py", "tests", "_core/tests")),
        *(f"{_DIST_PACKAGES}/numpy/{name}/tests" for name in ("lib", "ma", "random", "linalg")),
    }
)
_MERGED = ("bin", "lib", "lib64", "sbin")  # Debian's merged /usr: links, that base-files makes
_RECIPE = "1"  # raise it when this file makes something else of the same words


@dataclass(frozen=True, slots=True)
class Image:
    """Files to boot from, the kernel's release, and the Python that runs in there.

    key stands for the content.
    """

    kernel: Path
    initramfs: Path
    release: str
    python: Python
    key: str


def make_image(cache: Cache, packages: Packages, kernel_suite: str = debian.SUITE) -> Image:
    """The image, from the cache or made now: up to a minute, 180 MB to fetch the first time.

    Args:
        cache: Where its layers are kept.
        packages: Where they come from.
        kernel_suite: Of Debian, whose kernel it is: `debian.SUITE` or `debian.BACKPORTS`.

    Raises:
        VhostPciError: It cannot be fetched or made; nothing half-made stays in the cache.
    """
    kernel_key = recipe_key(_RECIPE, kernel_suite, KERNEL_PACKAGE)
    # What it depends on beside an initramfs's tools: newer ones are several packages.
    kernel = cache.layer(
        "kernel",
        kernel_key,
        lambda path: packages.unpack([KERNEL_PACKAGE], path, kernel_suite, only="linux-"),
    )
    requirements = _requirements()
    root_key = recipe_key(_RECIPE, debian.SUITE, *PACKAGES)
    root = cache.layer("guest", root_key, lambda path: packages.unpack(PACKAGES, path))
    python_key = recipe_key(_RECIPE, _PYTHON_VERSION, _PLATFORM, *requirements)
    python = cache.layer("python", python_key, lambda path: _install(path, requirements))
    bytecode_key = recipe_key(_RECIPE, root_key, python_key, *COMPILED)
    bytecode = cache.layer("bytecode", bytecode_key, Python(root, python).compile_imported)
    inside = {name: _inside(name) for name in ("init", "agent.py", "frames.py", "transfer.py")}
    modules_key = recipe_key(_RECIPE, kernel_key, root_key, *MODULES)
    modules = cache.layer("modules", modules_key, lambda path: stage(path, kernel, root))
    layers = (python, bytecode, modules)
    keys = (root_key, python_key, bytecode_key, modules_key)
    key = recipe_key(*keys, *sorted(_SKIPPED), *inside.values())
    image = cache.layer(
        "initramfs", key, lambda path: _assemble(path / "initramfs", root, layers, inside)
    )
    vmlinuz, release = bootable(kernel)
    return Image(vmlinuz, image / "initramfs", release, Python(root, python), key)


def _inside(name: str) -> bytes:
    return (Path(__file__).parent / "inside" / name).read_bytes()


def _requirements() -> list[str]:
    """What our package needs at run time, as its metadata says; not what extras add."""
    try:
        required = metadata.requires("vhost-pci-toolkit") or []
    except metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[2] / "pyproject.toml"
        required = tomllib.loads(project.read_text())["project"]["dependencies"]
    return sorted(each for each in required if "extra ==" not in each)


def bootable(kernel: Path) -> tuple[Path, str]:
    """The file, and the release, of an unpacked kernel: newer ones are beside their modules."""
    (modules,) = (kernel / "usr/lib/modules").iterdir()
    (vmlinuz,) = *kernel.glob("boot/vmlinuz-*"), *modules.glob("vmlinuz")
    return vmlinuz, modules.name


def _install(path: Path, requirements: list[str]) -> None:
    """Wheels for the machines' Python, whatever ours is."""
    target = path / _DIST_PACKAGES
    options = ["--only-binary", ":all:", "--python-version", _PYTHON_VERSION]
    options += ["--implementation", "cp", "--platform", _PLATFORM, "--no-compile", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", "--target", str(target), *options]
    run("fetch", "Python packages", [*command, *requirements], os.environ)


def _assemble(file: Path, root: Path, layers: Iterable[Path], inside: dict[str, bytes]) -> None:
    """Everything as one archive."""
    with file.open("wb") as output:
        archive = Archive(output)
        for name in _MERGED:
            archive.link(name, f"usr/{name}")
        archive.data("init", inside["init"], executable=True)
        archive.directory("usr")
        archive.tree(root, _SKIPPED | set(_MERGED) | {"usr/lib/modules"})
        for layer in layers:
            archive.tree(layer, _SKIPPED)
        archive.directory("usr/lib/vhost-pci-lab")
        archive.directory("usr/local")
        archive.directory("usr/local/busybox")
        for name in ("agent.py", "frames.py", "transfer.py"):
            archive.data(f"usr/lib/vhost-pci-lab/{name}", inside[name])
        archive.finish()
