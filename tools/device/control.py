"""The control socket: everything about the device as one JSON object a connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 2.0
ACCEPT_RETRY_S = 0.1


async def serve_control(listener: socket.socket, describe: Callable[[], dict[str, Any]]) -> None:
    """Answer each connection with describe() as a line of JSON and close it, until cancelled.

    One after the other: a reader that does not read is left after SEND_TIMEOUT_S.
    """
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    while True:
        try:
            sock, _ = await loop.sock_accept(listener)
        except OSError as error:
            log.warning("control: cannot accept: %s", error.strerror)
            await asyncio.sleep(ACCEPT_RETRY_S)
            continue
        with sock, contextlib.suppress(OSError):  # TimeoutError is one
            sock.setblocking(False)
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await loop.sock_sendall(sock, json.dumps(describe()).encode() + b"\n")
