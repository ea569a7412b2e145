"""The command itself, as a user runs it: both kinds of VF, another VM1, everything cleaned up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

_RESTORED_FROM = re.compile(r"-incoming\0file:")


def _machines() -> set[str]:
    """Process ids of machines that were restored from a template, whoever started them."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if _RESTORED_FROM.search(words) and str(os.getpid()) in words:
                found.add(entry.name)
    return found


@pytest.mark.usefixtures("ingredients")
@pytest.mark.parametrize("kind", ["packet"])
def test_the_whole_picture_holds(kind: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    scratch = tmp_path / f"t{os.getpid()}"
    scratch.mkdir()
    command = [sys.executable, "-m", "tools.lab.cli", "check", "--vf", kind]
    done = subprocess.run(
        [*command, "--megabytes", "8", "--keep-logs", str(logs)],
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "all of it held"
    assert len([line for line in lines if "SHA-256 equal at both ends" in line]) == 4
    assert len([line for line in lines if "ping both ways: ok" in line]) == 2
    assert not [line for line in lines if "FAILED" in line]
    assert {file.name for file in logs.glob("*.log")} == {"device.log"}
    assert list(scratch.iterdir()) == []
    assert _machines() == set()
