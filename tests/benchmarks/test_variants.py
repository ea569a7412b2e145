"""Builds of the kernel that measure something else serve rings of either layout too."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tools.stage import variant
from tools.stage.build import build

if TYPE_CHECKING:
    from pathlib import Path

SIZE, ROUNDS = 256, 5


KINDS = {"limit": ("null", "copy", "gen"), "vf": ("null",), "unflushed": ("null", "copy", "gen")}


@pytest.mark.parametrize(("name", "kinds"), KINDS.items(), ids=KINDS)
def test_it_serves_whole_rings(tmp_path: Path, name: str, kinds: tuple[str, ...]) -> None:
    library, program = tmp_path / f"{name}.so", tmp_path / "stage"
    variant.build(name, library, optimize="-O0")
    build(program, library, shared=False)
    for kind in kinds:
        for packed in (0, 1):
            words = [kind, 64, SIZE, 32, 1, 1, packed, 0, 0, ROUNDS]
            command = [str(program), *map(str, words)]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            assert int(found.stdout) == SIZE * ROUNDS, words
