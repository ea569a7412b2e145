"""The other side of the vfio-user client's tests: a server on a raw socket, honest or not."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Self

from guest.vfio_user_abi import (
    HEADER_SIZE,
    Command,
    DeviceFlag,
    DeviceInfo,
    Header,
    IoEventFd,
    IoFds,
    IrqFlag,
    IrqInfo,
    IrqSet,
    IrqSetFlag,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    SparseArea,
)
from guest.vfio_user_wire import (
    pack_error,
    pack_reply,
    pack_sparse_mmap,
    pack_version,
    unpack_version,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

DEADLINE_S = 30.0
CONFIG = struct.pack("<HH4xI32xHH16x", 0x1AF4, 0x10F0, 0x02000001, 0x1AF4, 0x10F1)


def receive(connection: socket.socket) -> tuple[Header, bytes, list[int]]:
    """One request; EOFError when the client is gone."""
    fds = array.array("i")
    message = b""
    size = HEADER_SIZE
    while len(message) < size:
        chunk, ancillary, _, _ = connection.recvmsg(size - len(message), socket.CMSG_SPACE(4 * 253))
        for _, _, data in ancillary:
            fds.frombytes(data[: len(data) // 4 * 4])
        if not chunk:
            raise EOFError
        message += chunk
        if len(message) == HEADER_SIZE:
            size = Header.unpack(message).size
    return Header.unpack(message), message[HEADER_SIZE:], list(fds)


def send(connection: socket.socket, message: bytes, fds: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = connection.sendmsg([message], rights)
    connection.sendall(message[sent:])


class Server:
    """Listens at path and runs script(connection) for each client, in a thread.

    What the script raises, but for the client's leaving, is raised again at the end.
    """

    def __init__(self, path: Path, script: Callable[[socket.socket], None]) -> None:
        self.path = str(path)
        self._script = script
        self._failure: BaseException | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # shut down
                return
            with connection:
                connection.settimeout(DEADLINE_S)
                try:
                    self._script(connection)
                except (EOFError, BrokenPipeError, ConnectionResetError):
                    pass
                except BaseException as error:  # noqa: BLE001 - raised again by __exit__
                    self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE_S)
        self._listener.close()
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure


class Device:
    """An honest device: BAR 0 of two pages (the second mappable), BAR 2 with two areas, 4 MSIs.

    Tests change its attributes, or override one answer: `answers[command]` takes the request and
    returns the whole reply as bytes and the descriptors to go with it.
    """

    def __init__(self) -> None:
        self.regions = {0: bytearray(8192), 7: bytearray(CONFIG.ljust(4096, b"\0"))}
        self.window_areas = [SparseArea(0, 4096), SparseArea(8192, 4096)]
        self.window_size = 16384
        self.window_offset = 4096
        self.file = os.memfd_create("window")
        os.ftruncate(self.file, 65536)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.doorbells = [IoEventFd(0x800, 4, 0), IoEventFd(0x808, 4, 0)]
        self.doorbell_tail = b""
        self.capabilities: dict[str, object] = {"max_msg_fds": 2, "max_data_xfer_size": 64}
        self.client_capabilities: dict[str, object] = {}
        self.log: list[tuple[Command, bytes, int]] = []
        self.eventfds: dict[tuple[int, int], int] = {}
        self.answers: dict[Command, Callable[[Header, bytes], tuple[bytes, list[int]]]] = {}

    def close(self) -> None:
        for fd in (self.file, self.call, *self.eventfds.values()):
            os.close(fd)
        self.eventfds.clear()

    def __call__(self, connection: socket.socket) -> None:
        while True:
            header, payload, fds = receive(connection)
            command = Command(header.command)
            self.log.append((command, payload, len(fds)))
            if command in self.answers:
                for fd in fds:
                    os.close(fd)
                reply, out = self.answers[command](header, payload)
            else:
                reply, out = self.answer(header, payload, fds)
            send(connection, reply, out)

    def answer(self, header: Header, payload: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
        handler = getattr(self, f"on_{Command(header.command).name.lower()}", None)
        if header.command == Command.DEVICE_SET_IRQS:
            return self.set_irqs(header, payload, fds)
        assert not fds
        if handler is None:
            return pack_error(header, errno.ENOTSUP), []
        answer: tuple[bytes, list[int]] | None = handler(payload)
        if answer is None:
            return pack_error(header, errno.EINVAL), []
        return pack_reply(header, answer[0]), answer[1]

    def on_version(self, payload: bytes) -> tuple[bytes, list[int]]:
        _, self.client_capabilities = unpack_version(payload)
        return pack_version(self.capabilities), []

    def on_device_get_info(self, payload: bytes) -> tuple[bytes, list[int]]:
        assert payload == DeviceInfo(16).pack()
        return DeviceInfo(16, DeviceFlag.PCI | DeviceFlag.RESET, 10, 5).pack(), []

    def on_device_get_region_info(self, payload: bytes) -> tuple[bytes, list[int]] | None:
        request = RegionInfo.unpack(payload)
        if request.index == 2:
            areas, size, offset = self.window_areas, self.window_size, self.window_offset
        elif request.index == 0:
            areas, size, offset = [SparseArea(4096, 4096)], 8192, 0
        elif request.index in {7, 9}:
            size = len(self.regions.get(request.index, b""))
            return RegionInfo(32, RegionFlag.READ, request.index, 0, size).pack(), []
        else:
            return None
        chain = pack_sparse_mmap(areas)
        fits = request.argsz >= 32 + len(chain)
        info = RegionInfo(32 + len(chain), 0xF, request.index, 32, size, offset)
        return info.pack() + (chain if fits else b""), [self.file]

    def on_device_get_region_io_fds(self, payload: bytes) -> tuple[bytes, list[int]] | None:
        request = IoFds.unpack(payload)
        if request.index != 0 or request.count or request.flags:
            return None
        parts = b"".join(part.pack() + self.doorbell_tail for part in self.doorbells)
        info = IoFds(16 + len(parts), 0, 0, len(self.doorbells)).pack()
        fits = request.argsz >= 16 + len(parts)
        return (info + parts, [self.call]) if fits else (info, [])

    def on_device_get_irq_info(self, payload: bytes) -> tuple[bytes, list[int]]:
        index = IrqInfo.unpack(payload).index
        return IrqInfo(16, IrqFlag.EVENTFD, index, 4 if index == 1 else 0).pack(), []

    def set_irqs(self, header: Header, payload: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
        request = IrqSet.unpack(payload)
        vectors = range(request.start, request.start + request.count)
        if request.flags == IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER and not vectors:
            for fd in self.eventfds.values():
                os.close(fd)
            self.eventfds.clear()
        elif vectors.stop > 4 or len(fds) != len(vectors) or len(fds) > 2:
            for fd in fds:
                os.close(fd)
            return pack_error(header, errno.EINVAL), []
        else:
            self.eventfds |= {
                (request.index, vector): fd for vector, fd in zip(vectors, fds, strict=True)
            }
        return pack_reply(header), []

    def on_region_read(self, payload: bytes) -> tuple[bytes, list[int]] | None:
        access = RegionAccess.unpack(payload)
        assert access.count <= 64
        region = self.regions.get(access.region)
        if region is None or access.offset + access.count > len(region):
            return None
        return payload + bytes(region[access.offset : access.offset + access.count]), []

    def on_region_write(self, payload: bytes) -> tuple[bytes, list[int]] | None:
        access = RegionAccess.unpack(payload)
        data = payload[RegionAccess.LAYOUT.size :]
        assert access.count == len(data) <= 64
        region = self.regions.get(access.region)
        if region is None or access.offset + access.count > len(region):
            return None
        region[access.offset : access.offset + access.count] = data
        return access.pack(), []

    def on_device_reset(self, payload: bytes) -> tuple[bytes, list[int]]:
        assert not payload
        return b"", []

    def on_dma_map(self, payload: bytes) -> tuple[bytes, list[int]]:
        assert len(payload) == 32
        return b"", []

    def on_dma_unmap(self, payload: bytes) -> tuple[bytes, list[int]]:
        return payload, []
