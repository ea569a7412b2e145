"""A vfio-user client of plain structs, independent of ours: it sends what it is told, also wrongly.

Formats are those of vfio-user.rst and of what stock QEMU 11.1 sends.
"""

from __future__ import annotations

import array
import json
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_IO_FDS, GET_IRQ_INFO = range(1, 8)
SET_IRQS, REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET = range(8, 14)
NO_REPLY, REPLY, ERROR = 0x10, 0x1, 0x20
TIMEOUT_S = 30

# What QEMU 11.1.3 sends.
QEMU_CAPABILITIES: dict[str, Any] = {
    "pgsizes": 4096,
    "max_msg_fds": 16,
    "max_dma_maps": 65535,
    "max_data_xfer_size": 1048576,
    "migration": {"max_bitmap_size": 268435456, "pgsize": 4096},
    "write_multiple": True,
}
DYNAMIC: dict[str, Any] = {"max_msg_fds": 253, "vhost_pci": {"dynamic_windows": True}}


@dataclass(frozen=True)
class Answer:
    """A reply; error is 0 or an errno."""

    size: int
    error: int
    payload: bytes
    fds: tuple[int, ...]


class RawClient(Closing):
    """Owns its socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._id = 0

    def send(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0
    ) -> int:
        """Send a request; returns its id."""
        self._id = (self._id + 1) & 0xFFFF
        header = struct.pack("<HHIII", self._id, command, 16 + len(payload), flags, 0)
        self.send_raw(header + payload, fds)
        return self._id

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([data], rights)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def receive(self, command: int, message_id: int) -> Answer:
        """The reply to a request, checked to be that."""
        header, ancillary, flags, _ = self.socket.recvmsg(
            16, socket.CMSG_SPACE(4 * 253), socket.MSG_CMSG_CLOEXEC
        )
        assert not flags & socket.MSG_CTRUNC
        fds = [fd for _, _, data in ancillary for fd in array.array("i", data)]
        while len(header) < 16:
            more = self.socket.recv(16 - len(header))
            assert more, "the server closed the connection"
            header += more
        identity, echoed, size, kind, error = struct.unpack("<HHIII", header)
        payload = b""
        while len(payload) < size - 16:
            more = self.socket.recv(size - 16 - len(payload))
            assert more, "the server closed the connection in a reply"
            payload += more
        assert (identity, echoed) == (message_id, command)
        assert kind in (REPLY, REPLY | ERROR)
        if kind & ERROR:
            assert error > 0
            assert size == 16  # F12: an error reply is a header only
        else:
            assert error == 0
        return Answer(size, error, payload, tuple(fds))

    def ask(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0
    ) -> Answer:
        """A request and its reply."""
        return self.receive(command, self.send(command, payload, fds, flags))

    def version(self, capabilities: dict[str, Any]) -> Answer:
        """VERSION as 0.0 with these capabilities."""
        text = json.dumps({"capabilities": capabilities}).encode() + b"\0"
        return self.ask(VERSION, struct.pack("<HH", 0, 0) + text)

    def region_info(self, index: int, argsz: int = 32) -> Answer:
        """GET_REGION_INFO."""
        return self.ask(GET_REGION_INFO, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0))

    def read(self, region: int, offset: int, count: int) -> Answer:
        """REGION_READ; the data are payload[16:]."""
        return self.ask(REGION_READ, struct.pack("<QII", offset, region, count))

    def read32(self, offset: int) -> int:
        """A register of BAR 0."""
        return int(struct.unpack("<I", self.read(0, offset, 4).payload[16:])[0])

    def write(self, region: int, offset: int, data: bytes, flags: int = 0) -> Answer:
        """REGION_WRITE."""
        return self.ask(
            REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data, flags=flags
        )

    def write32(self, offset: int, value: int) -> Answer:
        """A register of BAR 0."""
        return self.write(0, offset, struct.pack("<I", value))

    def set_irqs(
        self, flags: int, index: int, start: int, count: int, fds: Sequence[int] = ()
    ) -> Answer:
        """SET_IRQS."""
        return self.ask(SET_IRQS, struct.pack("<IIIII", 20, flags, index, start, count), fds)

    def wait_closed(self) -> None:
        """Wait for the server to close the connection, whatever it sends before."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionResetError:
            pass

    def close(self) -> None:
        """Twice is fine."""
        self.socket.close()
