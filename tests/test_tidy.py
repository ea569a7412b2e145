"""The house's rules that no other tool checks: a style guide no test reads is a wish."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
# A package may import itself and those named here: pmd -> driver -> guest.
ALLOWED_IMPORTS = {
    "guest": {"guest"},
    "driver": {"driver", "guest"},
    "pmd": {"pmd", "driver", "guest"},
    "tools": {"tools", "pmd", "driver", "guest"},
}
LEFTOVERS = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


def _tracked() -> list[Path]:
    """The checkout's files, or in an unpacked archive those that a checkout would have."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        folders = ("guest", "driver", "pmd", "tools", "tests", "docs")
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return sorted(path for path in paths if path.is_file() and "__pycache__" not in path.parts)


TRACKED = _tracked()
PYTHON = [path for path in TRACKED if path.suffix == ".py"]
C = [path for path in TRACKED if path.suffix in {".c", ".h"}]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _in(folder: str, paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.is_relative_to(ROOT / folder)]


def _imports(path: Path) -> set[str]:
    """First names of all modules a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno}: relative import"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED_IMPORTS)
def test_imports_run_one_way(package: str) -> None:
    files = _in(package, PYTHON)
    assert files
    forbidden = (set(ALLOWED_IMPORTS) | {"tests"}) - ALLOWED_IMPORTS[package]
    assert {_name(f): bad for f in files if (bad := _imports(f) & forbidden)} == {}


def test_device_and_embedded_vm1_share_no_c_source() -> None:
    """docs/architecture.md, Rules: a mistake common to both sides would hide itself."""
    include = re.compile(r'#include "([^"]+)"')
    for folder in ("pmd/csrc", "tools/vm1/csrc"):
        own = {path.name for path in _in(folder, C)}
        for path in _in(folder, C):
            assert set(include.findall(path.read_text())) <= own, _name(path)


def test_files_are_short() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in PYTHON + C}
    assert {name: n for name, n in lengths.items() if n > FILE_LINES_MAX} == {}


def _python_functions(path: Path) -> dict[str, int]:
    """Lines of each body; what stands before it, signature and docstring, is documentation."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            found[f"{_name(path)}:{node.name}"] = lines
    return found


def _c_functions(path: Path) -> dict[str, int]:
    """In the kernel's brace style a function's body lies between braces in the first column."""
    found = {}
    begin = 0
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line == "{":
            begin = number
        elif line == "}":
            found[f"{_name(path)}:{begin}"] = number - begin + 1
    return found


def test_functions_are_short() -> None:
    lengths: dict[str, int] = {}
    for path in PYTHON:
        lengths |= _python_functions(path)
    for path in C:
        lengths |= _c_functions(path)
    assert len(lengths) > len(PYTHON)
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LINES_MAX} == {}


def test_no_leftover_markers() -> None:
    text = [path for path in TRACKED if path.suffix not in {".png", ".pcap"}]
    found = {_name(path): LEFTOVERS.findall(path.read_text()) for path in text}
    assert {name: markers for name, markers in found.items() if markers} == {}


def _lines_with(pattern: str, paths: list[Path]) -> list[str]:
    expression = re.compile(pattern, re.IGNORECASE)
    return [
        f"{_name(path)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if expression.search(line)
    ]


def test_guest_knows_no_virtio() -> None:
    """guest/ is what the guest kernel gives; what the devices are is driver/'s business."""
    assert _lines_with("virtio(?! word)|vring|virtq", _in("guest", PYTHON)) == []


def test_driver_knows_no_sysfs() -> None:
    assert _lines_with("/sys/", _in("driver", PYTHON)) == []


SHM_NAME = re.compile(r"\bstruct shm\b[^;(){}]*")
MEMORY_CALL = re.compile(r"\b(?:mem|str|stp)\w+\(")


def _shm_names(path: Path) -> set[str]:
    """What is declared `struct shm *` in a C file: variables, parameters, members, functions."""
    declarations = SHM_NAME.findall(path.read_text())
    return {name for text in declarations for name in re.findall(r"\*\s*(\w+)", text)}


def test_only_shm_h_touches_vm1_memory() -> None:
    """shm.h: struct shm stays undefined, and no pointer to it is turned into another kind."""
    files = [path for path in _in("pmd/csrc", C) if path.name != "shm.h"]
    headers = [path for path in files if path.suffix == ".h"]
    everywhere = {"shm_at"}.union(*(_shm_names(path) for path in headers))
    assert {"desc", "avail", "used"} <= everywhere
    wrong = []
    for path in files:
        names = "|".join(everywhere | _shm_names(path))
        pointer = re.compile(rf"(?:\w+(?:->|\.))*\b(?:{names})\b")
        cast = re.compile(rf"\((?!struct shm)[^()]*\*\)[\s(]*(?:uintptr_t\))?{pointer.pattern}")
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            call = MEMORY_CALL.search(line)
            copies = call is not None and pointer.search(line, call.end())
            if copies or cast.search(line) or re.search(r"\bstruct shm\s*\{", line):
                wrong.append(f"{_name(path)}:{number}: {line.strip()}")
    assert wrong == []


def _named_in_architecture() -> set[str]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_architecture_names_the_files_that_exist() -> None:
    """A row names a file, or a folder (with a slash) that stands for all in it."""
    named = {name for name in _named_in_architecture() if not name.startswith("--")}
    assert {name for name in named if not (ROOT / name).exists()} == set()
    folders = tuple(name for name in named if name.endswith("/"))
    packages = [path for folder in ALLOWED_IMPORTS for path in _in(folder, TRACKED)]
    files = {_name(path) for path in packages if path.name != "__init__.py"}
    assert {file for file in files if file not in named and not file.startswith(folders)} == set()
