"""The machines' Python, run here to compile what they will import: emulated, that is slow."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.lab.commands import run
from tools.lab.loader import foreign

if TYPE_CHECKING:
    from pathlib import Path

# What our package imports, as far as others wrote it, and the agent; what those import follows.
MODULES = (
    "base64",
    "cyclopts",
    "docstring_parser",
    "hashlib",
    "importlib.metadata",
    "json",
    "logging",
    "numpy",
    "numpy.typing",
    "pyudev",
    "rich.console",
    "rich.live",
    "rich.table",
    "selectors",
    "tempfile",
    "tomllib",
)
# Files of time 0 in the archive would look changed to what goes by time (PEP 552).
_IMPORTED = """\
import importlib, py_compile, sys
from importlib.util import cache_from_source
target, *rest = sys.argv[1:]
roots, modules = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
for module in modules:
    importlib.import_module(module)
for module in tuple(sys.modules.values()):
    file = getattr(module, "__file__", None) or ""
    for root in roots:
        if file.startswith(root) and file.endswith(".py"):
            name = file.removeprefix(root)
            py_compile.compile(
                file,
                cfile=target + cache_from_source(name),
                dfile=name,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
"""


@dataclass(frozen=True, slots=True)
class Python:
    """The machines' Python.

    Attributes:
        root: Where Debian's packages were unpacked, Python among them.
        packages: A tree with usr/lib/python3/dist-packages of what is not Debian's.
    """

    root: Path
    packages: Path

    def compile_imported(self, path: Path) -> None:
        """Fill path with the compiled files of MODULES, where a machine looks for them.

        Raises:
            VhostPciError: Python does not run here, or one of them cannot be imported.
        """
        roots = [str(self.root), str(self.packages)]
        self._run("Python packages", "-c", _IMPORTED, str(path), *roots, "--", *MODULES)

    def compile_tree(self, directory: Path, target: str) -> None:
        """Compile all below directory, beside its sources; target is where a machine has it.

        Raises:
            VhostPciError: Python does not run here, or refuses a file.
        """
        how = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(directory), "-p", target]
        self._run("our package", "-m", "compileall", *how, str(directory))

    def _run(self, what: str, *words: str) -> None:
        environment = {
            **os.environ,
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONPATH": str(self.packages / "usr/lib/python3/dist-packages"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        run("compile", what, [*foreign(self.root, "usr/bin/python3"), *words], environment)
