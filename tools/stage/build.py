"""stage.c compiled against the kernel as it is installed."""

from __future__ import annotations

import importlib.resources
import re
import subprocess
from pathlib import Path

from guest.errors import VhostPciError

_NAMES = ("stage.c", "lcore.c", "channel.c", "stage_port.c")
_SOURCES = [Path(__file__).with_name(name) for name in _NAMES]
_COMPILER = re.compile(rb"(GCC|clang)[^\0]*?(\d+)\.\d+\.\d+")


def kernel_path() -> Path:
    """The kernel's library, which lies in the file system: a wheel is never run packed."""
    return Path(str(importlib.resources.files("pmd") / "_ringk.so"))


def compiler(library: Path) -> str:
    """What made a library, such as "gcc 12": compilers leave their names in it (.comment)."""
    found = _COMPILER.search(library.read_bytes())
    if found is None:
        raise VhostPciError("tell the compiler of", str(library), "it does not say")
    return f"{found[1].decode().lower()} {int(found[2])}"


def build(output: Path, library: Path, *, shared: bool) -> None:
    """Compile to output: a program, or a shared library with the functions of stage.c.

    Raises:
        VhostPciError: The compiler refuses, with its first line.
    """
    kind = ["-shared", "-fPIC"] if shared else []
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", *kind]
    command += ["-o", str(output), *map(str, _SOURCES), str(library.absolute())]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        cause = found.stderr.strip().partition("\n")[0] or f"status {found.returncode}"
        raise VhostPciError("compile", str(_SOURCES[0]), cause)
