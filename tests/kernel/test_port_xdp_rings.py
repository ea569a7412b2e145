"""The xdp port against rings of which this test is the kernel, which at times lies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest

from driver.software_vf.vf import PortSpec
from driver.software_vf.xdp import XdpQueues
from driver.software_vf.xdp_socket import XdpQueue, XdpRing
from driver.software_vf.xdp_state import SharedState
from guest.errors import VhostPciError
from tests.kernel.namespace import frame
from tests.kernel.port_user import PortUser

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK = 2048
RX, TX = 16, 8
MORE = 1
MASK = (1 << 32) - 1


class Ring:
    """One ring in memory: its indices, its entries; index is the one that is the kernel's."""

    def __init__(self, count: int, words: int) -> None:
        self.indices = np.zeros(48, np.uint32)  # a cache line each
        self.entries = np.zeros((count, words), np.uint64)
        self.index = 0
        start, entries = self.indices.ctypes.data, self.entries.ctypes.data
        self.facts = XdpRing(start, start + 64, start + 128, entries)

    @property
    def producer(self) -> int:
        return int(self.indices[0])

    @property
    def consumer(self) -> int:
        return int(self.indices[16])

    def wait_for_a_call(self, *, waits: bool) -> None:
        """linux/if_xdp.h XDP_RING_NEED_WAKEUP."""
        self.indices[32] = waits

    def put(self, *words: int) -> None:
        """The kernel produces an entry."""
        self.entries[self.index % len(self.entries)] = words
        self.index += 1
        self.indices[0] = self.index & MASK

    def take(self) -> list[int] | None:
        """The kernel consumes an entry, if there is one."""
        if self.producer == self.index & MASK:
            return None
        words = [int(word) for word in self.entries[self.index % len(self.entries)]]
        self.index += 1
        self.indices[16] = self.index & MASK
        return words


class Kernel:
    """The other side of one queue."""

    def __init__(self, *, sends: bool = True, fd: int = -1) -> None:
        self.memory = np.zeros((RX + TX) * CHUNK, np.uint8)
        self.fill, self.completion = Ring(RX, 1), Ring(TX, 1)
        self.rx, self.tx = Ring(RX, 2), Ring(TX, 2)
        self.fd = os.open(os.devnull, os.O_RDONLY) if fd < 0 else os.dup(fd)
        self.facts = XdpQueue(
            self.fd,
            self.memory.ctypes.data,
            RX,
            TX if sends else 0,
            self.fill.facts,
            self.completion.facts if sends else XdpRing(),
            self.rx.facts,
            self.tx.facts if sends else XdpRing(),
        )

    def close(self) -> None:
        os.close(self.fd)

    def receive(self, data: bytes, headroom: int = 256) -> None:
        """A frame arrives, in as many chunks as it needs."""
        room = CHUNK - headroom
        parts = [data[at : at + room] for at in range(0, max(1, len(data)), room)]
        for part in parts:
            free = self.fill.take()
            assert free is not None, "no chunk to receive into"
            at = free[0] + headroom
            self.memory[at : at + len(part)] = list(part)
            self.rx.put(at, len(part) | (MORE << 32 if part is not parts[-1] else 0))

    def send(self) -> bytes | None:
        """The oldest frame to send, whose chunks come back; None without one."""
        whole = b""
        while words := self.tx.take():
            at, length, options = words[0], words[1] & MASK, words[1] >> 32
            whole += self.memory[at : at + length].tobytes()
            self.completion.put(at)
            if not options & MORE:
                return whole
        assert not whole
        return None


class Setup:
    """Queues and the port on them."""

    def __init__(self, kernels: Sequence[Kernel], *, multi_buffer: bool = True) -> None:
        self.state = SharedState(9000, 0)
        queues = tuple(kernel.facts for kernel in kernels)
        state = ctypes.addressof(self.state)
        spec = PortSpec("xdp", xdp=XdpQueues(queues, CHUNK, multi_buffer, state))
        self.port = PortUser(spec)

    @property
    def broken(self) -> bool:
        return bool(self.state.broken)


@contextlib.contextmanager
def running(*, multi_buffer: bool = True) -> Iterator[tuple[Kernel, Setup]]:
    with contextlib.closing(Kernel()) as kernel:
        setup = Setup([kernel], multi_buffer=multi_buffer)
        with setup.port:
            yield kernel, setup


def test_all_chunks_go_round_many_times() -> None:
    with running() as (kernel, setup):
        assert [kernel.fill.entries[i, 0] for i in range(RX)] == [i * CHUNK for i in range(RX)]
        for i in range(5 * RX):
            sizes = (60 + i, 1792, 1793, 3584, 4000)
            for size in sizes:
                kernel.receive(frame(i, size))
            assert setup.port.take(8) == [frame(i, size) for size in sizes]
            sent = [frame(i, size) for size in (60 + i, 2048, 2049, 4096)]
            assert setup.port.tx(sent) == ["sent"] * 4
            assert [kernel.send() for _ in range(5)] == [*sent, None]
        assert not setup.broken


def test_the_kernel_is_called_only_where_it_waits_for_a_call() -> None:
    """A call of this socket to send is an empty datagram at ours, one to receive takes one."""
    with contextlib.ExitStack() as stack:
        ours, ports = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        kernel = stack.enter_context(contextlib.closing(Kernel(fd=ports.fileno())))
        setup = Setup([kernel])
        stack.enter_context(setup.port)
        for waits in (False, True, False, True):
            kernel.tx.wait_for_a_call(waits=waits)
            assert setup.port.tx([frame(1)]) == ["sent"]
            assert kernel.send() == frame(1)
            assert _drained(ours) == [b""] * waits
            kernel.fill.wait_for_a_call(waits=waits)
            ours.send(b"taken by a call")
            kernel.receive(frame(2))
            assert setup.port.take() == [frame(2)]
            assert _drained(ports) == [b"taken by a call"] * (not waits)


def _drained(end: socket.socket) -> list[bytes]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(end.recv(64, socket.MSG_DONTWAIT))
    return found


def test_a_full_ring_makes_frames_wait() -> None:
    with running() as (kernel, setup):
        assert setup.port.tx([frame(i) for i in range(20)]) == ["sent"] * TX
        assert setup.port.tx([frame(8)]) == []
        assert kernel.send() == frame(0)
        assert setup.port.tx([frame(8, 2049)]) == []  # it needs two chunks
        assert kernel.send() == frame(1)
        assert setup.port.tx([frame(8, 2049), frame(9)]) == ["sent"]
        assert [kernel.send() for _ in range(8)] == [
            *(frame(i) for i in range(2, 8)),
            frame(8, 2049),
            None,
        ]


def test_without_several_buffers_a_frame_has_one_chunk() -> None:
    with running(multi_buffer=False) as (kernel, setup):
        assert setup.port.tx([frame(1, 2049), frame(2, 2048)]) == ["oversize", "sent"]
        assert kernel.send() == frame(2, 2048)


def test_the_interface_s_limit_may_change_at_any_time() -> None:
    with running() as (kernel, setup):
        assert setup.port.tx([frame(1, 9000), frame(2, 9001)]) == ["sent", "oversize"]
        setup.state.frame_bytes_max = 0
        assert setup.port.tx([frame(3)]) == ["vf_down"]
        setup.state.frame_bytes_max = 1518
        assert kernel.send() == frame(1, 9000)
        assert setup.port.tx([frame(4, 1519), frame(5)]) == ["oversize", "sent"]
        assert kernel.send() == frame(5)


def test_what_is_no_frame_is_passed_over() -> None:
    with running() as (kernel, setup):
        for data in (b"", b"13 bytes long", frame(1), b"short", frame(2), b""):
            kernel.receive(data)
        assert setup.port.take() == [frame(1)]
        assert setup.port.take() == [frame(2)]
        assert setup.port.take() == []
        for _ in range(4096):
            setup.port.rx(1)
        assert setup.port.missed == 4
        assert not setup.broken
        while kernel.fill.take():
            pass
        assert kernel.fill.index == RX + 6  # each chunk came back once


def test_an_empty_part_is_no_segment() -> None:
    with running() as (kernel, setup):
        chunks = [(kernel.fill.take() or [0])[0] for _ in range(3)]
        kernel.memory[0:60] = list(frame(1, 60))
        kernel.rx.put(chunks[0], 40 | MORE << 32)
        kernel.rx.put(chunks[1], 0 | MORE << 32)
        assert setup.port.take() == []  # its end has not come
        kernel.memory[chunks[2] : chunks[2] + 20] = list(frame(1, 60)[40:])
        kernel.rx.put(chunks[2], 20)
        assert setup.port.take() == [frame(1, 60)]


def test_queues_take_turns() -> None:
    with contextlib.ExitStack() as stack:
        kernels = [stack.enter_context(contextlib.closing(Kernel(sends=i == 0))) for i in range(3)]
        port = stack.enter_context(Setup(kernels).port)
        for number, kernel in enumerate(kernels):
            for i in range(4):
                kernel.receive(frame(10 * number + i))
        bursts = [port.take(3) for _ in range(7)]
    assert [len(burst) for burst in bursts] == [3, 3, 3, 1, 1, 1, 0]
    first = [int.from_bytes(burst[0][14:18], "big") for burst in bursts[:6]]
    assert first == [0, 10, 20, 3, 13, 23]


def _jump(ring: Ring, by: int) -> None:
    ring.indices[0] = (ring.producer + by) & MASK


@pytest.mark.parametrize(
    ("address", "length"),
    [
        ((RX * CHUNK), 60),  # a chunk to send from
        ((RX + TX) * CHUNK, 60),  # past the memory
        (1 << 63, 60),
        (CHUNK - 59, 60),  # into the next chunk
        (0, CHUNK + 1),
        (100, MASK),
    ],
)
def test_a_received_descriptor_that_lies(address: int, length: int) -> None:
    with running() as (kernel, setup):
        kernel.receive(frame(1))
        assert setup.port.rx() == [frame(1)]
        kernel.rx.put(address, length)
        assert setup.port.rx() == []
        _stays_broken(setup)


def test_a_chunk_that_is_received_twice() -> None:
    with running() as (kernel, setup):
        kernel.receive(frame(1))
        kernel.rx.put(256, 60)
        assert setup.port.rx() == []
        _stays_broken(setup)


@pytest.mark.parametrize("by", [RX + 1, MASK, 1 << 31])
def test_more_received_than_the_ring_has(by: int) -> None:
    with running() as (kernel, setup):
        _jump(kernel.rx, by)
        assert setup.port.rx() == []
        _stays_broken(setup)


def test_a_frame_that_never_ends() -> None:
    with running() as (kernel, setup):
        for _ in range(RX):
            free = kernel.fill.take()
            assert free is not None
            kernel.rx.put(free[0], 100 | MORE << 32)
        assert setup.port.rx() == []
        _stays_broken(setup)


@pytest.mark.parametrize("chunk", [RX - 1, RX + 1, RX + TX, 1 << 40])
def test_a_completion_of_what_was_not_sent(chunk: int) -> None:
    with running() as (kernel, setup):
        assert setup.port.tx([frame(1)]) == ["sent"]
        kernel.completion.put(chunk * CHUNK)
        assert setup.port.tx([frame(2)]) == ["vf_error"]
        _stays_broken(setup)


def test_a_completion_that_comes_twice() -> None:
    with running() as (kernel, setup):
        assert setup.port.tx([frame(1), frame(2)]) == ["sent"] * 2
        assert kernel.send() == frame(1)
        kernel.completion.put(int(kernel.completion.entries[0, 0]))
        assert setup.port.tx([frame(3)]) == ["vf_error"]
        _stays_broken(setup)


def test_more_completions_than_the_ring_has() -> None:
    with running() as (kernel, setup):
        _jump(kernel.completion, TX + 1)
        assert setup.port.tx([frame(1)]) == ["vf_error"]
        _stays_broken(setup)


def _stays_broken(setup: Setup) -> None:
    assert setup.broken
    assert setup.port.tx([frame(1), frame(2)]) == ["vf_error"] * 2
    assert setup.port.rx() == []


@pytest.mark.parametrize(("chunk", "sends"), [(1500, True), (1 << 28, True), (CHUNK, False)])
def test_impossible_queues(chunk: int, sends: bool) -> None:
    with contextlib.closing(Kernel(sends=sends)) as kernel:
        state = ctypes.addressof(SharedState())
        queues = XdpQueues((kernel.facts,), chunk, multi_buffer=True, state=state)
        with pytest.raises(VhostPciError, match="its queues are none"):
            PortUser(PortSpec("xdp", xdp=queues))


def test_no_queues() -> None:
    with pytest.raises(VhostPciError, match="its queues are none"):
        PortUser(PortSpec("xdp", xdp=XdpQueues((), CHUNK, multi_buffer=True, state=0)))
    with pytest.raises(VhostPciError, match="its queues are none"):
        PortUser(PortSpec("xdp"))
