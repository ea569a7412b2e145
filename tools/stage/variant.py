"""Builds of the kernel that measure something else: peers of `pmd bench`, or in its own's place.

    python -m tools.stage.variant limit build/limit.so
    python -m tools.stage.variant vf build/vf.so
    python -m tools.stage.variant unflushed build/unflushed.so

limit: its turns are limit.c's, the least that a device can do. vf: its null port is vf.c's, a model
of a VF that reads VM1's memory. unflushed: its rings flush no line of VM1's memory. All the rest is
the kernel's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from guest.errors import UsageError, VhostPciError

_HERE = Path(__file__).parent
_KERNEL = _HERE.parent.parent / "pmd" / "csrc"
_PACKED = ("-DLAYOUT_PACKED=true",)
_LAYOUTS = ("split", "packed")
# By name: what is compiled beside the kernel, and which of the kernel's functions it stands for.
VARIANTS: dict[str, tuple[list[tuple[str, tuple[str, ...]]], list[str]]] = {
    "limit": (
        [("limit.c", ()), ("limit.c", _PACKED)],
        [f"{layout}_{turn}_turn" for layout in _LAYOUTS for turn in ("dequeue", "enqueue")],
    ),
    "vf": ([("vf.c", ()), ("stage_port.c", ())], ["port_null_open"]),
    "unflushed": ([("unflushed.c", ())], ["flush_begin"]),
}
# As CMakeLists.txt has it.
_JUMPS = ("-Wa,-mbranches-within-32B-boundaries", "-falign-functions=64")
_COMPILE = (
    *("cc", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"),
    *(_JUMPS if os.uname().machine == "x86_64" else ()),
)
_WARNED = ("-Wall", "-Wextra", "-Werror")


def build(variant: str, output: Path, optimize: str = "-O3") -> None:
    """Compile one of VARIANTS from the sources here to output, a shared library.

    Raises:
        VhostPciError: There is no compiler, or it refuses.
    """
    sources, replaced = VARIANTS[variant]
    command = (*_COMPILE, optimize, f"-I{_KERNEL}")
    with tempfile.TemporaryDirectory(prefix="variant-") as folder:
        objects = []
        for number, (name, flags) in enumerate(sources):
            objects.append(str(Path(folder) / f"{number}.o"))
            _run(*command, *_WARNED, *flags, "-c", "-o", objects[-1], str(_HERE / name))
        wraps = [f"-Wl,--wrap={name}" for name in replaced]
        kernel = sorted(str(path) for path in _KERNEL.glob("*.c"))
        _run(*command, "-shared", *wraps, "-o", str(output), *kernel, *objects)


def _run(*command: str) -> None:
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        remedy = "install one (Debian: gcc)"
        raise VhostPciError("compile", command[-1], "there is no compiler", remedy) from error
    if found.returncode != 0:
        cause = found.stderr.strip().partition("\n")[0] or f"status {found.returncode}"
        raise VhostPciError("compile", command[-1], cause)


def main() -> int:
    """The command; its exit status."""
    try:
        match sys.argv[1:]:
            case [variant, output] if variant in VARIANTS and output.endswith(".so"):
                build(variant, Path(output))
            case _:
                cause = f"it takes one of {', '.join(VARIANTS)}, and FILE.so to write"
                raise UsageError("use", "python -m tools.stage.variant", cause)
    except VhostPciError as error:
        print(f"variant: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
