"""guest/vfio_user_channel.py: every way in which a server fails its client."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import queue
import select
import socket
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.errors import DeviceGoneError, UsageError, VhostPciError
from guest.function import Area
from guest.vfio_user import VfioUserFunction
from guest.vfio_user_abi import Command, Header, HeaderFlag
from guest.vfio_user_abi import RegionInfo as WireRegionInfo
from guest.vfio_user_wire import pack_error, pack_reply, pack_request, pack_version
from tests.guest.vfio_user_server import DEADLINE_S, Device, Server, receive, send

if TYPE_CHECKING:
    from collections.abc import Callable


def raw(header: Header, payload: bytes = b"", **changes: int) -> tuple[bytes, list[int]]:
    """A reply whose header is changed."""
    reply = Header.unpack(pack_reply(header, payload))
    return dataclasses.replace(reply, **changes).pack() + payload, []


# ---- nobody to talk to -------------------------------------------------------------------------


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(VhostPciError, match="no such file or directory; start the server"):
        VfioUserFunction(str(tmp_path / "none"))


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(tmp_path / "s"))
    with pytest.raises(VhostPciError, match="nobody listens; start the server"):
        VfioUserFunction(str(tmp_path / "s"))


def test_not_a_socket(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(VhostPciError, match="this is not a socket"):
        VfioUserFunction(str(tmp_path / "f"))


def test_a_socket_of_another_kind(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(VhostPciError, match="protocol wrong type for socket"):
            VfioUserFunction(str(tmp_path / "s"))


def test_no_permission() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as other:
        Path(directory).chmod(0o755)
        path = f"{directory}/s"
        other.bind(path)
        other.listen()
        Path(path).chmod(0)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:  # root may write to every socket: ask as somebody else
                    os.setresuid(65534, 65534, 65534)
                VfioUserFunction(path)
            except BaseException as error:  # noqa: BLE001 - the parent judges it
                os.write(writer, f"{type(error).__name__}: {error}".encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as report:
            text = report.read()
        os.waitpid(child, 0)
    assert text == (
        f"VhostPciError: cannot attach to vfio-user:{path}: permission denied; "
        "run as a user who may write to the socket"
    )


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("x" * 108, "the path has 108 bytes, a socket's at most 107; use a shorter"),
        ("", "this is no socket's path"),
        ("a\0b", "this is no socket's path"),
    ],
)
def test_paths_that_cannot_be(path: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        VfioUserFunction(path)


def test_a_server_that_accepts_nobody(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(tmp_path / "s"))
        with pytest.raises(VhostPciError, match="accepts no connection; another process"):
            VfioUserFunction(str(tmp_path / "s"), 0.2)


def test_in_use_by_another_process(server: Server, device: Device) -> None:
    device.answers[Command.VERSION] = lambda header, _: (pack_error(header, errno.EBUSY), [])
    with pytest.raises(VhostPciError, match="in use by another process; stop that one first"):
        VfioUserFunction(server.path)


# ---- broken answers ----------------------------------------------------------------------------

BROKEN: dict[str, tuple[Callable[[Header, bytes], tuple[bytes, list[int]]], str]] = {
    "wrong id": (lambda header, _: raw(header, message_id=header.message_id + 1), "an answer to"),
    "wrong command": (lambda header, _: raw(header, command=99), "an answer to command 99"),
    "oversize": (lambda header, _: raw(header, b"x" * 4096), "an answer of 4112 bytes, at most 36"),
    "huge": (lambda header, _: raw(header, size=0xFFFFFFFF), "an answer of 4294967295 bytes"),
    "undersize": (lambda header, _: raw(header, size=15), "an answer of 15 bytes"),
    "garbage": (lambda _header, _: (b"\xff" * 64, []), "a message with flags 0xffffffff"),
    "error with payload": (
        lambda header, _: raw(header, b"1234", flags=HeaderFlag.REPLY | HeaderFlag.ERROR),
        "an answer of 20 bytes, at most 16 expected",
    ),
    "huge request": (
        lambda header, _: raw(header, flags=0, command=Command.DMA_WRITE, size=1 << 31),
        "a request of 2147483648 bytes",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_answers_end_the_connection(
    function: VfioUserFunction, device: Device, kind: str
) -> None:
    device.answers[Command.REGION_READ], cause = BROKEN[kind]
    with pytest.raises(VhostPciError, match=cause):
        function.read(0, 0, 4)
    with pytest.raises(DeviceGoneError, match=r"was given up: .*breaks the protocol"):
        function.read(0, 0, 4)
    assert select.select([function], [], [], DEADLINE_S)[0] == [function]


@pytest.mark.parametrize("count", [1, 2, 253])
def test_descriptors_nobody_asked_for(
    function: VfioUserFunction, device: Device, count: int
) -> None:
    device.answers[Command.REGION_READ] = lambda header, payload: (
        pack_reply(header, payload + b"1234"),
        [device.file] * count,
    )
    with pytest.raises(VhostPciError, match=f"{count} descriptors with an answer, at most 0"):
        function.read(0, 0, 4)


def test_descriptors_piece_by_piece(tmp_path: Path, device: Device) -> None:
    """A descriptor with each of two bytes of one answer is one too many for a region."""

    def script(connection: socket.socket) -> None:
        for _ in range(2):
            header, payload, fds = receive(connection)
            send(connection, *device.answer(header, payload, fds))
        header, payload, fds = receive(connection)
        reply, fds = device.answer(header, payload, fds)
        for byte in reply:
            send(connection, bytes([byte]), fds)
        receive(connection)

    with (
        Server(tmp_path / "s", script) as server,
        VfioUserFunction(server.path) as function,
        pytest.raises(VhostPciError, match="2 descriptors with an answer, at most 1"),
    ):
        function.region(2)


def test_short_and_foreign_reads(function: VfioUserFunction, device: Device) -> None:
    for answer in (b"", struct.pack("<QII", 0, 0, 4), struct.pack("<QII", 4, 0, 4) + b"1234"):
        device.answers[Command.REGION_READ] = lambda header, _, answer=answer: (  # type: ignore[misc]
            pack_reply(header, answer),
            [],
        )
        with pytest.raises(VhostPciError, match="the answer is to another read, or short"):
            function.read(0, 0, 4)
    del device.answers[Command.REGION_READ]
    assert function.read(0, 0, 4) == bytes(4)  # the stream is still in step


def test_foreign_writes(function: VfioUserFunction, device: Device) -> None:
    device.answers[Command.REGION_WRITE] = lambda header, _: (
        pack_reply(header, struct.pack("<QII", 0, 0, 3)),
        [],
    )
    with pytest.raises(VhostPciError, match="the answer is to another write, or short"):
        function.write(0, 0, b"1234")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (errno.EINVAL, r"the server refuses \(Invalid argument\)"),
        (0, "the server refuses, without a reason"),
        (0xFFFFFFFF, "the server refuses, without a reason"),
    ],
)
def test_refusals_leave_the_connection(
    function: VfioUserFunction, device: Device, error: int, cause: str
) -> None:
    device.answers[Command.DEVICE_RESET] = lambda header, _: (pack_error(header, error), [])
    with pytest.raises(VhostPciError, match=f"cannot reset vfio-user:.*: {cause}"):
        function.reset()
    assert function.read(0, 0, 4) == bytes(4)


def test_a_refusal_with_descriptors(function: VfioUserFunction, device: Device) -> None:
    device.answers[Command.DEVICE_GET_REGION_INFO] = lambda header, _: (
        pack_error(header, errno.EINVAL),
        [device.file],
    )
    with pytest.raises(VhostPciError, match="the server refuses"):
        function.region(2)


# ---- a server that leaves, or lingers ----------------------------------------------------------


def test_end_of_file_at_every_offset(tmp_path: Path, device: Device) -> None:
    info, fds = device.on_device_get_region_info(WireRegionInfo(80, 0, 2).pack()) or (b"", [])
    length = 16 + len(info)
    assert length == 16 + 32 + 16 + 2 * 16
    cuts = iter(range(length))

    def script(connection: socket.socket) -> None:
        for _ in range(3):  # VERSION, GET_INFO, and the region's first step
            header, payload, received = receive(connection)
            send(connection, *device.answer(header, payload, received))
        header, _, _ = receive(connection)
        reply = raw(header, info)[0][: next(cuts)]
        if reply:
            send(connection, reply, fds)

    with Server(tmp_path / "s", script) as server:
        for _ in range(length):
            with VfioUserFunction(server.path) as function:
                with pytest.raises(DeviceGoneError, match="before its answer was complete"):
                    function.region(2)
                with pytest.raises(DeviceGoneError):
                    function.region(2)
    assert next(cuts, None) is None


def test_the_server_leaves_between_requests(tmp_path: Path, device: Device) -> None:
    def script(connection: socket.socket) -> None:
        for _ in range(2):
            header, payload, fds = receive(connection)
            send(connection, *device.answer(header, payload, fds))

    with Server(tmp_path / "s", script) as server, VfioUserFunction(server.path) as function:
        assert select.select([function], [], [], DEADLINE_S)[0] == [function]
        with pytest.raises(DeviceGoneError, match="the server closed the connection"):
            function.write(0, 0, b"1234")


def test_the_server_leaves_during_negotiation(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "s", lambda _: None) as server,
        pytest.raises(DeviceGoneError, match="the server closed the connection"),
    ):
        VfioUserFunction(server.path)


def test_no_answer(tmp_path: Path) -> None:
    def script(connection: socket.socket) -> None:
        receive(connection)
        receive(connection)  # ends when the client has given up

    with (
        Server(tmp_path / "s", script) as server,
        pytest.raises(VhostPciError, match=r"no answer within 0.2 s; look at the server"),
    ):
        VfioUserFunction(server.path, 0.2)


def test_half_an_answer(tmp_path: Path) -> None:
    def script(connection: socket.socket) -> None:
        header, _, _ = receive(connection)
        send(connection, pack_reply(header, pack_version({}))[:-1])
        receive(connection)

    with (
        Server(tmp_path / "s", script) as server,
        pytest.raises(VhostPciError, match=r"no answer within 0.2 s"),
    ):
        VfioUserFunction(server.path, 0.2)


def test_requests_without_end_are_no_answer(tmp_path: Path) -> None:
    flood = pack_request(1, Command.DMA_READ, struct.pack("<QQ", 0, 4), flags=HeaderFlag.NO_REPLY)

    def script(connection: socket.socket) -> None:
        receive(connection)
        while True:
            send(connection, flood * 64)

    with (
        Server(tmp_path / "s", script) as server,
        pytest.raises(VhostPciError, match=r"no answer within 0.2 s"),
    ):
        VfioUserFunction(server.path, 0.2)


def test_a_byte_at_a_time(tmp_path: Path, device: Device) -> None:
    def script(connection: socket.socket) -> None:
        while True:
            header, payload, fds = receive(connection)
            reply, fds = device.answer(header, payload, fds)
            for byte in reply:
                send(connection, bytes([byte]), fds)
                fds = []

    with Server(tmp_path / "s", script) as server, VfioUserFunction(server.path) as function:
        assert function.region(2).areas == (Area(0, 4096), Area(8192, 4096))


def test_after_close(server: Server) -> None:
    function = VfioUserFunction(server.path)
    function.close()
    function.close()
    with pytest.raises(DeviceGoneError, match="it was closed"):
        function.reset()


# ---- the server's own requests -----------------------------------------------------------------


def test_server_requests_are_refused(tmp_path: Path, device: Device) -> None:
    refusals: queue.Queue[object] = queue.Queue()

    def script(connection: socket.socket) -> None:
        for _ in range(2):
            header, payload, fds = receive(connection)
            send(connection, *device.answer(header, payload, fds))
        header, payload, fds = receive(connection)
        silent = pack_request(
            7, Command.DMA_WRITE, struct.pack("<QQ", 0, 4) + b"1234", flags=HeaderFlag.NO_REPLY
        )
        asking = pack_request(8, Command.DMA_READ, struct.pack("<QQ", 0, 4))
        send(connection, silent + asking + device.answer(header, payload, fds)[0])
        refusals.put(receive(connection))

    with Server(tmp_path / "s", script) as server, VfioUserFunction(server.path) as function:
        assert function.read(7, 0, 2) == b"\xf4\x1a"
        flags = HeaderFlag.REPLY | HeaderFlag.ERROR
        refusal = Header(8, Command.DMA_READ, 16, flags, errno.ENOTSUP)
        assert refusals.get(timeout=DEADLINE_S) == (refusal, b"", [])


def test_a_request_alone_does_not_look_like_the_end(tmp_path: Path, device: Device) -> None:
    def script(connection: socket.socket) -> None:
        for _ in range(2):
            header, payload, fds = receive(connection)
            reply, out = device.answer(header, payload, fds)
            send(connection, reply + pack_request(1, Command.DMA_READ, bytes(16)), out)
        while True:  # the client's refusals, and its end
            receive(connection)

    with Server(tmp_path / "s", script) as server, VfioUserFunction(server.path) as function:
        assert select.select([function], [], [], 0)[0] == []


# ---- anything at all ---------------------------------------------------------------------------


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stream=st.binary(min_size=1, max_size=100))
def test_any_bytes_are_judged(tmp_path_factory: pytest.TempPathFactory, stream: bytes) -> None:
    def script(connection: socket.socket) -> None:
        receive(connection)
        send(connection, stream)

    with (
        Server(tmp_path_factory.mktemp("any") / "s", script) as server,
        pytest.raises(VhostPciError),
    ):
        VfioUserFunction(server.path, DEADLINE_S)
