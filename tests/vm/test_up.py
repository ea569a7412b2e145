"""A lab that stays up: commands in its machines, the function that follows VM1, the end."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

_TIMEOUT_S = 900
_INPUT_BYTES = 1 << 20


class Lab:
    """The command, as a user with a run-time directory of his own types it."""

    def __init__(self, directory: str) -> None:
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": directory}

    def run(self, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "tools.lab.cli", *words],
            env=self._environment,
            input=data,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )

    def type(self, *words: str, keys: bytes, status: int) -> bytes:
        """What is shown on a terminal of 24 lines where these keys are typed into a command."""
        ours, its = pty.openpty()
        termios.tcsetwinsize(ours, (24, 80))
        command = [sys.executable, "-m", "tools.lab.cli", *words]
        with subprocess.Popen(
            command, env=self._environment, stdin=its, stdout=subprocess.PIPE, stderr=its
        ) as process:
            os.write(ours, keys)
            shown, _ = process.communicate(timeout=_TIMEOUT_S)
        os.close(its)
        os.close(ours)
        assert process.returncode == status, shown
        return shown

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        state: dict[str, Any] = json.loads(done.stdout)
        return state

    def wait_until_plugged(self, *, plugged: bool) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while self.status()["plugged"] is not plugged:
            assert time.monotonic() < deadline


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="vpci-up-") as directory:
        made = Lab(directory)
        try:
            yield made
        finally:
            made.run("down")
            for log in Path(directory).glob("*/*.log"):
                print(f"--- {log.name}", log.read_text(), sep="\n", file=sys.stderr)


@pytest.mark.usefixtures("ingredients")
def test_a_lab_that_stays_up(lab: Lab) -> None:
    up = lab.run("up")
    assert up.returncode == 0, up.stderr
    assert up.stdout.decode().splitlines()[-1] == "the lab is up"
    again = lab.run("up")
    assert again.returncode == 2
    assert b"one is up already; vhost-pci-lab down ends it" in again.stderr

    status = lab.run("exec", "vm1", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (status.returncode, status.stdout, status.stderr) == (7, b"out\n", b"err\n")
    data = os.urandom(_INPUT_BYTES)
    echoed = lab.run("exec", "outside", "cat", data=data)
    assert hashlib.sha256(echoed.stdout).digest() == hashlib.sha256(data).digest()
    deaf = lab.run("exec", "vm2", "true", data=data)
    assert deaf.returncode == 0
    nowhere = lab.run("exec", "vm3", "true")
    assert nowhere.returncode == 1
    assert b"the machines that run are vm1, vm2, outside" in nowhere.stderr

    assert lab.run("exec", "vm2", data=b"echo $((40 + 2)) | tee /dev/console").stdout == b"42\n"
    assert b"42" in lab.run("console", "vm2").stdout.split()
    assert b"--- vm2.console" in lab.run("logs").stdout.splitlines()
    shown = lab.type("exec", "vm1", keys=b"tty; stty size; exit 5\n", status=5)
    assert re.search(rb"/dev/pts/\d+\r\n24 80\r\n", shown)

    lab.wait_until_plugged(plugged=True)
    listed = lab.run("exec", "vm2", "lspci", "-nd", "1af4:10f0").stdout.decode()
    assert len(listed.splitlines()) == 1
    lab.run("exec", "vm1", "poweroff", "-f")
    lab.wait_until_plugged(plugged=False)
    assert lab.run("exec", "vm2", "lspci", "-nd", "1af4:10f0").stdout == b""
    assert set(lab.status()["machines"]) == {"vm2", "outside"}

    assert lab.run("down").returncode == 0
    assert lab.run("status").returncode == 1
