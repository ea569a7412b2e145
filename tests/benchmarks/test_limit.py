"""The kernel that does the least a device can serves rings of either layout."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tools.stage.build import build
from tools.stage.limit import build as build_limit

if TYPE_CHECKING:
    from pathlib import Path

SIZE, ROUNDS = 256, 5


def test_it_serves_whole_rings(tmp_path: Path) -> None:
    limit, program = tmp_path / "limit.so", tmp_path / "stage"
    build_limit(limit, optimize="-O0")
    build(program, limit, shared=False)
    for kind in ("null", "copy", "gen"):
        for packed in (0, 1):
            words = [kind, 64, SIZE, 32, 1, packed, ROUNDS]
            command = [str(program), *map(str, words)]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            assert int(found.stdout) == SIZE * ROUNDS, words
