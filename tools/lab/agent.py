"""The host's end of the agent in a machine (`tools/lab/inside/agent.py` has the protocol)."""

from __future__ import annotations

import base64
import json
import os
import secrets
import select
import shlex
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PIECE = 1 << 15  # of input; a message is as long again by a third
_SECOND_S = 1.0
_RANDOM_BYTES = 64
_NUMBER_BITS = 48  # JSON's numbers are whole up to 2^53, and there is much to start yet


class Job:
    """One command in a machine: its output so far, and its exit status once it ended.

    Made by `Agent.start`; used on the agent's thread.
    """

    def __init__(self, agent: Agent, number: int, words: Sequence[str]) -> None:
        self.agent = agent
        self.number = number
        self.words = tuple(words)
        self.output = b""
        self.errors = b""
        self.status: int | None = None
        self.listener: Callable[[int, bytes], None] | None = None

    @property
    def text(self) -> str:
        """All it said so far, both streams."""
        return (self.output + self.errors).decode(errors="replace")

    def feed(self, data: bytes) -> None:
        """Give it input, then its end."""
        for at in range(0, len(data), _PIECE):
            self.agent.send(id=self.number, input=_encoded(data[at : at + _PIECE]))
        self.agent.send(id=self.number, input="")

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Signal it and its children; one that has ended does not mind."""
        if self.status is None:
            self.agent.send(id=self.number, signal=int(number))

    def wait(self, timeout_s: float) -> int:
        """Its exit status; as in a shell, 128 and the signal's number if one ended it.

        Raises:
            VhostPciError: It still runs, or the machine is gone.
        """
        self.wait_until(lambda: self.status is not None, timeout_s, "does not end")
        assert self.status is not None  # noqa: S101 - for the type checker
        return self.status

    def wait_for(self, words: str, timeout_s: float) -> None:
        """Return once it has said words; VhostPciError if it ends before, or in time does not."""
        self.wait_until(
            lambda: words in self.text or self.status is not None,
            timeout_s,
            f"does not say {words!r}",
        )
        if words not in self.text:
            raise self.failure(f"ended with status {self.status}")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        """Read what comes until the condition holds; VhostPciError with otherwise if late."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise self.failure(f"{otherwise} within {timeout_s:g} s")
            self.agent.receive(min(_SECOND_S, max(0.0, deadline - time.monotonic())))

    def failure(self, what: str) -> VhostPciError:
        """An error that names the command, and the end of what it said."""
        said = " / ".join(self.text.split("\n")[-6:]).strip(" /")[-600:]
        cause = f"it {what}" + (f"; it said: {said}" if said else "")
        command = shlex.join(self.words)[:120]
        return VhostPciError("run", f"{command!r} in {self.agent.name}", cause)


class Agent:
    """Runs commands in one machine. Thread rule: one thread.

    Args:
        name: The machine's, for messages.
        connected: The connection, owned from now on.
    """

    def __init__(self, name: str, connected: socket.socket) -> None:
        self.name = name
        self._socket = connected
        self._received = b""
        self._outgoing = bytearray()
        self._jobs: dict[int, Job] = {}
        # A machine that migrated goes on with what its other host started: the end of that must
        # not be heard as the end of something of ours.
        self._next = secrets.randbits(_NUMBER_BITS)
        self._hello = 0

    def fileno(self) -> int:
        """To select on: readable when `receive` has something to do."""
        return self._socket.fileno()

    def greet(self, timeout_s: float, alive: Callable[[], None]) -> None:
        """Return once the agent answers: the machine is up, and is no twin of another.

        What was restored has the name, the time and the random numbers of its template.

        Args:
            timeout_s: How long that may take.
            alive: Called every second; raises if there is nothing to wait for any more.

        Raises:
            VhostPciError: It does not answer in time.
        """
        self._next += 1
        wanted = self._next
        seed = _encoded(os.urandom(_RANDOM_BYTES))
        self.send(hello=wanted, name=self.name, time_s=time.time(), random=seed)
        deadline = time.monotonic() + timeout_s
        while self._hello != wanted:
            alive()
            if time.monotonic() > deadline:
                cause = f"it is not up after {timeout_s:g} s"
                raise VhostPciError("start", f"machine {self.name}", cause, "see its console")
            self.receive(_SECOND_S)

    def start(self, *words: str) -> Job:
        """Start a command, its words as they are; a shell is `sh -c`."""
        self._next += 1
        job = self._jobs[self._next] = Job(self, self._next, words)
        self.send(id=job.number, run=list(words))
        return job

    def run(self, *words: str, timeout_s: float = 120.0, data: bytes = b"") -> str:
        """Run a command that has to succeed, with data as its input; what it printed.

        Raises:
            VhostPciError: Its status is not 0, or it does not end in time.
        """
        job = self.start(*words)
        job.feed(data)
        if job.wait(timeout_s) != 0:
            raise job.failure(f"ended with status {job.status}")
        return job.output.decode(errors="replace")

    def shell(self, script: str, timeout_s: float = 120.0) -> str:
        """`run` of a shell script; it ends at the first command that fails."""
        return self.run("sh", "-ec", script, timeout_s=timeout_s)

    def send(self, **message: object) -> None:
        """One message to the agent: now as much as it takes, the rest while we `receive`.

        Waiting here for an agent that waits for us to take its output would never end.
        """
        self._outgoing += json.dumps(message).encode() + b"\n"
        self._flush()

    @property
    def sending(self) -> bool:
        """Whether there is more to send, once the connection is writable."""
        return bool(self._outgoing)

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            return
        except OSError as error:
            raise self._gone(errno_text(error)) from error

    def receive(self, timeout_s: float) -> None:
        """Wait for news of the jobs, and tell them; go on sending."""
        writers = [self._socket] if self._outgoing else []
        readable, writable, _ = select.select([self._socket], writers, [], timeout_s)
        if writable:
            self._flush()
        if not readable:
            return
        try:
            data = self._socket.recv(1 << 18)
        except OSError as error:
            raise self._gone(errno_text(error)) from error
        if not data:
            raise self._gone("it has ended")
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, message: dict[str, Any]) -> None:
        if "hello" in message:
            self._hello = message["hello"]
            return
        job = self._jobs.get(message["id"])
        if job is None:
            return
        if "exit" in message:
            job.status = message["exit"]
            del self._jobs[job.number]
        else:
            data = base64.b64decode(message["output"])
            if job.listener is not None:
                job.listener(message["stream"], data)
            elif message["stream"] == 1:
                job.output += data
            else:
                job.errors += data

    def _gone(self, cause: str) -> VhostPciError:
        return VhostPciError("reach", f"machine {self.name}", cause, "see its console")

    def close(self) -> None:
        """Twice is fine."""
        self._socket.close()


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
