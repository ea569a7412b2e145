"""VM1's VMM asks for the log of changed memory: QEMU's way, and what no log can be."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import TYPE_CHECKING

import pytest

from tests.device.vhost_user_peer import (
    BUS,
    FEATURES,
    MIB,
    PROTOCOL,
    USER,
    FrontEnd,
    Region,
    Serving,
    memory,
    open_fds,
    ring_addresses,
    serving,
)
from tools.vhost_user_abi import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_ALL = 1 << 26
LOG_SHMFD = 1 << 1
WHOLE = Region(BUS, 4 * MIB, USER)
LOG_BYTES = (BUS + 4 * MIB) >> 15  # a bit a page, as QEMU has it


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def log_base(size: int, offset: int = 0) -> bytes:
    return struct.pack("<QQ", size, offset)


@contextlib.contextmanager
def running(protocol: int = PROTOCOL | LOG_SHMFD) -> Iterator[tuple[Serving, FrontEnd]]:
    """A front-end with memory and one ring that runs."""
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate(protocol=protocol)
        assert front_end.set_memory([WHOLE], [fd])
        front_end.start_ring(0)
        front_end.enable_ring(0)
        front_end.sync()
        yield server, front_end


def set_log(front_end: FrontEnd, size: int, *fds: int, offset: int = 0) -> None:
    front_end.send(Request.SET_LOG_BASE, log_base(size, offset), fds)
    assert front_end.reply(Request.SET_LOG_BASE) == b""


def test_qemu_begins_and_ends_a_migration() -> None:
    with running() as (server, front_end), memory(LOG_BYTES + 4096) as log:
        set_log(front_end, LOG_BYTES, log, offset=4096)
        state = server.function.state
        assert state.log is not None
        assert (state.log.size, state.log.offset, state.logging) == (LOG_BYTES, 4096, False)
        assert front_end.acknowledged(Request.SET_FEATURES, u64(FEATURES | LOG_ALL))
        assert server.function.state.logging
        assert server.function.state.features == state.features  # the driver's are the same
        count = len(server.function.states)
        addresses = ring_addresses(0, USER, flags=1)
        addresses = addresses[:-8] + u64(BUS + 0x3000)  # QEMU's: where the used ring is
        assert front_end.acknowledged(Request.SET_VRING_ADDR, addresses)
        assert len(server.function.states) == count  # so nothing is new
        assert server.function.state.rings[0].started
        front_end.stop_ring(0)
        assert front_end.acknowledged(Request.SET_FEATURES, u64(FEATURES))
        assert not server.function.state.logging


def test_features_wait_for_the_driver() -> None:
    """Once they are answered nothing is written without a mark."""
    with running() as (server, front_end), memory(LOG_BYTES) as log:
        set_log(front_end, LOG_BYTES, log)
        server.function.may_acknowledge.clear()
        front_end.send(Request.SET_FEATURES, u64(FEATURES | LOG_ALL), flags=0x8)
        front_end.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            front_end.reply(Request.SET_FEATURES)
        front_end.socket.settimeout(30)
        server.function.may_acknowledge.set()
        assert front_end.reply(Request.SET_FEATURES) == u64(0)


def test_another_log_takes_the_place_of_the_first() -> None:
    with running() as (server, front_end), memory(LOG_BYTES) as first, memory(2 * LOG_BYTES) as log:
        set_log(front_end, LOG_BYTES, first)
        open_before = open_fds()
        set_log(front_end, 2 * LOG_BYTES, log)
        front_end.sync()
        assert server.function.state.log is not None
        assert server.function.state.log.size == 2 * LOG_BYTES
        assert open_fds() == open_before  # its descriptor in place of the first one's


def test_used_ring_logged_elsewhere() -> None:
    with running() as (server, front_end):
        addresses = ring_addresses(0, USER, flags=1)[:-8] + u64(BUS + 0x9000)
        assert front_end.acknowledged(Request.SET_VRING_ADDR, addresses)
        assert server.function.state.rings[0].log == BUS + 0x9000


IMPOSSIBLE = {
    "empty": log_base(0),
    "too_small": log_base(LOG_BYTES - 1),
    "past_the_file": log_base(LOG_BYTES, 4096),
    "wraps": log_base(LOG_BYTES, (1 << 64) - 4096),
    "size_wraps": log_base((1 << 64) - 1, 1),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_log(name: str) -> None:
    with running() as (server, front_end), memory(LOG_BYTES) as log:
        known, open_before = server.function.state, open_fds()
        front_end.send(Request.SET_LOG_BASE, IMPOSSIBLE[name], [log], flags=0x8)
        assert front_end.reply(Request.SET_LOG_BASE) == u64(1)
        assert server.function.state == known
        assert open_fds() == open_before
        front_end.send(Request.SET_LOG_BASE, IMPOSSIBLE[name], [log])
        assert front_end.closed()  # it would take the log for granted


@pytest.mark.parametrize("name", ["missing", "two", "eventfd", "read_only", "sealed"])
def test_impossible_file(name: str) -> None:
    with (
        running() as (server, front_end),
        memory(LOG_BYTES) as log,
        contextlib.ExitStack() as stack,
    ):
        fds = {"missing": [], "two": [log, log]}.get(name, [log])
        if name == "eventfd":
            fds = [front_end.eventfd()]
        if name == "read_only":
            fds = [os.open(f"/proc/self/fd/{log}", os.O_RDONLY | os.O_CLOEXEC)]
            stack.callback(os.close, fds[0])
        if name == "sealed":
            fcntl.fcntl(log, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        front_end.send(Request.SET_LOG_BASE, log_base(LOG_BYTES), fds, flags=0x8)
        assert front_end.reply(Request.SET_LOG_BASE) == u64(1)
        assert server.function.state.log is None


def test_log_without_its_protocol_feature() -> None:
    with running(PROTOCOL) as (server, front_end), memory(LOG_BYTES) as log:
        front_end.send(Request.SET_LOG_BASE, log_base(LOG_BYTES), [log], flags=0x8)
        assert front_end.reply(Request.SET_LOG_BASE) == u64(1)
        assert server.function.state.log is None


def test_memory_that_the_log_has_no_bits_for() -> None:
    with running() as (server, front_end), memory(LOG_BYTES) as log, memory() as more:
        set_log(front_end, LOG_BYTES, log)
        known = server.function.state.memory
        beyond = Region(BUS + 4 * MIB, 4 * MIB, USER + 4 * MIB)
        payload = u64(0) + beyond.pack()
        assert not front_end.acknowledged(Request.ADD_MEM_REG, payload, [more])
        assert server.function.state.memory == known
