"""Which test shows which requirement: tests/conformance.toml, written as docs/conformance.md.

`python -m tests.conformance` writes the page; tests/test_conformance.py checks both.
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).resolve().parent
TABLE = TESTS / "conformance.toml"
PAGE = TESTS.parent / "docs" / "conformance.md"
_NAME = re.compile(r"(?P<file>[\w/]+)::(?P<test>test_\w+)(?:\[(?P<case>[^\]]+)\])?")
_LEFT_OUT = "test_"


@dataclass(frozen=True, slots=True)
class TestName:
    """A test of this repository, or those of its cases whose names begin with `case`."""

    __test__ = False  # pytest takes what begins so for a class of tests

    file: str  # under tests/, without "test_" and ".py": "kernel/transmit"
    test: str
    case: str | None

    @classmethod
    def parse(cls, text: str) -> TestName:
        """Of `kernel/transmit::test_x[S01]`.

        Raises:
            ValueError: It is not written so.
        """
        if not (match := _NAME.fullmatch(text)):
            raise ValueError(f"{text!r} is not written FOLDER/FILE::test_NAME[CASE]")
        return cls(match["file"], match["test"], match["case"])

    @property
    def path(self) -> Path:
        """Of the test's file."""
        folder, _, name = self.file.rpartition("/")
        return TESTS / folder / f"{_LEFT_OUT}{name}.py"

    def exists(self) -> bool:
        """Whether the file has such a function, and it has such cases; nothing is run."""
        if not self.path.is_file():
            return False
        tree = _parsed(self.path)
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if self.test not in functions:
            return False
        if self.case is None:
            return True
        begins = re.compile(rf"{re.escape(self.case)}(?![0-9A-Za-z])")
        return any(begins.match(text) for text in _cases(tree, functions[self.test]))

    def __str__(self) -> str:
        """As the page has it: the folder's file, and what tells the test from its neighbours."""
        case = f"[{self.case}]" if self.case else ""
        return f"`{self.file}::{self.test.removeprefix(_LEFT_OUT)}{case}`"


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _cases(tree: ast.Module, test: ast.FunctionDef) -> Iterator[str]:
    """Strings of its decorators, and of what the file assigns to the names in them, and so on."""
    assigned: dict[str, list[ast.AST]] = {}
    for made in tree.body:
        targets = made.targets if isinstance(made, ast.Assign) else [getattr(made, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                assigned.setdefault(target.id, []).append(made)
    left: list[ast.AST] = list(test.decorator_list)
    while left:
        for node in ast.walk(left.pop()):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.Name):
                left += assigned.pop(node.id, [])


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement, or one kind of input, and what shows that it is kept.

    A row has tests, or says why it has none: `elsewhere` if it is not this device's to keep,
    `not_yet` if nothing shows it. Beside tests `elsewhere` says what they show instead, and
    `not_yet` what they leave open.
    """

    id: str
    says: str
    verdict: str = ""  # of input: OK, DROP, QUAR, REJ
    tests: tuple[TestName, ...] = ()
    elsewhere: str = ""
    not_yet: str = ""

    def shown(self) -> str:
        """The last column: tests, and the reason why there are none or not all."""
        parts = [f"does not apply: {self.elsewhere}"] if self.elsewhere else []
        parts += [", ".join(str(each) for each in self.tests)] if self.tests else []
        parts += [f"**not yet**: {self.not_yet}"] if self.not_yet else []
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Table:
    """One of the page's tables."""

    title: str
    about: str
    rows: tuple[Row, ...]

    def lines(self) -> list[str]:
        """Markdown; the column of verdicts only where rows have one."""
        judged = any(row.verdict for row in self.rows)
        head = ["", "what VM1 does", "verdict"] if judged else ["section", "requirement"]
        lines = [f"## {self.title}", "", self.about, "", *_row(*head, "shown by")]
        lines.append("|" + "---|" * (len(head) + 1))
        for row in self.rows:
            cells = [row.id, row.says, row.verdict] if judged else [row.id, row.says]
            lines += _row(*cells, row.shown())
        return [*lines, ""]


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def load() -> list[Table]:
    """The tables of TABLE.

    Raises:
        ValueError, TypeError: A row is not made as `Row` is.
    """
    tables = []
    for table in tomllib.loads(TABLE.read_text())["table"]:
        rows = [
            Row(**{**row, "tests": tuple(TestName.parse(name) for name in row.get("tests", ()))})
            for row in table["row"]
        ]
        tables.append(Table(table["title"], table["about"], tuple(rows)))
    return tables


def page(tables: list[Table]) -> str:
    """docs/conformance.md."""
    lines = [
        "# Conformance: each rule, and the test that shows it",
        "",
        "Made by `python -m tests.conformance` from tests/conformance.toml;",
        "tests/test_conformance.py fails if a test that is named here does not exist. Sections are",
        "of the virtio specification, 1.3. `kernel/transmit::legal_chain_goes_through[S02]` means",
        "`test_legal_chain_goes_through` of tests/kernel/test_transmit.py, the cases whose names",
        "begin with S02.",
        "",
    ]
    for table in tables:
        lines += table.lines()
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(load()))
