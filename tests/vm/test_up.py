"""A lab that stays up: commands in its machines, the function that follows VM1, the end."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
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

    lab.wait_until_plugged(plugged=True)
    listed = lab.run("exec", "vm2", "lspci", "-nd", "1af4:10f0").stdout.decode()
    assert len(listed.splitlines()) == 1
    lab.run("exec", "vm1", "poweroff", "-f")
    lab.wait_until_plugged(plugged=False)
    assert lab.run("exec", "vm2", "lspci", "-nd", "1af4:10f0").stdout == b""
    assert set(lab.status()["machines"]) == {"vm2", "outside"}

    assert lab.run("down").returncode == 0
    assert lab.run("status").returncode == 1
