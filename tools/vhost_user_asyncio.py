"""A vhost-user socket's messages under asyncio, which takes long to import: VM1 does without.

Reference: QEMU's docs/interop/vhost-user.rst, "Message Specification".
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tools import vhost_user_abi as abi
from tools.vhost_user_wire import Assembler, Message, WireError, send_some

if TYPE_CHECKING:
    import socket


async def receive_async(
    connection: socket.socket, timeout_s: float, payload_limit: int = abi.PAYLOAD_MAX
) -> Message | None:
    """`receive` on a non-blocking socket under asyncio: waits for ever for a message to begin.

    Gives way to the event loop at least once, so that no peer can keep it by sending.

    Raises:
        WireError: The message is malformed, or not complete timeout_s after its first byte.
        OSError: The socket's.
    """
    assembler = Assembler(payload_limit)
    try:
        await asyncio.sleep(0)
        message = await _read_some(connection, assembler)
        try:
            async with asyncio.timeout(timeout_s):
                while message is None:
                    message = await _read_some(connection, assembler)
        except TimeoutError:
            raise WireError(f"did not finish a message within {timeout_s:g} s") from None
    except EOFError:
        return None
    finally:
        assembler.close()
    return message


async def send_async(connection: socket.socket, message: Message, timeout_s: float) -> None:
    """`send` on a non-blocking socket under asyncio.

    Raises:
        WireError: The peer did not take it within timeout_s.
        OSError: The socket's.
    """
    data = memoryview(message.pack())
    try:
        async with asyncio.timeout(timeout_s):
            while data:
                try:
                    data = data[send_some(connection, message, data) :]
                except BlockingIOError:
                    await ready(connection, writing=True)
    except TimeoutError:
        raise WireError(f"did not take a message within {timeout_s:g} s") from None


async def _read_some(connection: socket.socket, assembler: Assembler) -> Message | None:
    while True:
        try:
            return assembler.read_from(connection)
        except BlockingIOError:
            await ready(connection)


async def ready(connection: socket.socket, *, writing: bool = False) -> None:
    """Wait until the socket can be read or accepts, or can be written. Safe to cancel."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    )
    fd = connection.fileno()
    add(fd, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        remove(fd)
