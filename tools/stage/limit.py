"""A kernel that does the least a device can: what `pmd bench` takes as a peer, and as the limit.

    python -m tools.stage.limit build/limit.so

Its turns are limit.c's, in place of the kernel's own; all the rest is the kernel's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from guest.errors import UsageError, VhostPciError

_SOURCE = Path(__file__).with_name("limit.c")
_KERNEL = Path(__file__).parents[2] / "pmd" / "csrc"
_TURNS = [
    f"{layout}_{turn}_turn" for layout in ("split", "packed") for turn in ("dequeue", "enqueue")
]
# As CMakeLists.txt has it.
_COMPILE = ("cc", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing")
_WARNED = ("-Wall", "-Wextra", "-Werror")


def build(output: Path, optimize: str = "-O3") -> None:
    """Compile it from the sources beside this file to output, a shared library.

    Raises:
        VhostPciError: There is no compiler, or it refuses.
    """
    command = (*_COMPILE, optimize)
    with tempfile.TemporaryDirectory(prefix="limit-") as folder:
        objects = [str(Path(folder) / f"{name}.o") for name in ("split", "packed")]
        for path, layout in zip(objects, ((), ("-DLAYOUT_PACKED=true",)), strict=True):
            _run(*command, *_WARNED, *layout, f"-I{_KERNEL}", "-c", "-o", path, str(_SOURCE))
        wraps = [f"-Wl,--wrap={turn}" for turn in _TURNS]
        sources = sorted(str(path) for path in _KERNEL.glob("*.c"))
        _run(*command, "-shared", *wraps, "-o", str(output), *sources, *objects)


def _run(*command: str) -> None:
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        remedy = "install one (Debian: gcc)"
        raise VhostPciError("compile", str(_SOURCE), "there is no compiler", remedy) from error
    if found.returncode != 0:
        cause = found.stderr.strip().partition("\n")[0] or f"status {found.returncode}"
        raise VhostPciError("compile", str(_SOURCE), cause)


def main() -> int:
    """The command; its exit status."""
    try:
        if len(sys.argv) != 2 or not sys.argv[1].endswith(".so"):
            raise UsageError("use", "python -m tools.stage.limit", "it takes FILE.so to write")
        build(Path(sys.argv[1]))
    except VhostPciError as error:
        print(f"limit: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
