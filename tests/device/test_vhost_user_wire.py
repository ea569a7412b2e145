"""Messages on a socket: what goes in comes out, however it was cut up, and nothing stays open."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading

import pytest

from tests.device.vhost_user_peer import open_fds
from tools import vhost_user_abi as abi
from tools.vhost_user_asyncio import receive_async, send_async
from tools.vhost_user_wire import (
    Descriptors,
    Message,
    WireError,
    hung_up,
    pending,
    receive,
    send,
)


def test_numbers_of_the_specification() -> None:
    assert (abi.Request.SET_MEM_TABLE, abi.Request.GET_STATUS, abi.Request.SET_STATUS) == (
        5,
        40,
        39,
    )
    assert (abi.Request.GET_MAX_MEM_SLOTS, abi.Request.REM_MEM_REG) == (36, 38)
    assert (abi.ProtocolFeature.GPA_ADDRESSES, abi.Feature.VERSION_1) == (1 << 21, 1 << 32)
    assert abi.HEADER.size == 12
    assert (abi.VRING_ADDRESS.size, abi.MEMORY_REGION.size, abi.SINGLE_REGION.size) == (40, 32, 40)


def test_there_and_back() -> None:
    before = open_fds()
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "rb") as null:  # noqa: PTH123 - one line
        sent = Message(5, abi.VERSION | abi.HeaderFlag.NEED_REPLY, b"payload", (null.fileno(),) * 3)
        send(ours, sent)
        send(ours, sent.reply(b""))
        got = receive(theirs)
        assert got is not None
        with Descriptors(got.fds) as fds:
            assert (got.request, got.flags, got.payload, len(fds)) == (5, 9, b"payload", 3)
            assert got.need_reply
            assert not got.is_reply
            assert not any(os.get_inheritable(fd) for fd in fds)
            kept = fds.take(got.fds[1])
        os.fstat(kept)
        os.close(kept)
        answer = receive(theirs)
        assert answer == Message(5, 5, b"")
        ours.close()
        assert receive(theirs) is None
    assert open_fds() == before


def test_byte_by_byte() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = Message(8, payload=struct.pack("<II", 1, 256)).pack()

        def drip() -> None:
            for index in range(len(data)):
                ours.sendall(data[index : index + 1])

        thread = threading.Thread(target=drip)
        thread.start()
        assert receive(theirs) == Message(8, payload=struct.pack("<II", 1, 256))
        thread.join()


def test_descriptors_with_every_byte_end_at_the_limit_of_one_message() -> None:
    before = open_fds()
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "rb") as null:  # noqa: PTH123 - one line
        for byte in Message(5, payload=bytes(100)).pack():
            rights = struct.pack("64i", *(null.fileno(),) * 64)
            ours.sendmsg([bytes([byte])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with pytest.raises(WireError, match="more than 253 descriptors with a message"):
            receive(theirs)
    assert open_fds() == before


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (struct.pack("<III", 1, 1, 4097), "announced 4097 bytes"),
        (struct.pack("<III", 1, 0xFFFF_FFFF, 0), "version 3"),
        (struct.pack("<III", 1, 0x11, 0), "unknown header flags"),
        (struct.pack("<III", 1, 1, 8) + b"1234", "closed 4 bytes before"),
        (b"\1", "closed 11 bytes before"),
    ],
)
def test_malformed(data: bytes, text: str) -> None:
    before = open_fds()
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            socket.send_fds(ours, [data], [theirs.fileno()])
        with pytest.raises(WireError, match=text):
            receive(theirs)
    assert open_fds() == before


def test_blocking_wait_is_bounded() -> None:
    before = open_fds()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(0.02)
        socket.send_fds(ours, [b"half"], [ours.fileno()])
        with pytest.raises(TimeoutError):
            receive(theirs)
    assert open_fds() == before


def test_asyncio() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            assert not pending(theirs)
            waiting = asyncio.create_task(receive_async(theirs, 30.0))
            await send_async(ours, Message(1, payload=bytes(4096)), 30.0)
            assert await waiting == Message(1, payload=bytes(4096))
            ours.send(b"half")
            assert pending(theirs)
            with pytest.raises(WireError, match="did not finish a message"):
                await receive_async(theirs, 0.02)
            with pytest.raises(WireError, match="did not take a message"):  # noqa: PT012
                while True:
                    await send_async(ours, Message(1, payload=bytes(4096)), 0.02)
            assert not hung_up(ours)
            theirs.close()
            assert hung_up(ours)

    asyncio.run(run())


def test_cancelled_wait_leaves_nothing() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            task = asyncio.create_task(receive_async(theirs, 30.0))
            socket.send_fds(ours, [b"half"], [ours.fileno()])
            while pending(theirs):  # noqa: ASYNC110 - the other task takes it
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    before = open_fds()
    asyncio.run(run())
    assert open_fds() == before
