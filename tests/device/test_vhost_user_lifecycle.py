"""Connections: half messages, silence, storms, second front-ends, reconnects, the socket's path."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest.errors import UsageError, VhostPciError
from tests.device.vhost_user_peer import (
    BUS,
    MIB,
    USER,
    FrontEnd,
    Region,
    memory,
    open_fds,
    serving,
    wait_for,
)
from tools.device.backend import Backend, Endpoint
from tools.device.commit_area import CommitArea
from tools.vhost_user_abi import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.device.vm1_state import Vm1State

TABLE = struct.pack("<III", Request.SET_MEM_TABLE, 1, 40) + struct.pack("<II", 1, 0)
MESSAGE = TABLE + Region(BUS, 4 * MIB, USER).pack()


def test_u01_half_a_header_then_silence() -> None:
    with serving(timeout_s=0.05) as server, server.front_end() as front_end:
        front_end.socket.sendall(MESSAGE[:7])
        assert front_end.closed()
        server.settle()
        with FrontEnd(server.path) as successor:
            successor.sync()


def test_u31_death_at_every_byte() -> None:
    with serving() as server, memory() as fd:
        fds = open_fds()
        for length in range(1, len(MESSAGE)):
            with server.front_end() as front_end:
                socket.send_fds(front_end.socket, [MESSAGE[:length]], [fd])
            server.settle()
            wait_for(lambda: open_fds() == fds, "every descriptor closed")
        with FrontEnd(server.path) as front_end:
            front_end.sync()


def test_u27_replies_are_never_read() -> None:
    with serving(timeout_s=0.05) as server, server.front_end() as front_end:
        question = struct.pack("<III", Request.GET_FEATURES, 1, 0)
        with contextlib.suppress(ConnectionError):
            while True:
                front_end.socket.sendall(question * 100)
        server.settle()
        assert server.backend._counters["disconnected"] == 1


def test_u28_second_front_end_is_turned_away() -> None:
    with serving() as server, server.front_end() as front_end:
        front_end.sync()
        for _ in range(3):
            with FrontEnd(server.path) as second:
                assert second.closed()
        front_end.sync()
        wait_for(lambda: server.backend._counters["turned_away"] == 3, "the count")


def test_u28_storm() -> None:
    with serving() as server, memory() as fd:
        fds = open_fds()
        for _ in range(300):
            with FrontEnd(server.path) as front_end:
                try:
                    socket.send_fds(front_end.socket, [MESSAGE[:20]], [fd])
                except OSError:
                    continue  # turned away, its predecessor being there still
        wait_for(lambda: open_fds() == fds, "every descriptor closed")


def test_reconnect_at_once() -> None:
    """QEMU's reconnect: the new connection comes before the old one's end was noticed."""
    with serving() as server, memory() as fd:
        for _ in range(20):
            with FrontEnd(server.path) as front_end:
                front_end.negotiate()
                assert front_end.set_memory([Region(BUS, 4 * MIB, USER)], [fd])
        server.settle()
        assert server.backend._counters["connections"] == 20
        assert server.backend._counters["turned_away"] == 0


def test_u32_no_descriptors_left() -> None:
    """The message that lost descriptors is refused; what there is goes on."""
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        region = Region(BUS, 4 * MIB, USER)
        assert front_end.set_memory([region], [fd])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
        spare = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    spare.append(os.dup(fd))
            assert not front_end.set_memory([region], [fd])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for extra in spare:
                os.close(extra)
        assert server.backend._counters["descriptors_lost"] == 1
        assert front_end.set_memory([region], [fd])


def test_error_reaches_the_front_end() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        assert front_end.set_memory([Region(BUS, 4 * MIB, USER)], [fd])
        front_end.start_ring(1)
        error = front_end.eventfd()
        front_end.send(Request.SET_VRING_ERR, struct.pack("<Q", 1), [error])
        front_end.sync()
        front_end.send(Request.SET_STATUS, struct.pack("<Q", 0x0F))
        for ring in (1, 4, 1):
            server.backend.error(ring)
        assert os.eventfd_read(error) == 2
        assert front_end.ask_u64(Request.GET_STATUS) == 0x4F  # 2.1.2: it needs a reset
        front_end.stop_ring(1)
        assert front_end.ask_u64(Request.GET_STATUS) == 0x0F


def test_back_end_connects() -> None:
    """The front-end listens: it is found when it comes, and again after it left."""
    with serving(connect=True) as server:
        for turn in range(2):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with listener:
                listener.bind(str(server.path))
                listener.listen(1)
                listener.settimeout(30)
                connection, _ = listener.accept()
            server.path.unlink()
            with FrontEnd(connection=connection) as front_end:
                front_end.negotiate()
                front_end.sync()
            assert server.backend._counters["connections"] == turn + 1


async def nobody(_state: Vm1State) -> None:
    """Publish to nobody."""


@pytest.fixture(scope="module")
def commits() -> Iterator[CommitArea]:
    area = CommitArea()
    yield area
    area.close()


@pytest.fixture
def backend(commits: CommitArea) -> Callable[[Path], Backend]:
    return lambda path: Backend(Endpoint(path), 1, nobody, commits)


def test_path_is_served_and_removed(tmp_path: Path, backend: Callable[[Path], Backend]) -> None:
    path = tmp_path / "s"
    server = backend(path)
    server.open()
    assert stat.S_ISSOCK(path.stat().st_mode)
    with pytest.raises(VhostPciError, match="another process listens there"):
        backend(path).open()
    server.close()
    server.close()
    assert not path.exists()


def test_dead_socket_is_replaced(tmp_path: Path, backend: Callable[[Path], Backend]) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = backend(path)
    server.open()
    server.close()


@pytest.mark.parametrize("kind", ["file", "directory", "nowhere"])
def test_path_that_cannot_be_served(
    tmp_path: Path, backend: Callable[[Path], Backend], kind: str
) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path = path / "s"
    fds = open_fds()
    with pytest.raises(VhostPciError, match="cannot listen at"):
        backend(path).open()
    assert open_fds() == fds
    assert kind != "file" or path.read_text() == "precious"


def test_endpoint_as_typed() -> None:
    assert Endpoint.parse("/run/a") == Endpoint(Path("/run/a"))
    assert Endpoint.parse("/run/a,connect") == Endpoint(Path("/run/a"), connect=True)
    assert str(Endpoint.parse("/run/a,connect")) == "/run/a,connect"
    for text in ("", ",connect", "/run/a,", "/run/a,server", "/" + 107 * "x"):
        with pytest.raises(UsageError):
            Endpoint.parse(text)
    Endpoint.parse("/" + 106 * "x")


@pytest.mark.parametrize("pairs", [0, -1, 129])
def test_queue_pairs_nobody_could_name(commits: CommitArea, pairs: int) -> None:
    with pytest.raises(UsageError, match="1 to 128"):
        Backend(Endpoint(Path("s")), pairs, nobody, commits)


def test_what_publish_raises_ends_the_server(tmp_path: Path, commits: CommitArea) -> None:
    async def broken(_state: Vm1State) -> None:
        raise VhostPciError("publish", "the state", "it broke")

    async def run() -> None:
        server = Backend(Endpoint(tmp_path / "s"), 1, broken, commits)
        server.open()
        with FrontEnd(tmp_path / "s"):
            await server.serve()

    fds = open_fds()
    with pytest.raises(VhostPciError, match="it broke"):
        asyncio.run(run())
    assert open_fds() == fds
    assert not (tmp_path / "s").exists()
