"""`vhost-pci-lab up`'s process: holds a picture, and does what the other commands ask.

A command connects to its socket and writes JSON objects, a line each; so does the keeper:

    {"do": "status"}                               one object
    {"do": "down"}                                 one empty object, once all has ended
    {"do": "exec", "vm": NAME, "words": [...]}     {"output": BASE64, "stream": 1 or 2} ...,
                                                   {"exit": STATUS}
      {"input": BASE64}, {"signal": NUMBER}        meanwhile, from the command; empty: end of input

A refusal is {"error": TEXT}. A command that goes away takes what it runs in a machine with it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError
from tools.lab import prepare
from tools.lab.nic import Nic
from tools.lab.picture import Picture

if TYPE_CHECKING:
    from tools.lab.agent import Agent, Job
    from tools.lab.vm import Vm

_log = logging.getLogger("tools.lab")

SOCKET = "keeper.sock"
LOG = "keeper.log"
READY = "the lab is up"
_LOOK_S = 0.5
_LISTEN_TIMEOUT_S = 5.0  # all others wait meanwhile
_MESSAGE_MAX = 1 << 20


class Session:
    """One command's connection."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.job: Job | None = None
        self.lost = False
        self._received = b""

    def messages(self) -> list[dict[str, Any]] | None:
        """What has come, read now; None if the command has gone or talks nonsense."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        if not data or len(self._received) > _MESSAGE_MAX:
            return None
        try:
            found = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return found if all(isinstance(each, dict) for each in found) else None

    def say(self, **message: object) -> None:
        """One object to the command; one that has gone, or does not listen for long, is lost."""
        try:
            if not self.lost:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.lost = True

    def watch(self, job: Job) -> None:
        """Pass on what the job says, from now on."""
        self.job = job
        job.listener = lambda stream, data: self.say(
            output=base64.b64encode(data).decode(), stream=stream
        )

    def close(self) -> None:
        """What still runs for it is ended."""
        if self.job is not None and self.job.status is None:
            with contextlib.suppress(VhostPciError):
                self.job.signal(signal.SIGKILL)
        self.socket.close()


class Keeper:
    """Serves commands until one says down, or a signal does. Thread rule: the main thread.

    Args:
        picture: With device server, VM1 and VM2 up; stays the caller's.
        listener: The socket to accept commands at; stays the caller's.
    """

    def __init__(self, picture: Picture, listener: socket.socket) -> None:
        self._picture = picture
        self._listener = listener
        self._machines: dict[str, Vm] = {
            "vm1": picture.vm1,
            "vm2": picture.vm2,
            "outside": picture.outside,
        }
        self._plugged = False
        self._down = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        for vm in self._machines.values():
            self._selector.register(vm.agent, selectors.EVENT_READ, vm)

    def serve(self) -> None:
        """Until the end."""
        look_at = 0.0
        try:
            while not self._down:
                if time.monotonic() >= look_at:
                    self._follow_vm1()
                    look_at = time.monotonic() + _LOOK_S
                for vm in self._machines.values():
                    more = selectors.EVENT_WRITE if vm.agent.sending else 0
                    self._selector.modify(vm.agent, selectors.EVENT_READ | more, vm)
                for key, _ in self._selector.select(_LOOK_S):
                    self._handle(key.fileobj, key.data)
                self._tell_ends()
        finally:
            for key in tuple(self._selector.get_map().values()):
                if isinstance(key.data, Session):
                    key.data.close()
            self._selector.close()

    def _handle(self, source: object, data: object) -> None:
        if source is self._listener:
            connected, _ = self._listener.accept()
            connected.settimeout(_LISTEN_TIMEOUT_S)
            session = Session(connected)
            self._selector.register(connected, selectors.EVENT_READ, session)
        elif isinstance(data, Session):
            messages = data.messages()
            if messages is None:
                data.lost = True
            for message in messages or ():
                self._obey(data, message)
        else:
            for name, vm in tuple(self._machines.items()):
                if vm is data:
                    self._hear(name, vm)

    def _hear(self, name: str, vm: Vm) -> None:
        """A machine's agent has something to say, or is gone."""
        try:
            vm.agent.receive(0)
        except VhostPciError:
            _log.info("%s has ended", name)
            self._selector.unregister(vm.agent)
            del self._machines[name]
            vm.close()
            for session in self._sessions():
                if session.job is not None and session.job.agent is vm.agent:
                    session.job = None
                    session.say(error=f"{name} has ended")

    def _sessions(self) -> list[Session]:
        values = self._selector.get_map().values()
        return [key.data for key in values if isinstance(key.data, Session)]

    def _tell_ends(self) -> None:
        for session in self._sessions():
            if session.lost:
                self._selector.unregister(session.socket)
                session.close()
                continue
            if session.job is not None and session.job.status is not None:
                session.say(exit=session.job.status)
                session.job = None

    def _obey(self, session: Session, message: dict[str, Any]) -> None:
        """Do what a command asks."""
        job = session.job
        try:
            match message:
                case {"do": "status"}:
                    session.say(**self._status())
                case {"do": "down"}:
                    self._down = True
                case {"do": "exec", "vm": str(name), "words": [str(), *_] as words}:
                    session.watch(self._agent(name).start(*(str(word) for word in words)))
                case {"input": str(data)} if job is not None:
                    job.agent.send(id=job.number, input=data)
                case {"signal": int(number)} if job is not None:
                    job.signal(number)
                case _:
                    pass  # input for a job that has just ended
        except VhostPciError as error:
            session.say(error=str(error))

    def _agent(self, name: str) -> Agent:
        vm = self._machines.get(name)
        if vm is None:
            names = ", ".join(self._machines)
            raise VhostPciError("run a command in", name, f"the machines that run are {names}")
        return vm.agent

    def _status(self) -> dict[str, object]:
        device = self._picture.device
        machines = {
            name: {"pid": vm.process.pid, "memory_mib": vm.hardware.memory_mib}
            for name, vm in self._machines.items()
        }
        accelerator = self._picture.vm2.hardware.accelerator
        state: object = None
        with contextlib.suppress(VhostPciError):
            state = device.state()
        return {
            "directory": str(self._picture.directory),
            "accelerator": accelerator,
            "machines": machines,
            "plugged": self._plugged,
            "device": state,
        }

    def _follow_vm1(self) -> None:
        """The function is in VM2 while VM1's driver runs, and only then."""
        if "vm2" not in self._machines:
            return
        try:
            wanted = self._picture.device.vm1_is_up()
        except VhostPciError as error:
            if self._plugged:
                _log.info("%s", error)
            wanted = False
        try:
            if wanted and not self._plugged:
                address = self._picture.plug()
                self._plugged = True
                _log.info("VM1's driver is up: plugged the function into VM2, %s", address)
            elif self._plugged and not wanted:
                self._plugged = False
                self._picture.unplug()
                _log.info("VM1's driver is gone: unplugged the function from VM2")
        except VhostPciError as error:
            _log.info("%s", error)


def main() -> None:
    """Bring the lab up below the directory in argv[1], serve it, take it down.

    argv[2] is VM1's network card, argv[3] a QEMU of the user's.
    """
    directory, nic = Path(sys.argv[1]), Nic.parse(sys.argv[2])
    qemu = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(directory / SOCKET))
            stack.callback((directory / SOCKET).unlink)
            listener.listen()
            templates, package = prepare.prepare(prepare.Steps(_log.info), qemu)
            picture = stack.enter_context(Picture(templates, package, directory, nic=nic))
            picture.start_device()
            _log.info("the device server runs; starting the machines")
            picture.start_vm1()
            picture.start_vm2()
            times_s = (picture.vm1.restored_in_s, picture.vm2.restored_in_s)
            _log.info("VM1 was restored in %.1f s, VM2 in %.1f s", *times_s)
            keeper = Keeper(picture, listener)
            _log.info(READY)
            keeper.serve()
    except VhostPciError as error:
        _log.info("vhost-pci-lab: %s", error)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
