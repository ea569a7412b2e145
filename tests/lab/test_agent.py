"""The agent's commands, here and not in a machine: what is begun by a fork ends as others do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest.errors import VhostPciError
from tools.lab.agent import Agent

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60.0
SERVE = "import sys, agent; agent.Agent(int(sys.argv[1])).serve()"
PROGRAM = """\
import sys, time

def main():
    print("words", *sys.argv, "imported", "sooner" in sys.modules, flush=True)
    if sys.argv[1:] == ["wait"]:
        time.sleep(3600)
    if sys.argv[1:] == ["read"]:
        print(sys.stdin.read(), end="")
    if sys.argv[1:] == ["fail"]:
        raise ValueError("as it fails")
    sys.exit({"seven": 7, "text": "a text"}.get(sys.argv[1]))
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "sooner.py").touch()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        path = f"{ROOT / 'tools/lab/inside'}:{tmp_path}"
        command = [sys.executable, "-u", "-c", SERVE, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={"PYTHONPATH": path})
        with process:
            agent = Agent("here", ours)
            agent.send(program="ours", main="program", needs={"seven": ["sooner"]})
            agent.send(program="sh", main="nothing_of_that_name", needs={})
            yield agent
            process.kill()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["ours", "seven"], 7, "words ours seven imported True"),
        (["ours", "other"], 0, "words ours other imported False"),
        (["ours", "text"], 1, "words ours text imported False"),
        (["ours", "fail"], 1, "ValueError: as it fails"),
        (["sh", "-c", "echo begun; exit 3"], 3, "begun"),
    ],
)
def test_a_program_of_a_fork(agent: Agent, words: list[str], status: int, said: str) -> None:
    job = agent.start(*words)
    assert job.wait(TIMEOUT_S) == status
    assert said in job.text


def test_its_input_and_its_end_by_a_signal(agent: Agent) -> None:
    waiting = agent.start("ours", "wait")
    waiting.wait_for("words", TIMEOUT_S)
    assert agent.run("ours", "read", data=b"to be read\n").endswith("to be read\n")
    waiting.signal(signal.SIGKILL)
    assert waiting.wait(TIMEOUT_S) == 128 + signal.SIGKILL


def test_what_another_host_started_ends_nothing_of_ours(agent: Agent, tmp_path: Path) -> None:
    """As in a machine that migrated: the first command of either host, at the same time."""
    go = tmp_path / "go"
    theirs = agent.start("sh", "-c", f"echo begun; until [ -e {go} ]; do sleep 0.01; done; exit 9")
    theirs.wait_for("begun", TIMEOUT_S)
    with socket.socket(fileno=os.dup(agent.fileno())) as port:
        there = Agent("there", port)
        ours = there.start("ours", "wait")
        ours.wait_for("words", TIMEOUT_S)
        go.touch()
        with pytest.raises(VhostPciError, match="does not end within 1 s"):
            ours.wait(1.0)
