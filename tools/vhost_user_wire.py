"""Messages with file descriptors on a vhost-user socket, and the blocking way to move them.

Reads a message with exact bounds: the header, then as many bytes as it announces and never more, so
that no descriptor of the next message is received. A peer can make `receive` fail or wait until a
deadline; it cannot make it allocate more than the limit, nor leave a descriptor open.

Reference: QEMU's docs/interop/vhost-user.rst, "Message Specification".
"""

from __future__ import annotations

import array
import os
import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.closing import Closing
from tools import vhost_user_abi as abi

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ANCILLARY_BYTES = socket.CMSG_SPACE(abi.DESCRIPTORS_MAX * array.array("i").itemsize)


class WireError(Exception):
    """The peer broke the message format, or went away in the middle of a message.

    The stream cannot be used any further. The text goes on from "the peer", without a full stop.
    """


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Whoever holds a received one owns its descriptors.

    request: a Request, or a number that is none.
    flags: the header's, version bits included.
    truncated: descriptors were lost on the way (MSG_CTRUNC: this process may have no more of them).
    """

    request: int
    flags: int = abi.VERSION
    payload: bytes = b""
    fds: tuple[int, ...] = ()
    truncated: bool = False

    @property
    def need_reply(self) -> bool:
        """Whether the sender asks for an acknowledgement (REPLY_ACK)."""
        return bool(self.flags & abi.HeaderFlag.NEED_REPLY)

    @property
    def is_reply(self) -> bool:
        """Whether this answers an earlier message."""
        return bool(self.flags & abi.HeaderFlag.REPLY)

    def pack(self) -> bytes:
        """Header and payload as they go over the wire; the descriptors go beside them."""
        return abi.HEADER.pack(self.request, self.flags, len(self.payload)) + self.payload

    def reply(self, payload: bytes, fds: tuple[int, ...] = ()) -> Message:
        """The answer to this message."""
        return Message(self.request, abi.VERSION | abi.HeaderFlag.REPLY, payload, fds)


class Descriptors(Closing):
    """Owner of file descriptors: closes on leaving what nobody took."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def add(self, fd: int) -> None:
        """Own fd too."""
        self._fds.append(fd)

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._fds))

    def take(self, fd: int | None = None) -> int:
        """Hand fd, or the first, over to the caller."""
        return self._fds.pop(0 if fd is None else self._fds.index(fd))

    def close(self) -> None:
        """Close what is left. Twice is fine."""
        while self._fds:
            os.close(self._fds.pop())


class Assembler:
    """Makes one message of what recvmsg gave, without knowing how one waits for more.

    Call `read_from` until it returns the message. Owns the descriptors until then; `close` it on
    every path.
    """

    def __init__(self, payload_limit: int = abi.PAYLOAD_MAX) -> None:
        self._payload_limit = payload_limit
        self._data = bytearray()
        self._descriptors = Descriptors()
        self._truncated = False
        self._size = abi.HEADER.size

    @property
    def missing(self) -> int:
        """How many bytes to ask for next; more would run into the next message."""
        return self._size - len(self._data)

    @property
    def started(self) -> bool:
        """Whether something of the message has come."""
        return bool(self._data)

    def read_from(self, connection: socket.socket) -> Message | None:
        """One recvmsg; the message if it is complete.

        Raises:
            EOFError: The peer closed between two messages.
            WireError: It closed in the middle of one, or the header is none.
            OSError: The socket's, BlockingIOError and TimeoutError among them.
        """
        data, ancillary, flags, _ = connection.recvmsg(
            self.missing, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                for fd in fds:
                    self._descriptors.add(fd)
        self._truncated |= bool(flags & socket.MSG_CTRUNC)
        # What one recvmsg can bring is bounded, but a message may come in thousands of pieces.
        if len(self._descriptors) > abi.DESCRIPTORS_MAX:
            raise WireError(f"sent more than {abi.DESCRIPTORS_MAX} descriptors with a message")
        if not data:
            if self.started:
                raise WireError(f"closed {self.missing} bytes before a message's end")
            raise EOFError
        self._data += data
        if self.missing == 0 and self._size == abi.HEADER.size:
            self._judge_header()
        return self._finish() if self.missing == 0 else None

    def _judge_header(self) -> None:
        request, flags, size = abi.HEADER.unpack(self._data)
        if flags & abi.HEADER_VERSION_MASK != abi.VERSION:
            raise WireError(f"sent a message of version {flags & abi.HEADER_VERSION_MASK}, not 1")
        if flags & ~abi.HEADER_FLAGS_MASK:
            raise WireError(f"sent unknown header flags {flags:#x}")
        if size > self._payload_limit:
            raise WireError(
                f"announced {size} bytes for request {request}, more than {self._payload_limit}"
            )
        self._size += size

    def _finish(self) -> Message:
        request, flags, _ = abi.HEADER.unpack_from(self._data)
        fds = tuple(self._descriptors.take() for _ in range(len(self._descriptors)))
        payload = bytes(self._data[abi.HEADER.size :])
        return Message(request, flags, payload, fds, self._truncated)

    def close(self) -> None:
        """Close the descriptors of an unfinished message."""
        self._descriptors.close()


def receive(connection: socket.socket, payload_limit: int = abi.PAYLOAD_MAX) -> Message | None:
    """The next message from a blocking socket, or None where the peer closed between two.

    The caller owns the message's descriptors. The socket's own timeout bounds each wait.

    Raises:
        WireError: The message is malformed or incomplete.
        OSError: The socket's, TimeoutError among them.
    """
    assembler = Assembler(payload_limit)
    try:
        message = None
        while message is None:
            message = assembler.read_from(connection)
    except EOFError:
        return None
    finally:
        assembler.close()
    return message


def send(connection: socket.socket, message: Message) -> None:
    """Send all of a message over a blocking socket; its descriptors stay the caller's.

    Raises:
        OSError: The socket's, TimeoutError among them.
    """
    data = memoryview(message.pack())
    while data:
        data = data[send_some(connection, message, data) :]


def pending(connection: socket.socket) -> bool:
    """Whether a read would return at once: data, or the peer's close."""
    return bool(_poll(connection, select.POLLIN))


def hung_up(connection: socket.socket) -> bool:
    """Whether the peer closed its end, whatever is still to be read."""
    return bool(_poll(connection, select.POLLRDHUP) & (select.POLLRDHUP | select.POLLHUP))


def _poll(connection: socket.socket, events: int) -> int:
    poll = select.poll()
    poll.register(connection, events)
    ready = poll.poll(0)
    return ready[0][1] if ready else 0


def send_some(connection: socket.socket, message: Message, data: memoryview) -> int:
    """One sendmsg of what is left of message; the descriptors go with the first byte."""
    ancillary = []
    if message.fds and len(data) == abi.HEADER.size + len(message.payload):
        fds = array.array("i", message.fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
    return connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
