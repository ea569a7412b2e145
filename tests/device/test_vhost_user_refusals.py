"""Hostile front-ends: every refusal leaves state and descriptors as they were, and the next works.

Rows are named after the project's catalogue of adversarial vhost-user input (U01 to U32).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.device.vhost_user_peer import (
    BUS,
    FEATURES,
    MIB,
    NEED_REPLY,
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
    from collections.abc import Iterator, Sequence

WHOLE = Region(BUS, 4 * MIB, USER)
TOP = (1 << 64) - 4096


@contextlib.contextmanager
def running() -> Iterator[tuple[Serving, FrontEnd, int]]:
    """A started ring 0, memory of 4 MiB; afterwards, another front-end is served."""
    with serving() as server, memory() as fd:
        with server.front_end() as front_end:
            front_end.negotiate()
            assert front_end.set_memory([WHOLE], [fd])
            front_end.start_ring(0)
            front_end.enable_ring(0)
            front_end.sync()
            yield server, front_end, fd
        server.settle()
        with FrontEnd(server.path) as successor:
            successor.negotiate()
            assert successor.set_memory([WHOLE], [fd])
        server.settle()


def refused(
    server: Serving,
    front_end: FrontEnd,
    request: int,
    payload: bytes = b"",
    fds: Sequence[int] = (),
) -> None:
    """Send; it is refused and counted, and nothing else has changed."""
    states, open_before = len(server.function.states), open_fds()
    counted = sum(server.backend._counters.values())
    assert not front_end.acknowledged(request, payload, fds)
    assert open_fds() == open_before
    assert len(server.function.states) == states
    assert sum(server.backend._counters.values()) == counted + 1
    assert server.function.state.rings[0].started


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def pair(index: int, number: int) -> bytes:
    return struct.pack("<II", index, number)


def table(*regions: Region, count: int | None = None) -> bytes:
    number = len(regions) if count is None else count
    return struct.pack("<II", number, 0) + b"".join(r.pack() for r in regions)


def single(region: Region) -> bytes:
    return u64(0) + region.pack()


@pytest.mark.parametrize("request_number", [0, 7, 23, 24, 25, 42, 99, 2**32 - 1])
def test_u04_unknown_request(request_number: int) -> None:
    with running() as (server, front_end, _):
        refused(server, front_end, request_number, b"x" * 40)
        front_end.send(request_number, b"x" * 40)  # not asked for an answer: none comes
        front_end.sync()


CLOSED = {
    "u02_size_2g": struct.pack("<III", 1, 1, 0x7FFF_FFFF),
    "u02_size_4g": struct.pack("<III", 5, 1, 0xFFFF_FFFF),
    "u02_size_of_another_type": struct.pack("<III", 8, 1, 4) + bytes(4),
    "u02_size_where_none_is": struct.pack("<III", 1, 1, 8) + bytes(8),
    "u02_half_a_region": struct.pack("<III", 5, 1, 24) + bytes(24),
    "u05_version_0": struct.pack("<III", 1, 0, 0),
    "u05_version_2": struct.pack("<III", 1, 2, 0),
    "u05_reply": struct.pack("<III", 1, 5, 0),
    "u05_garbage": b"GET / HTTP/1.1\r\n\r\n",
    "u09_base_of_no_ring": struct.pack("<III", 11, 1, 8) + pair(4, 0),
    "u18_features_unknown": struct.pack("<III", 2, 1, 8) + u64(1 << 63),
    "u18_features_while_running": struct.pack("<III", 2, 1, 8) + u64(1 << 32),
    "u18_protocol_unknown": struct.pack("<III", 16, 1, 8) + u64(1 << 14),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed(name: str) -> None:
    with running() as (_, front_end, fd):
        # Of those that could be refused it is told that they must not be.
        socket.send_fds(front_end.socket, [CLOSED[name]], [] if "u18" in name else [fd, fd])
        assert front_end.closed()


NUMBERS = {
    "u09_size": (Request.SET_VRING_NUM, pair(4, 256)),
    "u09_size_narrowed": (Request.SET_VRING_NUM, pair(0x10001, 256)),
    "u09_base": (Request.SET_VRING_BASE, pair(0xFFFF_FFFF, 0)),
    "u09_get_base": (Request.GET_VRING_BASE, pair(0x10001, 0)),
    "u09_enable": (Request.SET_VRING_ENABLE, pair(4, 1)),
    "u09_address": (Request.SET_VRING_ADDR, ring_addresses(0x10001, USER)),
    "u09_kick": (Request.SET_VRING_KICK, u64(0x104)),
    "u09_call": (Request.SET_VRING_CALL, u64(0x1FF)),
    "u09_error": (Request.SET_VRING_ERR, u64(0x1FF)),
    "u08_bits": (Request.SET_VRING_KICK, u64(1 << 9 | 0x101)),
    "u08_top_bit": (Request.SET_VRING_CALL, u64(1 << 63 | 0x101)),
    "u08_neither": (Request.SET_VRING_CALL, u64(1)),
    **{
        f"u10_{size}": (Request.SET_VRING_NUM, pair(1, size))
        for size in (0, 3, 255, 32769, 65536, 1 << 31, 0x10100)
    },
    "u10_started": (Request.SET_VRING_NUM, pair(0, 128)),
    "base_wide": (Request.SET_VRING_BASE, pair(1, 0x10000)),
    "base_started": (Request.SET_VRING_BASE, pair(0, 5)),
    "enable_2": (Request.SET_VRING_ENABLE, pair(1, 2)),
    "u11_started": (Request.SET_VRING_ADDR, ring_addresses(0, USER + 0x8000)),
    "u11_same_ring": (Request.SET_VRING_ADDR, ring_addresses(1, USER)),
    "u11_outside": (Request.SET_VRING_ADDR, ring_addresses(1, 16 * USER)),
    "u11_bus_is_not_user": (Request.SET_VRING_ADDR, ring_addresses(1, BUS)),
    "u11_straddles": (Request.SET_VRING_ADDR, ring_addresses(1, USER + 4 * MIB - 0x3000)),
    "u11_below": (Request.SET_VRING_ADDR, ring_addresses(1, USER - 4096)),
    "u11_wraps": (Request.SET_VRING_ADDR, ring_addresses(1, TOP - 0x3000)),
    "u11_zero": (Request.SET_VRING_ADDR, ring_addresses(1, 0)),
    "u11_flags": (Request.SET_VRING_ADDR, ring_addresses(1, USER + 0x8000, flags=2)),
    "u11_desc_unaligned": (
        Request.SET_VRING_ADDR,
        struct.pack("<IIQQQQ", 1, 0, USER + 8, USER + 0x3000, USER + 0x2000, 0),
    ),
    "u11_used_unaligned": (
        Request.SET_VRING_ADDR,
        struct.pack("<IIQQQQ", 1, 0, USER, USER + 0x3002, USER + 0x2000, 0),
    ),
    "u11_avail_unaligned": (
        Request.SET_VRING_ADDR,
        struct.pack("<IIQQQQ", 1, 0, USER, USER + 0x3000, USER + 0x2001, 0),
    ),
    "u18_features_unnamed": (Request.SET_FEATURES, u64(FEATURES | 1 << 63)),
    "u18_protocol_unnamed": (Request.SET_PROTOCOL_FEATURES, u64(PROTOCOL | 1 << 40)),
    "u18_features": (Request.SET_FEATURES, u64(FEATURES | 1 << 36)),
    "u18_features_running": (Request.SET_FEATURES, u64(1 << 32)),
    "u18_protocol": (Request.SET_PROTOCOL_FEATURES, u64(PROTOCOL | 1 << 22)),
    "u18_protocol_late": (Request.SET_PROTOCOL_FEATURES, u64(REPLY_ACK := 1 << 3)),
    "status_wide": (Request.SET_STATUS, u64(0x100)),
    "u06_channel_without": (Request.SET_BACKEND_REQ_FD, b""),
    "u15_add_without": (Request.ADD_MEM_REG, single(Region(9 * BUS, MIB, 9 * USER))),
    "u15_remove_unknown": (Request.REM_MEM_REG, single(Region(9 * BUS, MIB, 9 * USER))),
    "u15_remove_other_size": (Request.REM_MEM_REG, single(Region(BUS, MIB, USER))),
    "u12_no_regions": (Request.SET_MEM_TABLE, table()),
    "u12_huge_count": (Request.SET_MEM_TABLE, table(WHOLE, count=2**32 - 1)),
    "u12_fewer_regions": (Request.SET_MEM_TABLE, table(WHOLE, count=2)),
    "u12_more_regions": (Request.SET_MEM_TABLE, table(WHOLE, WHOLE, count=1)),
    "u12_no_descriptors": (Request.SET_MEM_TABLE, table(WHOLE)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_refused_without_descriptors(name: str) -> None:
    request, payload = NUMBERS[name]
    with running() as (server, front_end, _):
        if request == Request.GET_VRING_BASE:  # its reply is another: a wrong size tells
            front_end.send(request, payload, (), NEED_REPLY)
            assert front_end.reply(request) == u64(1)
        else:
            refused(server, front_end, request, payload)


TABLES = {
    "u12_too_many_fds": ([WHOLE], 2),
    "u12_too_few_fds": ([WHOLE, Region(2 * BUS, MIB, 2 * USER)], 1),
    "u13_size_0": ([Region(BUS, 0, USER)], 1),
    "u13_bus_wraps": ([Region(TOP, 2 * 4096, USER)], 1),
    "u13_user_wraps": ([Region(BUS, 2 * 4096, TOP)], 1),
    "u13_offset_wraps": ([Region(BUS, MIB, USER, TOP)], 1),
    "u13_size_2_64": ([Region(0, (1 << 64) - 1, 0)], 1),
    "u13_offset_beyond": ([Region(BUS, MIB, USER, 4 * MIB)], 1),
    "u13_file_too_short": ([Region(BUS, 4 * MIB + 1, USER)], 1),
    "u14_bus_overlap": ([Region(BUS, MIB, USER), Region(BUS + 1, MIB, 2 * USER, MIB)], 2),
    "u14_user_overlap": ([Region(BUS, MIB, USER), Region(2 * BUS, MIB, USER, MIB)], 2),
    "u14_file_overlap": ([Region(BUS, MIB, USER), Region(2 * BUS, MIB, 2 * USER)], 2),
    "u14_duplicate": ([WHOLE, WHOLE], 2),
    "u15_too_many": ([Region(BUS + i * 8192, 4096, USER + i * 8192, i * 4096)
                      for i in range(65)], 64),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_refused_table(name: str) -> None:
    regions, count = TABLES[name]
    with running() as (server, front_end, fd):
        if len(regions) > 64:
            front_end.send(Request.SET_MEM_TABLE, table(*regions), [fd] * count)
            assert front_end.closed()
        else:
            refused(server, front_end, Request.SET_MEM_TABLE, table(*regions), [fd] * count)
            if len(regions) == count == 1:
                refused(server, front_end, Request.ADD_MEM_REG, single(regions[0]), [fd])


def test_u12_nine_regions_need_slots() -> None:
    regions = [Region(BUS + i * 8192, 4096, USER + i * 8192, i * 4096) for i in range(9)]
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate(protocol=1 << 3)
        assert not front_end.set_memory(regions, [fd] * 9)
        assert front_end.set_memory(regions[:8], [fd] * 8)
        assert not front_end.acknowledged(Request.ADD_MEM_REG, single(regions[8]), [fd])
        assert server.backend._counters == {"connections": 1, "memory": 1, "not_negotiated": 1}


def test_u15_no_more_slots() -> None:
    regions = [Region(BUS + i * 8192, 4096, USER + i * 8192, i * 4096) for i in range(65)]
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        assert front_end.set_memory(regions[:64], [fd] * 64)
        fds = open_fds()
        assert not front_end.acknowledged(Request.ADD_MEM_REG, single(regions[64]), [fd])
        assert (len(server.function.state.memory), open_fds()) == (64, fds)


@pytest.mark.parametrize("count", [1, 8, 9, 253])
def test_u06_descriptors_where_none_belong(count: int) -> None:
    with running() as (server, front_end, fd):
        for request, payload in (
            (Request.SET_OWNER, b""),
            (Request.SET_VRING_NUM, pair(1, 256)),
            (Request.SET_FEATURES, u64(FEATURES)),
        ):
            refused(server, front_end, request, payload, [fd] * count)
        if count > 1:
            refused(server, front_end, Request.SET_VRING_CALL, u64(0), [fd] * count)


def test_u06_descriptors_with_the_second_half() -> None:
    with running() as (server, front_end, fd):
        fds = open_fds()
        front_end.socket.sendall(struct.pack("<III", Request.SET_VRING_NUM, 1 | NEED_REPLY, 8))
        socket.send_fds(front_end.socket, [pair(1, 256)], [fd, fd])
        assert front_end.reply(Request.SET_VRING_NUM) == u64(1)
        assert open_fds() == fds
        assert server.backend._counters["descriptor_count"] == 1


def test_u06_ten_thousand_times() -> None:
    with running() as (_, front_end, fd):
        fds = open_fds()
        for _ in range(100):
            for _ in range(100):
                front_end.send(Request.SET_OWNER, b"", [fd, fd])
            front_end.sync()
        assert open_fds() == fds


@contextlib.contextmanager
def odd_descriptor(kind: str) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        path = f"{directory}/file"
        if kind == "socket":
            yield stack.enter_context(socket.socket()).fileno()
            return
        if kind == "pipe":
            fds = os.pipe()
        elif kind == "eventfd":
            fds = (os.eventfd(0),) * 2
        elif kind == "directory":
            fds = (os.open(directory, os.O_RDONLY),) * 2
        elif kind == "zero":
            fds = (os.open("/dev/zero", os.O_RDWR),) * 2
        elif kind == "neither_tmpfs_nor_hugetlbfs":
            fds = (os.open("/proc/self/coredump_filter", os.O_RDWR),) * 2
        elif kind == "write_sealed":
            fds = (os.memfd_create("vm1", os.MFD_ALLOW_SEALING),) * 2
            os.ftruncate(fds[0], 4 * MIB)
            fcntl.fcntl(fds[0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        else:
            flags = {"read_only": os.O_RDONLY, "write_only": os.O_WRONLY, "path": os.O_PATH}
            with open(path, "wb") as file:  # noqa: PTH123 - flags follow
                file.truncate(4 * MIB)
            fds = (os.open(path, flags.get(kind, os.O_RDWR)),) * 2
        try:
            yield fds[0]
        finally:
            for fd in set(fds):
                os.close(fd)


@pytest.mark.parametrize(
    "kind",
    [
        "socket", "pipe", "eventfd", "directory", "zero",
        "neither_tmpfs_nor_hugetlbfs", "write_sealed", "read_only", "write_only", "path",
    ],
)  # fmt: skip
def test_u07_memory_of_a_wrong_kind(kind: str) -> None:
    with running() as (server, front_end, _), odd_descriptor(kind) as odd:
        refused(server, front_end, Request.SET_MEM_TABLE, table(WHOLE), [odd])
        region = Region(9 * BUS, MIB, 9 * USER)
        refused(server, front_end, Request.ADD_MEM_REG, single(region), [odd])
        assert server.backend._counters["file"] == 2


def test_u07_a_plain_file_of_tmpfs_is_memory() -> None:
    with running() as (server, front_end, _), odd_descriptor("file") as file:
        assert front_end.set_memory([WHOLE], [file])
        assert server.backend.describe()["memory"][0]["sealed"] is False  # type: ignore[index]


@pytest.mark.parametrize("kind", ["socket", "pipe", "directory", "zero", "file"])
@pytest.mark.parametrize(
    "request_number", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]
)
def test_u08_events_of_a_wrong_kind(kind: str, request_number: int) -> None:
    with running() as (server, front_end, _), odd_descriptor(kind) as odd:
        refused(server, front_end, request_number, u64(0), [odd])
        event = front_end.eventfd()
        refused(server, front_end, request_number, u64(0x100), [event])


def test_u08_one_eventfd_for_all() -> None:
    with running() as (server, front_end, _):
        event = front_end.eventfd()
        for request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
            assert front_end.acknowledged(request, u64(0), [event])
        ring = server.function.state.rings[0]
        assert len({ring.kick_fd, ring.call_fd, ring.error_fd}) == 3


@pytest.mark.parametrize("kind", ["pipe", "eventfd", "file"])
def test_u26_channel_of_a_wrong_kind(kind: str) -> None:
    with running() as (server, front_end, _), odd_descriptor(kind) as odd:
        refused(server, front_end, Request.SET_BACKEND_REQ_FD, b"", [odd])


def test_u26_channel_is_replaced_and_not_used_without_an_iommu() -> None:
    with running() as (_, front_end, _):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fds = open_fds()
            for _ in range(10):
                assert front_end.acknowledged(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
            assert open_fds() == fds + 1


def test_u18_status_without_features() -> None:
    with serving() as server, server.front_end() as front_end:
        front_end.send(Request.SET_PROTOCOL_FEATURES, u64(PROTOCOL))
        front_end.send(Request.SET_STATUS, u64(0x0B))
        assert front_end.ask_u64(Request.GET_STATUS) == 0x03


def test_u18_enable_needs_protocol_features() -> None:
    with serving() as server, server.front_end() as front_end:
        front_end.send(Request.SET_FEATURES, u64(1 << 32))
        front_end.enable_ring(0)
        front_end.sync()
        assert server.backend._counters["not_negotiated"] == 1


def test_refusals_without_reply_ack_stay_silent() -> None:
    """NEED_REPLY alone is no licence to answer; the next answer is the next question's."""
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.send(Request.SET_FEATURES, u64(FEATURES))
        front_end.send(Request.SET_VRING_NUM, pair(0, 3), (), NEED_REPLY)
        front_end.send(Request.SET_VRING_NUM, pair(0, 256), (), NEED_REPLY)
        front_end.send(99, b"", [fd], NEED_REPLY)
        front_end.sync()
        assert server.backend._counters["ring_size"] == 1
        assert server.backend._counters["unknown_request"] == 1
