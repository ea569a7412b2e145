"""The vhost-user side of the device: VM1's front-ends, one at a time, for ever.

Reference: QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from guest.errors import UsageError, errno_text
from guest.vfio_user_abi import SOCKET_PATH_MAX
from tools.device.backend_session import Session, disconnected
from tools.device.backend_state import FrontEndState
from tools.device.eventfd import signal_eventfd
from tools.device.memory_table import is_sealed
from tools.device.offer import Offer
from tools.unix_socket import UnixListener
from tools.vhost_user_abi import RING_INDEX_LIMIT, Feature, ProtocolFeature
from tools.vhost_user_asyncio import ready
from tools.vhost_user_wire import hung_up

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tools.device.backend_session import Publish
    from tools.device.commit_area import CommitArea
    from tools.device.vm1_state import Span, Vm1State

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where front-ends are met: a socket to listen at, or (connect) one to connect to."""

    path: Path
    connect: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `PATH` or `PATH,connect`.

        Raises:
            UsageError: It is neither, or no socket can have that path.
        """
        path, comma, option = text.partition(",")
        if not path or (comma and option != "connect"):
            raise UsageError("use", f"vhost-user socket '{text}'", "it is not PATH[,connect]")
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise UsageError("use", path, f"a socket's path has at most {SOCKET_PATH_MAX} bytes")
        return cls(Path(path), bool(comma))

    def __str__(self) -> str:
        return f"{self.path},connect" if self.connect else str(self.path)


class Backend:
    """Serves VM1's front-ends and publishes what they say of VM1.

    Thread rule: everything on the event loop's thread.

    Args:
        endpoint: Where to meet them.
        queue_pairs: How many queue pairs the device has, 1 to 128.
        publish: Called with each new state, one call at a time. Returns when the driver in VM2 has
            followed, or there is none, or it was declared dead; only then are descriptors of the
            former state closed and is VM1 answered. What it raises ends `serve`.
        commits: Where the driver leaves the positions of packed rings.
        timeout_s: For a half message, and for a front-end that does not take replies.
        offer: What VM1 may accept; everything there is, if None.

    Raises:
        UsageError: No front-end could name so many queue pairs.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        queue_pairs: int,
        publish: Publish,
        commits: CommitArea,
        *,
        timeout_s: float = TIMEOUT_S,
        offer: Offer | None = None,
    ) -> None:
        if not 1 <= queue_pairs <= RING_INDEX_LIMIT // 2:
            cause = f"vhost-user can name 1 to {RING_INDEX_LIMIT // 2}"
            raise UsageError("serve", f"{queue_pairs} queue pairs", cause)
        self._endpoint = endpoint
        self._queue_pairs = queue_pairs
        self._publish = publish
        self._commits = commits
        self._offer = offer or Offer()
        self._timeout_s = timeout_s
        self._listener: UnixListener | None = None
        self._session: Session | None = None
        self._counters: Counter[str] = Counter()

    @property
    def state(self) -> Vm1State:
        """The state published last."""
        return self._session.shown if self._session else disconnected(self._queue_pairs)

    def error(self, ring: int) -> None:
        """Tell VM1 that the ring is broken: by its error eventfd, if it gave one, and by status.

        virtio 1.3, 2.1.2: the device needs a reset; at vhost-user, the ring a stop at least.
        """
        if self._session and ring < len(self._session.front_end.rings):
            self._session.front_end.rings.rings[ring].broken = True
        if ring < len(self.state.rings) and self.state.rings[ring].error_fd >= 0:
            signal_eventfd(self.state.rings[ring].error_fd)

    def miss(self, spans: Iterable[Span]) -> None:
        """The driver lacks translations of these addresses: a new state will have the answer."""
        if self._session and self._session.front_end.translated:
            self._session.miss(spans)

    def open(self) -> None:
        """Listen, unless the endpoint is to be connected to. A dead server's socket is replaced.

        Raises:
            VhostPciError: The path is in use, or not to be had.
        """
        if self._endpoint.connect or self._listener:
            return
        listener = UnixListener(self._endpoint.path)
        listener.socket.setblocking(False)
        self._listener = listener

    def close(self) -> None:
        """Stop listening and remove the socket. Twice is fine; `serve` does it when it ends."""
        if self._listener:
            self._listener.close()
            self._listener = None

    async def serve(self) -> None:
        """Serve front-ends until cancelled. Then descriptors of the published state are closed.

        Raises:
            VhostPciError: It cannot listen.
        """
        self.open()
        try:
            while True:
                connection = await self._meet()
                try:
                    await self._converse(connection)
                finally:
                    connection.close()
                if self._endpoint.connect:
                    await asyncio.sleep(RETRY_S)
        finally:
            self.close()

    async def _meet(self) -> socket.socket:
        """The next front-end's connection."""
        waiting = False
        while True:
            try:
                if self._listener:
                    await ready(self._listener.socket)
                    return _accept(self._listener.socket)
                return _connect(self._endpoint.path)
            except BlockingIOError:
                continue  # it was gone before we looked
            except OSError as error:
                if not waiting:
                    logger.info("waiting for VM1 at %s: %s", self._endpoint, errno_text(error))
                waiting = True
                await asyncio.sleep(RETRY_S)

    async def _converse(self, connection: socket.socket) -> None:
        logger.info("VM1's front-end is connected at %s", self._endpoint)
        self._counters["connections"] += 1
        self._session = Session(
            connection,
            FrontEndState(self._queue_pairs, self._offer, self._commits),
            self._publish,
            self._counters,
            self._timeout_s,
        )
        guard = asyncio.create_task(self._turn_others_away(connection))
        try:
            await self._session.run()
        finally:
            self._session = None
            guard.cancel()
            await asyncio.wait([guard])  # and not `await guard`: that would hide our own cancel

    async def _turn_others_away(self, current: socket.socket) -> None:
        """Close further connections while the current front-end is there.

        Once it hung up, the next one stays in the backlog until everything was let go of.
        """
        said = False
        while self._listener:
            await ready(self._listener.socket)
            if hung_up(current):
                return
            try:
                _accept(self._listener.socket).close()
            except OSError:
                await asyncio.sleep(RETRY_S)  # no descriptor left, or it was gone already
                continue
            self._counters["turned_away"] += 1
            if not said:
                logger.warning("turned a second front-end away at %s", self._endpoint)
            said = True

    def describe(self) -> dict[str, object]:
        """What an operator wants to know, as JSON types."""
        session = self._session
        front_end = session.front_end if session else None
        rings = front_end.rings.rings if front_end else []
        return {
            "endpoint": str(self._endpoint),
            "connected": self.state.connected,
            "features": _names(front_end.accepted if front_end else Feature(0)),
            "protocol_features": _names(
                front_end.protocol_features if front_end else ProtocolFeature(0)
            ),
            "offered": _names(Feature(self._offer.features & ~int(Feature.PROTOCOL_FEATURES))),
            "device_status": front_end.status if front_end else 0,
            "mtu": front_end.mtu if front_end else 0,
            "iotlb": {
                "entries": len(front_end.iotlb) if front_end else 0,
                "forgotten": front_end.iotlb.forgotten if front_end else 0,
                "misses": session.misses if session else 0,
            },
            "memory": [
                {
                    "bus": region.bus,
                    "size": region.size,
                    "user": region.user,
                    "file": f"{region.file.device}:{region.file.inode}",
                    "file_offset": region.file_offset,
                    "file_size": region.file.size,
                    "sealed": is_sealed(region.file.fd),
                }
                for region in self.state.memory
            ],
            "rings": [
                {
                    "index": index,
                    "size": ring.size,
                    "base": ring.base,
                    "started": self.state.rings[index].started,
                    "enabled": ring.enabled,
                    "kick": ring.kick_fd >= 0,
                    "call": ring.call_fd >= 0,
                    "error": ring.error_fd >= 0,
                    "call_serial": ring.call_serial,
                }
                for index, ring in enumerate(rings)
            ],
            "counters": dict(sorted(self._counters.items())),
        }


def _names(flags: Feature | ProtocolFeature) -> list[str]:
    return [flag.name or hex(flag) for flag in flags]


def _accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.setblocking(False)
    return connection


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        # A full backlog: come back later, not at once.
        raise ConnectionRefusedError(error.errno, error.strerror) from error
    return connection
