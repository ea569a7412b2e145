"""The vfio-user server: accepts clients, negotiates VERSION, and lets one at a time attach."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from typing import TYPE_CHECKING, Any

from driver.state_area import PAGE_SIZE
from guest.vfio_user_abi import (
    DYNAMIC_WINDOWS,
    EVENTS,
    MAJOR,
    MINOR,
    VHOST_PCI,
    Command,
    Version,
    WireError,
)
from guest.vfio_user_wire import (
    Limits,
    pack_error,
    pack_reply,
    pack_version,
    unpack_version,
    wants,
)
from tools.device.dma_table import DMA_MAPS_MAX
from tools.device.vfio_user_connection import (
    DATA_SIZE_MAX,
    REQUEST_FDS_MAX,
    BadSizeError,
    Connection,
    ConnectionLostError,
)
from tools.device.vfio_user_session import Session

if TYPE_CHECKING:
    import socket

    from tools.device.function import VhostPciDevice
    from tools.device.vfio_user_connection import Message

log = logging.getLogger(__name__)

VERSION_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 8
ACCEPT_RETRY_S = 0.1


class VfioUserServer:
    """Serves a device on a listening socket. Thread rule: the event loop's.

    Args:
        device: The function that clients attach to.
        listener: Listening; stays the caller's.
    """

    def __init__(self, device: VhostPciDevice, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._device = device
        self._listener = listener
        self._session: Session | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients = 0
        self._refused_clients = 0

    async def serve(self) -> None:
        """Accept for ever; cancellation sends all clients away."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._listener)
                except OSError as error:  # no descriptor left: what is attached goes on
                    log.warning("vfio-user: cannot accept: %s", error.strerror)
                    await asyncio.sleep(ACCEPT_RETRY_S)
                    continue
                connection = Connection(sock)
                if len(self._tasks) >= CONNECTIONS_MAX:
                    connection.close()
                    continue
                task = loop.create_task(self._serve_connection(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve_connection(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(VERSION_TIMEOUT_S):
                message = await connection.receive()
            with message:
                answer = self._negotiate(connection, message)
            if isinstance(answer, Session):
                await self._attend(connection, answer)
            else:
                await connection.send(answer)
        except BadSizeError as error:
            with contextlib.suppress(ConnectionLostError):
                await connection.send(pack_error(error.header, errno.EINVAL))
        except (ConnectionLostError, TimeoutError) as error:
            log.debug("vfio-user: a connection ended before VERSION: %s", error)
        finally:
            connection.close()

    def _negotiate(self, connection: Connection, message: Message) -> Session | bytes:
        """The session of a client that may attach, or the error reply to the one that may not."""
        try:
            version, capabilities = self._check_version(message)
            limits = Limits.from_capabilities(capabilities)
        except (OSError, WireError) as error:
            self._refused_clients += 1
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            log.warning("vfio-user: client refused: %s", reason)
            code = (isinstance(error, OSError) and error.errno) or errno.EINVAL
            return pack_error(message.header, code)
        dynamic, events = (wants(capabilities, each) for each in (DYNAMIC_WINDOWS, EVENTS))
        ours = _our_capabilities(dynamic=dynamic, events=events)
        payload = pack_version(ours, minor=min(version.minor, MINOR))
        greeting = pack_reply(message.header, payload)
        self._session = Session(connection, self._device, limits, greeting)
        self._device.attach(self._session.end, dynamic=dynamic, events=events)
        return self._session

    def _check_version(self, message: Message) -> tuple[Version, dict[str, Any]]:
        header = message.header
        if header.command != Command.VERSION or header.flags or message.fds or message.truncated:
            raise OSError(errno.EINVAL, f"command {header.command} before VERSION")
        version, capabilities = unpack_version(message.payload)
        if version.major != MAJOR:
            raise OSError(errno.EINVAL, f"it speaks version {version.major}, we speak {MAJOR}")
        if self._session is not None:
            raise OSError(errno.EBUSY, "another client is attached")
        return version, capabilities

    async def _attend(self, connection: Connection, session: Session) -> None:
        self._clients += 1
        name = f"client of process {connection.peer_pid()}"
        log.info("vfio-user: %s attached", name)
        reason = "the device ends"
        try:
            reason = await session.run()
        finally:
            self._session = None
            self._device.detach()
            log.info("vfio-user: %s detached: %s", name, reason)

    def describe(self) -> dict[str, Any]:
        """Counters, for the host's display."""
        session = self._session
        return {
            "clients": self._clients,
            "refused_clients": self._refused_clients,
            "requests": session.requests if session else 0,
            "refused_requests": session.refused if session else 0,
            "dma_maps": session.dma_maps if session else 0,
        }


def _our_capabilities(*, dynamic: bool, events: bool) -> dict[str, Any]:
    """What we take. Short: QEMU has room for 214 bytes of VERSION reply, header included."""
    ours: dict[str, Any] = {
        "max_msg_fds": REQUEST_FDS_MAX,
        "max_data_xfer_size": DATA_SIZE_MAX,
        "max_dma_maps": DMA_MAPS_MAX,
        "pgsizes": PAGE_SIZE,
    }
    wanted = {DYNAMIC_WINDOWS: dynamic, EVENTS: events}
    extensions = {name: True for name, is_wanted in wanted.items() if is_wanted}
    return ours | ({VHOST_PCI: extensions} if extensions else {})
