"""The commands' end of a lab that is up (`tools/lab/keeper.py` has the protocol)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guest.errors import UsageError, VhostPciError
from tools.lab.keeper import LOG, READY, SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_UP_TIMEOUT_S = 3600.0  # the first time on a slow line
_DOWN_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 300.0  # the keeper may be plugging
_POLL_S = 0.2
# In the machine: its arguments are lines and columns.
_ON_A_TERMINAL = """\
import os, pty, sys
shell = f"stty rows {sys.argv[1]} cols {sys.argv[2]}; exec sh"
sys.exit(os.waitstatus_to_exitcode(pty.spawn(["sh", "-c", shell])))
"""
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def lab_directory() -> Path:
    """Where this user's lab has its sockets and logs: one lab a user."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and Path(base).is_dir():
        return Path(base) / "vhost-pci-lab"
    return Path("/tmp") / f"vhost-pci-lab-{os.getuid()}"  # noqa: S108 - made 0700, owner checked


def up(nic: str, qemu: Path | None, tell: Callable[[str], None]) -> None:
    """Start a keeper, and return once its lab is up; tell: called with each line it says.

    nic: Words for `Nic.parse`.

    Raises:
        VhostPciError: A lab is up already, or this one does not come up.
    """
    directory = lab_directory()
    if (running := _connect()) is not None:
        running.close()
        raise UsageError("start", "a lab", "one is up already", "vhost-pci-lab down ends it")
    _make_private(directory)
    environment = {**os.environ, "PYTHONPATH": str(_PACKAGE_ROOT)}
    words = [str(directory), nic, *([str(qemu.absolute())] if qemu else [])]
    with (directory / LOG).open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tools.lab.keeper", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        _follow_log(directory / LOG, keeper, tell)
    except BaseException:
        keeper.terminate()
        keeper.wait(_DOWN_TIMEOUT_S)
        raise


def _make_private(directory: Path) -> None:
    """An empty directory of ours alone."""
    if directory.is_symlink() or (directory.exists() and directory.stat().st_uid != os.getuid()):
        raise VhostPciError("use", str(directory), "it is not this user's own")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)


def _follow_log(path: Path, keeper: subprocess.Popen[bytes], tell: Callable[[str], None]) -> None:
    deadline = time.monotonic() + _UP_TIMEOUT_S
    with path.open() as log:
        while time.monotonic() < deadline:
            ended = keeper.poll() is not None
            for line in log.read().splitlines():
                if line.startswith("vhost-pci-lab: "):  # how it ended, said below
                    continue
                tell(line)
                if line == READY:
                    return
            if ended:
                last = path.read_text().strip().splitlines()[-1:]
                cause = (last or ["it ended"])[0].removeprefix("vhost-pci-lab: ")
                raise VhostPciError("start", "the lab", cause, f"its logs are in {path.parent}")
            time.sleep(_POLL_S)
    raise VhostPciError("start", "the lab", f"it is not up after {_UP_TIMEOUT_S:g} s")


def down() -> None:
    """End the lab, and return once all of it has ended; VhostPciError if none is up."""
    with _lab() as connected:
        credentials = connected.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        pidfd = os.pidfd_open(struct.unpack("3i", credentials)[0])
        try:
            _say(connected, do="down")
            if not select.select([pidfd], [], [], _DOWN_TIMEOUT_S)[0]:
                raise VhostPciError("end", "the lab", f"it still runs after {_DOWN_TIMEOUT_S:g} s")
        finally:
            os.close(pidfd)


def status() -> dict[str, Any]:
    """What runs; VhostPciError if no lab is up."""
    with _lab() as connected, connected.makefile("rb") as answers:
        _say(connected, do="status")
        line = answers.readline()
        if not line:
            raise VhostPciError("ask", "the lab", "it has ended")
        state: dict[str, Any] = json.loads(line)
        return state


def execute(vm: str, words: Sequence[str]) -> int:
    """Run a command in a machine, our standard streams its own; its exit status.

    Raises:
        VhostPciError: No lab is up, it has no such machine, or the machine ended.
    """
    with _lab() as connected:
        connected.settimeout(None)
        _say(connected, do="exec", vm=vm, words=list(words))
        sources: list[Any] = [connected, sys.stdin]
        received = b""
        while True:
            try:
                ready = select.select(sources, [], [])[0]
            except KeyboardInterrupt:
                _say(connected, signal=int(signal.SIGINT))
                continue
            if sys.stdin in ready:
                data = os.read(sys.stdin.fileno(), 1 << 15)
                _say(connected, input=base64.b64encode(data).decode())
                if not data:
                    sources.remove(sys.stdin)
            if connected in ready:
                data = connected.recv(1 << 16)
                if not data:
                    raise VhostPciError("run", f"a command in {vm}", "the lab has ended")
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    result = _hear(json.loads(line))
                    if result is not None:
                        return result


def prompt(vm: str) -> int:
    """Run a shell in a machine on a terminal of its own, ours raw meanwhile; its exit status.

    Standard input has to be a terminal. Raises as `execute`.
    """
    terminal = sys.stdin.fileno()
    columns, lines = os.get_terminal_size(terminal)
    former = termios.tcgetattr(terminal)
    tty.setraw(terminal, termios.TCSADRAIN)
    try:
        return execute(vm, ("python3", "-c", _ON_A_TERMINAL, str(lines), str(columns)))
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, former)


def _hear(message: dict[str, Any]) -> int | None:
    """Show what the command said; its exit status if that was the last."""
    if "error" in message:
        raise VhostPciError("run", "the command", message["error"])
    if "exit" in message:
        return int(message["exit"])
    stream = sys.stdout.buffer if message["stream"] == 1 else sys.stderr.buffer
    stream.write(base64.b64decode(message["output"]))
    stream.flush()
    return None


def _say(connected: socket.socket, **message: object) -> None:
    try:
        connected.sendall(json.dumps(message).encode() + b"\n")
    except OSError as error:
        raise VhostPciError("ask", "the lab", "it has ended") from error


def _connect() -> socket.socket | None:
    """A connection to the keeper, or None where none listens."""
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(_ANSWER_TIMEOUT_S)
    with contextlib.suppress(OSError):
        connected.connect(str(lab_directory() / SOCKET))
        return connected
    connected.close()
    return None


def _lab() -> socket.socket:
    connected = _connect()
    if connected is None:
        raise VhostPciError("reach", "the lab", "none is up", "vhost-pci-lab up starts one")
    return connected
