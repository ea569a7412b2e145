"""The other two sides of the back-end: a vhost-user front-end, and the function with its driver.

The front-end speaks the protocol with its own few lines, so that a mistake in the product's wire
module cannot hide itself. It checks every reply as DPDK and QEMU do. The function side checks what
`publish` promises: all descriptors of the new state and of the one before are open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guest.closing import Closing
from tools.device.backend import Backend, Endpoint
from tools.device.commit_area import CommitArea
from tools.device.vm1_state import Vm1State
from tools.vhost_user_abi import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEADLINE_S = 30.0
NEED_REPLY = 0x8
MIB = 1 << 20
BUS = 0x1_0000_0000
USER = 0x7F00_0000_0000
FEATURES = 1 << 32 | 1 << 30 | 1 << 15  # VERSION_1, PROTOCOL_FEATURES, MRG_RXBUF
REPLY_ACK = 1 << 3
PROTOCOL = 1 << 0 | REPLY_ACK | 1 << 5 | 1 << 13 | 1 << 15 | 1 << 16


def open_fds() -> int:
    """How many descriptors this process has open, the one that looks included."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path.iterdir opens no fewer


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until another thread has made it true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.002)


class FunctionSide:
    """Plays the function and its driver: records states, acknowledges when it may.

    commits: where packed rings' positions are; `position` and `leave` are the driver's hand there.
    """

    def __init__(self) -> None:
        self.commits = CommitArea()
        self.states: list[Vm1State] = []
        self.acknowledged = 0
        self.may_acknowledge = threading.Event()
        self.may_acknowledge.set()
        self.broken: list[str] = []

    def position(self, ring: int) -> tuple[int, ...]:
        return struct.unpack("<II", os.pread(self.commits.fd, 8, 8 * ring))

    def leave(self, ring: int, committed: int, intended: int) -> None:
        os.pwrite(self.commits.fd, struct.pack("<II", committed, intended), 8 * ring)

    async def publish(self, state: Vm1State) -> None:
        former = self.states[-1:]
        before = former[0] if former else Vm1State(False, 0, (), ())
        self.commits.start(before, state)
        self.states.append(state)
        while not self.may_acknowledge.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.002)
        for known in [*former, state]:
            for fd in descriptors_of(known):
                try:
                    os.fstat(fd)
                except OSError:
                    self.broken.append(f"descriptor {fd} was closed too early")
        self.commits.finish(before, state)
        self.acknowledged += 1

    @property
    def state(self) -> Vm1State:
        return self.states[-1]


def descriptors_of(state: Vm1State) -> set[int]:
    """Every descriptor a state names."""
    fds = {region.file.fd for region in state.memory}
    for ring in state.rings:
        fds |= {ring.kick_fd, ring.call_fd, ring.error_fd}
    fds |= {state.log.fd} if state.log else set()
    return fds - {-1}


class Serving:
    """A Backend on an event loop in a thread of its own."""

    def __init__(
        self, queue_pairs: int = 2, timeout_s: float = 10.0, *, connect: bool = False
    ) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "vm1.sock"
        self.function = FunctionSide()
        endpoint = Endpoint(self.path, connect)
        self.backend = Backend(
            endpoint, queue_pairs, self.function.publish, self.function.commits, timeout_s=timeout_s
        )
        self._error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self.backend.serve())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.backend.open()
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - stop() raises it in the test
            self._error = error

    def front_end(self) -> FrontEnd:
        """Connect a new one, and see that it is served."""
        front_end = FrontEnd(self.path)
        wait_for(lambda: bool(self.function.states), "a first state")
        return front_end

    def settle(self) -> None:
        """Wait until the front-end that left is forgotten."""
        wait_for(
            lambda: (
                bool(self.function.states)
                and not self.function.state.connected
                and self.function.acknowledged == len(self.function.states)
                and self.backend._session is None
            ),
            "the back-end noticing that the front-end left",
        )

    def stop(self) -> None:
        self.function.may_acknowledge.set()
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self._loop.close()
        self.function.commits.close()
        self.directory.cleanup()
        assert self.function.broken == []
        if self._error:
            raise self._error


@contextlib.contextmanager
def serving(
    queue_pairs: int = 2, timeout_s: float = 10.0, *, connect: bool = False
) -> Iterator[Serving]:
    """A Backend, and the proof that nothing of it is left afterwards."""
    before = open_fds()
    server = Serving(queue_pairs, timeout_s, connect=connect)
    try:
        yield server
    finally:
        server.stop()
    assert open_fds() == before


@dataclass(frozen=True)
class Region:
    """One region as the front-end describes it."""

    bus: int
    size: int
    user: int
    offset: int = 0

    def pack(self) -> bytes:
        return struct.pack("<QQQQ", self.bus, self.size, self.user, self.offset)


class FrontEnd(Closing):
    """A vhost-user front-end on a raw socket."""

    def __init__(self, path: Path | None = None, connection: socket.socket | None = None) -> None:
        if connection is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(str(path))
        connection.settimeout(DEADLINE_S)
        self.socket = connection
        self.eventfds: list[int] = []

    def close(self) -> None:
        self.socket.close()
        while self.eventfds:
            os.close(self.eventfds.pop())

    def eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.eventfds.append(fd)
        return fd

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0
    ) -> None:
        header = struct.pack("<III", request, 1 | flags, len(payload))
        socket.send_fds(self.socket, [header + payload], list(fds))

    def reply(self, request: int) -> bytes:
        """The payload of the next reply, which has to be one to this request."""
        header = self._exactly(12)
        answered, flags, size = struct.unpack("<III", header)
        assert (answered, flags) == (request, 0x5)
        assert size <= 4096
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def closed(self) -> bool:
        """Whether the back-end closes this connection without another word."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        self.send(request, payload)
        return self.reply(request)

    def ask_u64(self, request: int) -> int:
        (value,) = struct.unpack("<Q", self.ask(request))
        return int(value)

    def acknowledged(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Send with NEED_REPLY; True where the back-end says success."""
        self.send(request, payload, fds, NEED_REPLY)
        (value,) = struct.unpack("<Q", self.reply(request))
        return int(value) == 0

    def negotiate(self, features: int = FEATURES, protocol: int = PROTOCOL) -> None:
        """The beginning of every conversation, in QEMU's order."""
        offered = self.ask_u64(Request.GET_FEATURES)
        assert features & ~offered == 0
        assert protocol & ~self.ask_u64(Request.GET_PROTOCOL_FEATURES) == 0
        self.send(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", protocol))
        self.send(Request.SET_OWNER)
        self.send(Request.SET_FEATURES, struct.pack("<Q", features))

    def sync(self) -> None:
        """Wait until everything sent so far was handled."""
        self.ask(Request.GET_FEATURES)

    def set_memory(self, regions: Sequence[Region], fds: Sequence[int]) -> bool:
        payload = struct.pack("<II", len(regions), 0) + b"".join(r.pack() for r in regions)
        return self.acknowledged(Request.SET_MEM_TABLE, payload, fds)

    def start_ring(self, index: int, size: int = 256, user: int = USER, base: int = 0) -> None:
        """Set a ring up in QEMU's order; its parts lie from user on, a page apart."""
        self.send(Request.SET_VRING_NUM, struct.pack("<II", index, size))
        self.send(Request.SET_VRING_BASE, struct.pack("<II", index, base))
        self.send(Request.SET_VRING_ADDR, ring_addresses(index, user))
        self.send(Request.SET_VRING_KICK, struct.pack("<Q", index), [self.eventfd()])
        self.send(Request.SET_VRING_CALL, struct.pack("<Q", index), [self.eventfd()])

    def enable_ring(self, index: int, enable: int = 1) -> None:
        self.send(Request.SET_VRING_ENABLE, struct.pack("<II", index, enable))

    def stop_ring(self, index: int) -> int:
        """GET_VRING_BASE; the index where the ring stands."""
        answer = self.ask(Request.GET_VRING_BASE, struct.pack("<II", index, 0))
        stopped, base = struct.unpack("<II", answer)
        assert stopped == index
        return int(base)


def ring_addresses(index: int, user: int, flags: int = 0) -> bytes:
    """SET_VRING_ADDR of a ring with its parts at 0, 0x2000 and 0x3000 from user on."""
    return struct.pack("<IIQQQQ", index, flags, user, user + 0x3000, user + 0x2000, 0)


@contextlib.contextmanager
def memory(size: int = 4 * MIB, *, sealable: bool = True) -> Iterator[int]:
    """A memfd to be VM1's memory."""
    fd = os.memfd_create("vm1", os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if sealable else 0))
    os.ftruncate(fd, size)
    try:
        yield fd
    finally:
        os.close(fd)


def write_used_index(fd: int, offset: int, value: int) -> None:
    """What the driver in VM2 would have left in the used ring of start_ring's layout."""
    os.pwrite(fd, struct.pack("<H", value), offset + 0x3000 + 2)
