"""Our own package as a machine installs it: the wheel of this checkout, or the installed files."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from tools.lab.cache import recipe_key
from tools.lab.commands import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.lab.bytecode import Python
    from tools.lab.cache import Cache
    from tools.lab.vm import Vm

DISTRIBUTION = "vhost-pci-toolkit"
_PACKAGES = ("guest", "driver", "pmd", "tools")
_CHECKOUT = Path(__file__).resolve().parents[2]
_RECIPE = "3"  # raise it when this file makes something else of the same files
_TARGET = "/usr/lib/python3/dist-packages"
# As an installer makes it of the wheel's entry point, for the machine's Python.
_SCRIPT = "#!/usr/bin/python3\nfrom pmd.cli import main\n\nmain()\n"
# `pmd` without a path is begun by the machine's agent, which has imported these (pmd/commands.py).
_MAIN = "pmd.cli"
_NEEDS = {
    "run": ["pmd.report", "pmd.run"],
    "list": ["pmd.listing"],
    "doctor": ["pmd.commands", "pmd.doctor", "pmd.finding"],
    "bind": ["pmd.commands", "pmd.bind"],
    "unbind": ["pmd.commands", "pmd.bind"],
}
COMMAND = "/usr/local/bin/pmd"


def package(cache: Cache, python: Python) -> Path:
    """A compressed tar file of what belongs into a machine's dist-packages, compiled by its Python.

    In a checkout that is the wheel built from it, kept until a source changes; elsewhere the files
    of the installed distribution.

    Raises:
        VhostPciError: The wheel cannot be built, or nothing is installed.
    """
    facts: list[str | bytes] = []
    if (_CHECKOUT / "pyproject.toml").exists():
        for path in _sources():
            facts += [str(path), path.read_bytes()]
        fill = _build
    else:
        facts += _installed()
        fill = _copy

    def make(path: Path) -> None:
        tree = path / "tree"
        fill(tree)
        python.compile_tree(tree, _TARGET)
        with tarfile.open(path / "package.tar.gz", "w:gz") as tar:
            tar.add(tree, "", filter=_of_root)
        shutil.rmtree(tree)

    return cache.layer("own", recipe_key(_RECIPE, *facts), make) / "package.tar.gz"


def install(vm: Vm, package_file: Path) -> None:
    """Make `pmd` a command of the machine: COMMAND, and one that begins sooner."""
    unpack = f"tar -xz -C {_TARGET} && cat > {COMMAND} <<'E'\n{_SCRIPT}E\n"
    vm.agent.run("sh", "-ec", f"{unpack}chmod +x {COMMAND}", data=package_file.read_bytes())
    vm.agent.send(program="pmd", main=_MAIN, needs=_NEEDS)


def _sources() -> Iterator[Path]:
    """All that the wheel is built from, or that changes what it holds."""
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        yield _CHECKOUT / name
    for name in _PACKAGES:
        for path in sorted((_CHECKOUT / name).rglob("*")):
            if path.suffix in (".py", ".c", ".h") and path.is_file():
                yield path


def _build(tree: Path) -> None:
    """Unpack a wheel built now, of what an installation from the checkout has compiled already.

    Without isolation where its tools are installed: it is quicker.
    """
    path = tree.parent
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    command += [str(path), str(_CHECKOUT)]
    if _installed_version("scikit-build-core") and _installed_version("ninja"):
        command.insert(4, "--no-build-isolation")
    run("build", "the wheel", command, os.environ)
    (wheel,) = path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tree)  # noqa: S202 - built here and now


def _copy(tree: Path) -> None:
    for name in _installed():
        file = metadata.distribution(DISTRIBUTION).locate_file(name)
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file), tree / name)


def _installed() -> list[str]:
    """The installed distribution's files, those outside of site-packages left out."""
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        cause = "there is neither a checkout nor an installed distribution"
        raise VhostPciError("find", DISTRIBUTION, cause) from error
    names = (str(file) for file in files if ".." not in file.parts)
    return sorted(name for name in names if "__pycache__" not in name)


def _installed_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.mode = 0o755 if member.isdir() else 0o644
    return member
