"""The connection of a vfio-user client: one request at a time, and what the server may answer.

The server is not trusted (vfio-user.rst, "Security Considerations"). What breaks the protocol, or
comes too late, cannot be told from the next answer on a stream, so the connection is then given up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Never

from guest.errors import DeviceGoneError, UsageError, VhostPciError, errno_text
from guest.vfio_user_abi import (
    HEADER_SIZE,
    MESSAGE_FDS_MAX,
    SOCKET_PATH_MAX,
    Command,
    DmaAccess,
    Header,
    HeaderFlag,
    WireError,
)
from guest.vfio_user_wire import Limits, pack_error, pack_request

if TYPE_CHECKING:
    from collections.abc import Sequence

# What we tell the server that we take; its own requests carry no more than DMA_WRITE's data.
LIMITS = Limits(max_msg_fds=MESSAGE_FDS_MAX)
_SERVER_REQUEST_MAX = HEADER_SIZE + DmaAccess.LAYOUT.size + LIMITS.max_data_xfer_size
_ANCILLARY_SPACE = socket.CMSG_SPACE(MESSAGE_FDS_MAX * struct.calcsize("i"))


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


class VfioUserChannel:
    """A connected socket to a vfio-user server.

    Thread rule: one thread at a time.

    Args:
        path: Of the server's socket, at most 107 bytes.
        timeout_s: For each request, from its first byte sent to its answer's last.

    Raises:
        UsageError: The path cannot be a socket's.
        VhostPciError: Nobody can be reached there.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        self.name = f"vfio-user:{path}"
        self._timeout_s = timeout_s
        self._next_id = 0
        self._lost = ""
        with contextlib.ExitStack() as undo:
            self._socket = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            self._socket.settimeout(timeout_s)
            self._connect(path)
            self._hangup = undo.enter_context(select.epoll())
            # EPOLLHUP comes unasked; a request of the server makes nothing readable here.
            self._hangup.register(self._socket, select.EPOLLRDHUP)
            undo.pop_all()

    def _connect(self, path: str) -> None:
        encoded = os.fsencode(path)
        if not encoded or b"\0" in encoded:
            raise UsageError("attach to", self.name, "this is no socket's path")
        if len(encoded) > SOCKET_PATH_MAX:
            raise UsageError(
                "attach to",
                self.name,
                f"the path has {len(encoded)} bytes, a socket's at most {SOCKET_PATH_MAX}",
                "use a shorter or a relative path",
            )
        try:
            self._socket.connect(encoded)
        except OSError as error:
            cause, remedy = _connect_failure(path, error)
            raise VhostPciError("attach to", self.name, cause, remedy) from error

    def fileno(self) -> int:
        """A descriptor that becomes readable when the connection is lost, and for nothing else."""
        return self._hangup.fileno()

    def request(
        self,
        operation: str,
        command: Command,
        payload: bytes = b"",
        *,
        fds: Sequence[int] = (),
        reply_max: int = 0,
        reply_fds_max: int = 0,
    ) -> tuple[bytes, list[int]]:
        """Send one request and wait for its answer.

        Args:
            operation: What this is for, as a verb phrase before the function's name.
            command: Of the protocol.
            payload: After the header.
            fds: To go with it; they stay the caller's.
            reply_max: Bytes of payload that the answer may have.
            reply_fds_max: Descriptors that the answer may have.

        Returns:
            The answer's payload and its descriptors, which the caller now owns.

        Raises:
            VhostPciError: The server refused, broke the protocol or did not answer in time.
            DeviceGoneError: The connection is lost, now or since an earlier request.
        """
        if self._lost:
            raise DeviceGoneError(operation, self.name, self._lost)
        self._next_id = (self._next_id + 1) & 0xFFFF
        message = pack_request(self._next_id, command, payload)
        expected = Header(self._next_id, command, HEADER_SIZE + reply_max, HeaderFlag.REPLY)
        deadline = time.monotonic() + self._timeout_s
        received: list[int] = []
        with contextlib.ExitStack() as undo:
            undo.callback(lambda: close_fds(received))
            try:
                self._send(message, fds, deadline)
                header, answer = self._receive_reply(expected, received, reply_fds_max, deadline)
            except TimeoutError:
                self._give_up(
                    operation,
                    f"no answer within {self._timeout_s:g} s",
                    "look at the server, and whether another process is attached to it",
                )
            except WireError as error:
                self._give_up(operation, f"the server breaks the protocol: {error}")
            except EOFError as error:
                self._lose(operation, str(error))
            except OSError as error:
                self._send_or_receive_failed(operation, error)
            if header.flags & HeaderFlag.ERROR:
                raise _refusal(operation, self.name, header.error)
            undo.pop_all()
        return answer, received

    def _send(self, message: bytes, fds: Sequence[int], deadline: float) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
        self._arm(deadline)
        sent = self._socket.sendmsg([message], rights if fds else [], socket.MSG_NOSIGNAL)
        while sent < len(message):
            self._arm(deadline)
            sent += self._socket.send(message[sent:], socket.MSG_NOSIGNAL)

    def _receive_reply(
        self, expected: Header, fds: list[int], fds_max: int, deadline: float
    ) -> tuple[Header, bytes]:
        """The answer to the request, after refusing what the server asks in between.

        Its descriptors go to fds as they come, so that the caller can close them whatever happens.
        """
        while True:
            header = Header.unpack(self._receive(HEADER_SIZE, fds, fds_max, deadline))
            if header.is_reply():
                break
            self._refuse_request(header, fds, deadline)
        if (header.message_id, header.command) != (expected.message_id, expected.command):
            raise WireError(
                f"an answer to command {header.command} (id {header.message_id}) where command "
                f"{expected.command} (id {expected.message_id}) was asked"
            )
        largest = HEADER_SIZE if header.flags & HeaderFlag.ERROR else expected.size
        if not HEADER_SIZE <= header.size <= largest:
            raise WireError(f"an answer of {header.size} bytes, at most {largest} expected")
        return header, self._receive(header.size - HEADER_SIZE, fds, fds_max, deadline)

    def _refuse_request(self, header: Header, fds: list[int], deadline: float) -> None:
        """DMA_READ and DMA_WRITE: this process's memory is reached by descriptor or not at all."""
        if header.flags & ~(HeaderFlag.NO_REPLY | HeaderFlag.ERROR):
            raise WireError(f"a message with flags {header.flags:#x}")
        if not HEADER_SIZE <= header.size <= _SERVER_REQUEST_MAX:
            raise WireError(f"a request of {header.size} bytes")
        self._receive(header.size - HEADER_SIZE, fds, 0, deadline)
        if not header.flags & HeaderFlag.NO_REPLY:
            self._send(pack_error(header, errno.ENOTSUP), (), deadline)

    def _receive(self, size: int, fds: list[int], fds_max: int, deadline: float) -> bytes:
        """Exactly size bytes; descriptors that come with them are appended to fds."""
        data = bytearray()
        while len(data) < size:
            self._arm(deadline)
            chunk, ancillary, flags, _ = self._socket.recvmsg(
                size - len(data), _ANCILLARY_SPACE, socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, rights in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    count = len(rights) // struct.calcsize("i")
                    fds += struct.unpack_from(f"{count}i", rights)
            if flags & socket.MSG_CTRUNC:
                raise WireError(
                    f"descriptors were lost: more than {MESSAGE_FDS_MAX}, or too many files open"
                )
            if len(fds) > fds_max:
                raise WireError(
                    f"{len(fds)} descriptors with an answer, at most {fds_max} expected"
                )
            if not chunk:
                raise EOFError("the server closed the connection before its answer was complete")
            data += chunk
        return bytes(data)

    def _arm(self, deadline: float) -> None:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining_s)

    def _send_or_receive_failed(self, operation: str, error: OSError) -> Never:
        if error.errno in {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN}:
            self._lose(operation, "the server closed the connection")
        if error.errno == errno.EBADF:  # one of the caller's: nothing was sent
            raise VhostPciError(operation, self.name, errno_text(error)) from error
        self._give_up(operation, errno_text(error))

    def _lose(self, operation: str, cause: str) -> Never:
        self._hang_up(cause)
        raise DeviceGoneError(operation, self.name, cause, "start the server again, and re-attach")

    def _give_up(self, operation: str, cause: str, remedy: str = "") -> Never:
        self._hang_up(f"the connection was given up: {cause}")
        raise VhostPciError(operation, self.name, cause, remedy)

    def _hang_up(self, cause: str) -> None:
        """Tell the server, and whoever polls fileno()."""
        self._lost = cause
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Disconnect. Twice is fine."""
        self._lost = self._lost or "it was closed"
        self._hangup.close()
        self._socket.close()


def _connect_failure(path: str, error: OSError) -> tuple[str, str]:
    """Cause and remedy."""
    if isinstance(error, BlockingIOError | TimeoutError):
        return "the server accepts no connection", "another process may be attached: stop it"
    if error.errno == errno.ECONNREFUSED:
        if Path(path).is_socket():
            return "nobody listens", "start the server: the socket is an earlier one's"
        return "this is not a socket", "give the path that the server was started with"
    remedies = {
        errno.ENOENT: "start the server, or give the path that it was started with",
        errno.EACCES: "run as a user who may write to the socket",
        errno.EPROTOTYPE: "give the path of a vfio-user server's socket",
    }
    return errno_text(error), remedies.get(error.errno or 0, "")


def _refusal(operation: str, name: str, error: int) -> VhostPciError:
    if error == errno.EBUSY:
        return VhostPciError(operation, name, "in use by another process", "stop that one first")
    reason = os.strerror(error) if 0 < error < 4096 else ""
    cause = f"the server refuses ({reason})" if reason else "the server refuses, without a reason"
    return VhostPciError(operation, name, cause)
