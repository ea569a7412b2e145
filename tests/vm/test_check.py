"""The command itself, as a user runs it: traffic, another VM1, everything cleaned up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]


def _processes_of(directory: str) -> list[str]:
    """Command lines that name the directory, whoever started them: QEMUs, device servers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_text(errors="replace")
                if directory in words:
                    found.append(words)
    return found


@pytest.mark.usefixtures("ingredients")
@pytest.mark.parametrize(
    "options",
    [
        ("--nic", "packed=on,queues=2"),
        ("--vf", "igb"),
        ("--vf", "virtio-net"),
        ("--vf", "xdp"),
    ],
)
def test_the_whole_picture_holds(tmp_path: Path, options: tuple[str, str]) -> None:
    logs = tmp_path / "logs"
    command = [sys.executable, "-m", "tools.lab.cli", "check"]
    with tempfile.TemporaryDirectory(prefix="vpci-check-") as scratch:
        done = subprocess.run(
            [*command, *options, "--megabytes", "4", "--keep-logs", str(logs)],
            env={**os.environ, "TMPDIR": scratch},
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert list(Path(scratch).iterdir()) == []
        assert _processes_of(scratch) == []
    lines = done.stdout.splitlines()
    assert lines[-1] == "all of it held"
    assert len([line for line in lines if "SHA-256 equal at both ends" in line]) == 4
    assert len([line for line in lines if "ping both ways: ok" in line]) == 2
    assert not [line for line in lines if "FAILED" in line]
    assert (logs / "device.log").read_text().count("VM1's front-end is connected") == 2


def test_a_check_that_is_ended_leaves_nothing() -> None:
    command = [sys.executable, "-m", "tools.lab.cli", "check"]
    with tempfile.TemporaryDirectory(prefix="vpci-check-") as scratch:
        with subprocess.Popen(
            command, env={**os.environ, "TMPDIR": scratch}, stdout=subprocess.PIPE, text=True
        ) as check:
            assert check.stdout is not None
            for line in check.stdout:
                if "VM1" in line:
                    break
            assert len(_processes_of(scratch)) >= 2  # the device server and VM1 at least
            check.terminate()
            assert check.wait(300) == 143
        assert list(Path(scratch).iterdir()) == []
        assert _processes_of(scratch) == []
