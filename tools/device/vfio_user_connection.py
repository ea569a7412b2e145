"""One vfio-user client's socket: whole messages in, whole replies out, never for ever.

The client is not trusted: sizes are checked before anything is read, a message that was begun and a
reply that is not read have deadlines, and every descriptor that arrives has an owner at once.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Self

from guest.vfio_user_abi import HEADER_SIZE, Header, RegionAccess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

# What VERSION advertises, and what is enforced here.
REQUEST_FDS_MAX = 16
DATA_SIZE_MAX = 1 << 20
MESSAGE_SIZE_MAX = HEADER_SIZE + RegionAccess.LAYOUT.size + DATA_SIZE_MAX
MESSAGE_TIMEOUT_S = 5.0
RECEIVE_SIZE = 64 << 10


class ConnectionLostError(Exception):
    """The connection cannot go on; the text says why, for the log."""


class BadSizeError(ConnectionLostError):
    """A header's size is impossible, so the next message's beginning is not known."""

    def __init__(self, header: Header) -> None:
        super().__init__(f"a message of {header.size} bytes")
        self.header = header


class Message:
    """A request. Owns its descriptors until `take_fds`; leaving the context closes the rest.

    truncated: more descriptors came than REQUEST_FDS_MAX; the kernel closed those.
    """

    def __init__(self, header: Header, payload: bytes, fds: list[int], *, truncated: bool) -> None:
        self.header = header
        self.payload = payload
        self.fds = fds
        self.truncated = truncated

    def take_fds(self) -> list[int]:
        """The descriptors, which are the caller's from now on."""
        taken, self.fds = self.fds, []
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _close_all(self.take_fds())


class Connection:
    """Owns a connected stream socket. Thread rule: the event loop's; one task at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    def peer_pid(self) -> int:
        """The process that connected, by SO_PEERCRED: unix(7)."""
        size = struct.calcsize("iII")
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("iII", raw)[0])

    async def receive(self) -> Message:
        """Wait for a request, as long as it takes to begin; the caller leaves its context.

        Raises ConnectionLostError at its end, BadSizeError, and if it stalls half way.
        """
        await self._ready(read=True)
        fds: list[int] = []
        try:
            async with asyncio.timeout(MESSAGE_TIMEOUT_S):
                raw, truncated = await self._receive_header(fds)
                header = _checked(Header.unpack(raw))
                payload = await self._receive_exactly(header.size - HEADER_SIZE)
        except TimeoutError as error:
            _close_all(fds)
            raise ConnectionLostError("it stalled in the middle of a message") from error
        except BaseException:
            _close_all(fds)
            raise
        return Message(header, payload, fds, truncated=truncated)

    async def _receive_header(self, fds: list[int]) -> tuple[bytes, bool]:
        """A header's bytes, its descriptors appended to fds, and whether some did not fit."""
        raw, truncated = b"", False
        space = socket.CMSG_SPACE(REQUEST_FDS_MAX * 4)
        while len(raw) < HEADER_SIZE:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    HEADER_SIZE - len(raw), space, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await self._ready(read=True)
                continue
            except OSError as error:
                raise ConnectionLostError(os.strerror(error.errno or 0)) from error
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds += [fd for (fd,) in struct.iter_unpack("i", content)]
            truncated |= bool(flags & socket.MSG_CTRUNC) or len(fds) > REQUEST_FDS_MAX
            if not data:
                raise ConnectionLostError(
                    "it closed the connection in the middle of a message"
                    if raw
                    else "it closed the connection"
                )
            raw += data
        return raw, truncated

    async def _receive_exactly(self, size: int) -> bytes:
        """A payload. Plain recv: the kernel closes descriptors that come behind the header."""
        payload = bytearray()
        while len(payload) < size:
            try:
                data = self._socket.recv(min(size - len(payload), RECEIVE_SIZE))
            except BlockingIOError:
                await self._ready(read=True)
                continue
            except OSError as error:
                raise ConnectionLostError(os.strerror(error.errno or 0)) from error
            if not data:
                raise ConnectionLostError("it closed the connection in the middle of a message")
            payload += data
        return bytes(payload)

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a reply whole, borrowing fds. ConnectionLostError also if it is not read in time."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
        rest = memoryview(data)
        try:
            async with asyncio.timeout(MESSAGE_TIMEOUT_S):
                while rest:
                    try:
                        sent = self._socket.sendmsg([rest], rights if fds else [])
                    except BlockingIOError:
                        await self._ready(read=False)
                        continue
                    rest, fds = rest[sent:], ()
        except TimeoutError as error:
            raise ConnectionLostError("it does not read its replies") from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise ConnectionLostError("it closed the connection") from error
            raise ConnectionLostError(os.strerror(error.errno or 0)) from error

    async def _ready(self, *, read: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def set_ready() -> None:
            if not ready.done():
                ready.set_result(None)

        fd = self._socket.fileno()
        (loop.add_reader if read else loop.add_writer)(fd, set_ready)
        try:
            await ready
        finally:
            (loop.remove_reader if read else loop.remove_writer)(fd)

    def close(self) -> None:
        """Twice is fine."""
        self._socket.close()


def _checked(header: Header) -> Header:
    if not HEADER_SIZE <= header.size <= MESSAGE_SIZE_MAX:
        raise BadSizeError(header)
    return header


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
