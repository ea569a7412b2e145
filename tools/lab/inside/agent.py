"""The lab's agent inside a machine: runs commands for the host, over a virtio-serial port.

Both ways, one JSON object a line:

    host -> agent    {"hello": N, "name": HOSTNAME, "time_s": SECONDS, "random": BASE64}
                                                        who the machine is from now on, and when;
                                                        answered by {"hello": N}
                     {"id": N, "run": [WORD...]}        start a command; ids are the host's
                     {"id": N, "input": BASE64}         for its stdin; empty: end of file
                     {"id": N, "signal": NUMBER}        to its process group
                     {"program": NAME, "main": MODULE, "needs": {WORD: [MODULE...]}}
                                                        NAME is a Python program: to be begun with
                                                        its modules imported, its first word's too
    agent -> host    {"id": N, "output": BASE64, "stream": 1 or 2}
                     {"id": N, "exit": STATUS}          as in a shell: 128 + signal; the last word

Standard library only: it starts before anything of ours is there.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib
import json
import os
import selectors
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

_PORT = "agent"
_CHUNK = 1 << 16
_RETRY_S = 0.05
_DESCRIPTORS = 1024


class Program:
    """One in Python that begins at once: what it imports is imported here, the first time.

    Python takes long to start where it is emulated.

    Args:
        module: Has its `main`, which reads sys.argv.
        needs: By the first of its words, modules that it imports itself then.
    """

    def __init__(self, module: str, needs: dict[str, list[str]]) -> None:
        self._module = module
        self._needs = needs

    def load(self, words: list[str]) -> Callable[[], None]:
        """Its main; words are what comes behind its name. ImportError: there is no such module."""
        importlib.invalidate_caches()
        main: Callable[[], None] = importlib.import_module(self._module).main
        for name in self._needs.get(" ".join(words[:1]), ()):
            importlib.import_module(name)
        gc.freeze()  # a child that looked through it for garbage would copy it
        return main


# The lab's own; others are told of.
_PROGRAMS = {
    str(Path(__file__).with_name(f"{name}.py")): Program(name, {})
    for name in ("frames", "transfer")
}


class Fork:
    """A Python program as a child of ours that was forked; what Command has of a Popen.

    Args:
        main: The program; it reads sys.argv.
        words: That.
    """

    def __init__(self, main: Callable[[], None], words: list[str]) -> None:
        (stdin, to), (of_stdout, stdout), (of_stderr, stderr) = (os.pipe() for _ in range(3))
        self.pid = os.fork()
        if not self.pid:
            _become(main, words, (stdin, stdout, stderr))
        for theirs in (stdin, stdout, stderr):
            os.close(theirs)
        self.stdin = os.fdopen(to, "wb", buffering=0)
        self.stdout = os.fdopen(of_stdout, "rb", buffering=0)
        self.stderr = os.fdopen(of_stderr, "rb", buffering=0)

    def wait(self) -> int:
        """Its exit status; a signal's number is negative."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _become(main: Callable[[], None], words: list[str], streams: tuple[int, int, int]) -> NoReturn:
    status = 1
    try:
        os.setsid()
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.closerange(3, _DESCRIPTORS)  # else no other command's input would end before we do
        sys.argv = words
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
    finally:
        os._exit(status)


def _fork(words: list[str]) -> Fork | None:
    """The command as a fork of ours, if it is a program that we know."""
    argv = words[1:] if words[0] == "python3" else words
    program = _PROGRAMS.get(" ".join(argv[:1]))
    if program is None:
        return None
    try:
        return Fork(program.load(argv[1:]), argv)
    except ImportError:
        return None  # it tells that better itself


class Command:
    """One running command and the host's number for it."""

    def __init__(self, number: int, words: list[str]) -> None:
        self.number = number
        self.process: Fork | subprocess.Popen[bytes]
        forked = _fork(words)
        if forked is not None:
            self.process = forked
        else:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            )
        self.pidfd = os.pidfd_open(self.process.pid)
        self.pending = bytearray()  # input it has not taken yet
        self.input_ended = False

    def feed(self) -> bool:
        """Give it what input it takes now; whether there is more. One that has closed it gets none.

        A command that does not read must not keep the agent from the others.
        """
        stdin = self.process.stdin
        if stdin is None or stdin.closed:
            return False
        try:
            while self.pending:
                del self.pending[: os.write(stdin.fileno(), self.pending)]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self.pending.clear()
        return False

    def signal(self, number: int) -> None:
        """Signal it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Reaped already: let go of its descriptors."""
        os.close(self.pidfd)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Agent:
    """All of it: one port, any number of commands at once, one thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._received = b""
        self._commands: dict[int, Command] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(port, selectors.EVENT_READ)

    def serve(self) -> None:
        """Never returns."""
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._read_port()
                    continue
                command, stream = key.data
                if command.number not in self._commands:
                    continue
                if key.fileobj is command.process.stdin:
                    self._feed(command)
                elif stream:
                    self._pass_output(key.fd, command, stream)
                else:
                    self._end(command)

    def _say(self, **message: int | str) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._port, data) :]

    def _read_port(self) -> None:
        data = os.read(self._port, 1 << 20)
        if not data:  # no host: half a line of the last one means nothing to the next
            self._received = b""
            time.sleep(_RETRY_S)
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, message: dict[str, Any]) -> None:
        if "hello" in message:
            socket.sethostname(message["name"])
            time.clock_settime(time.CLOCK_REALTIME, message["time_s"])
            Path("/dev/urandom").write_bytes(base64.b64decode(message["random"]))
            self._say(hello=message["hello"])
        elif "program" in message:
            _PROGRAMS[message["program"]] = Program(message["main"], message["needs"])
        elif "run" in message:
            self._start(message["id"], message["run"])
        elif command := self._commands.get(message["id"]):
            if "input" in message:
                data = base64.b64decode(message["input"])
                command.pending += data
                command.input_ended |= not data
                self._feed(command)
            else:
                command.signal(message["signal"])

    def _feed(self, command: Command) -> None:
        """Pass on its input, and come back when it takes more."""
        stdin = command.process.stdin
        if stdin is None or stdin.closed:
            return
        more = command.feed()
        watched = stdin.fileno() in self._selector.get_map()
        if more and not watched:
            self._selector.register(stdin, selectors.EVENT_WRITE, (command, 0))
        elif not more:
            if watched:
                self._selector.unregister(stdin)
            if command.input_ended:
                stdin.close()

    def _start(self, number: int, words: list[str]) -> None:
        try:
            command = Command(number, words)
        except OSError as error:
            text = f"{words[0]}: {error.strerror}\n".encode()
            self._say(id=number, output=base64.b64encode(text).decode(), stream=2)
            self._say(id=number, exit=127)
            return
        self._commands[number] = command
        if command.process.stdin is not None:
            os.set_blocking(command.process.stdin.fileno(), False)
        self._selector.register(command.pidfd, selectors.EVENT_READ, (command, 0))
        for stream, pipe in ((1, command.process.stdout), (2, command.process.stderr)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe, selectors.EVENT_READ, (command, stream))

    def _pass_output(self, fd: int, command: Command, stream: int) -> bool:
        """Pass on one piece; whether there may be more."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(fd)
            return False
        self._say(id=command.number, output=base64.b64encode(data).decode(), stream=stream)
        return True

    def _end(self, command: Command) -> None:
        """The command ended: pass on what it said. Children it left behind keep no pipe open."""
        status = command.process.wait()
        for stream, pipe in ((1, command.process.stdout), (2, command.process.stderr)):
            if pipe is None or pipe.fileno() not in self._selector.get_map():
                continue
            while self._pass_output(pipe.fileno(), command, stream):
                pass
            if pipe.fileno() in self._selector.get_map():
                self._selector.unregister(pipe)
        self._selector.unregister(command.pidfd)
        stdin = command.process.stdin
        if stdin is not None and not stdin.closed and stdin.fileno() in self._selector.get_map():
            self._selector.unregister(stdin)
        command.close()
        del self._commands[command.number]
        self._say(id=command.number, exit=128 - status if status < 0 else status)


def main() -> None:
    """Find the port, and serve it."""
    for program in _PROGRAMS.values():
        program.load([])
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == _PORT:
                Agent(os.open(f"/dev/{name.parent.name}", os.O_RDWR)).serve()
        time.sleep(_RETRY_S)


if __name__ == "__main__":
    main()
