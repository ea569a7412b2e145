"""QEMU's monitor protocol (docs/interop/qmp-spec of QEMU), one command at a time."""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEOUT_S = 120.0  # a machine restored from a file on a busy host answers late


class Qmp:
    """A monitor. Thread rule: one thread.

    Args:
        name: The machine's, for messages.
        connected: The connection, owned from now on. QEMU need not be up yet.

    Raises:
        VhostPciError: QEMU did not greet: what it says why is on its stderr.
    """

    def __init__(self, name: str, connected: socket.socket) -> None:
        self._name = name
        self._socket = connected
        self._received = b""
        self._events: deque[dict[str, Any]] = deque(maxlen=1000)
        try:
            self._message(time.monotonic() + _TIMEOUT_S)
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        """What the command returns; underscores of argument names become hyphens.

        Raises:
            VhostPciError: QEMU refused, with its words, or is gone.
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.execute_named(command, named)

    def give(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor, which it then knows by that name.

        Raises:
            VhostPciError: As of `execute`.
        """
        self.execute_named("getfd", {"fdname": name}, [fd])

    def execute_named(
        self, command: str, arguments: dict[str, object], descriptors: Sequence[int] = ()
    ) -> Any:  # noqa: ANN401
        """As `execute`, for argument names that Python cannot say; descriptors go with it."""
        request = json.dumps({"execute": command, "arguments": arguments}) + "\n"
        try:
            first = socket.send_fds(self._socket, [request.encode()], descriptors)
            self._socket.sendall(request.encode()[first:])
        except OSError as error:
            raise VhostPciError("ask", f"QEMU of {self._name}", errno_text(error)) from error
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            message = self._message(deadline)
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                cause = str(message["error"]["desc"])
                raise VhostPciError(command, f"at QEMU of {self._name}", cause)
            elif "return" in message:
                return message["return"]

    def wait_event(self, event: str, timeout_s: float, **data: object) -> None:
        """Return once QEMU has said event with this data, now or earlier; forget it then.

        Raises:
            VhostPciError: It did not in time, or is gone.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            for seen in tuple(self._events):
                facts = seen.get("data", {})
                if seen["event"] == event and all(facts.get(k) == data[k] for k in data):
                    self._events.remove(seen)
                    return
            message = self._message(deadline)
            if "event" in message:
                self._events.append(message)

    def _message(self, deadline: float) -> dict[str, Any]:
        """The next one."""
        while b"\n" not in self._received:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([self._socket], [], [], left_s)[0]:
                cause = "it does not answer in time"
                raise VhostPciError("ask", f"QEMU of {self._name}", cause)
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise VhostPciError("ask", f"QEMU of {self._name}", errno_text(error)) from error
            if not data:
                raise VhostPciError("ask", f"QEMU of {self._name}", "it has ended")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Twice is fine."""
        self._socket.close()
