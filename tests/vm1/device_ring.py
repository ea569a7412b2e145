"""The device's side of a split ring, word for word from virtio 1.3, section 2.7, and slow."""

from __future__ import annotations

import os
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.vm1.guest_memory import GuestMemory

DESC = struct.Struct("<QIHH")  # 2.7.5
USED_ELEMENT = struct.Struct("<II")  # 2.7.8
NEXT, WRITE, INDIRECT = 1, 2, 4


def fence() -> None:
    """What CPython's lock operations are: what is used is visible before a wish is read."""
    threading.Lock().acquire()


@dataclass(slots=True)
class Chain:
    """An available chain: its id, and (bus address, length, flags) of each buffer.

    count: its descriptors in the ring. last_at: the bus address of its last descriptor, wherever.
    """

    head: int
    buffers: list[tuple[int, int, int]]
    count: int = 1
    last_at: int = 0

    @property
    def length(self) -> int:
        return sum(length for _, length, _ in self.buffers)

    def scatter(self, memory: GuestMemory, data: bytes) -> None:
        """Write data into the buffers; there is room."""
        for bus, length, flags in self.buffers:
            assert flags & WRITE, "5.1.6.3: receive buffers are device-writable"
            piece, data = data[:length], data[length:]
            if piece:
                memory.write(bus, piece)
        assert not data


@dataclass(slots=True)
class DeviceRing:
    """One ring as vhost-user messages describe it, and where the device is in it."""

    size: int = 0
    last_avail: int = 0
    used_index: int = 0
    desc: int = 0
    avail: int = 0
    used: int = 0
    enabled: bool = False
    event_idx: bool = False
    fds: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    kicks: int = 0
    loses_call: bool = False

    @property
    def running(self) -> bool:
        return "kick" in self.fds and self.enabled

    def set_fd(self, name: str, fd: int) -> None:
        if name in self.fds:
            os.close(self.fds[name])
        self.fds[name] = fd

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.popitem()[1])

    def take(self, memory: GuestMemory) -> Chain | None:
        """The next available chain (2.7.6), every descriptor of it checked."""
        if memory.read_u16(self.avail + 2) == self.last_avail & 0xFFFF:
            return None
        head = memory.read_u16(self.avail + 4 + 2 * (self.last_avail % self.size))
        self.last_avail += 1
        return self._walk(memory, head)

    def give_back(self, chain: Chain) -> None:  # noqa: ARG002 - a packed ring asks for its length
        """Forget that the chain, the last one taken, was taken."""
        self.last_avail -= 1

    def set_base(self, base: int) -> None:
        """What SET_VRING_BASE says."""
        self.last_avail = self.used_index = base

    def base(self) -> int:
        """What GET_VRING_BASE is to be told."""
        return self.last_avail & 0xFFFF

    def _walk(self, memory: GuestMemory, head: int) -> Chain:
        table, count, index, buffers = self.desc, self.size, head, []
        for _ in range(count):
            assert index < count, "2.7.5: next names no descriptor"
            at = table + DESC.size * index
            address, length, flags, following = DESC.unpack(memory.read(at, DESC.size))
            if flags & INDIRECT:
                assert table == self.desc, "2.7.5.3.1: nested"
                assert not flags & NEXT, "2.7.5.3.1: with NEXT"
                table, count, index = address, length // DESC.size, 0
                continue
            buffers.append((address, length, flags))
            if not flags & NEXT:
                return Chain(head, buffers, last_at=at)
            index = following
        raise AssertionError("2.7.5.3.1: a chain longer than its table")

    def put_used(self, memory: GuestMemory, head: int, length: int, ahead: int = 0) -> None:
        """Write a used element (2.7.8), not yet visible; ahead of those already put."""
        at = self.used + 4 + USED_ELEMENT.size * ((self.used_index + ahead) % self.size)
        memory.write(at, USED_ELEMENT.pack(head, length))

    def publish(self, memory: GuestMemory, count: int) -> None:
        """Move used.idx, and call the driver if it asks for it (2.7.7.2)."""
        old, new = self.used_index, self.used_index + count
        self.used_index = new
        memory.write_u16(self.used + 2, new)
        fence()
        if self.event_idx:
            event = memory.read_u16(self.avail + 4 + 2 * self.size)
            wanted = (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not memory.read_u16(self.avail) & 1
        if wanted:
            self.call()

    def call(self) -> None:
        """Interrupt the driver, unless this call is to be lost."""
        if self.loses_call:
            self.loses_call = False
        elif "call" in self.fds:
            os.eventfd_write(self.fds["call"], 1)
            self.calls += 1

    def jump(self, memory: GuestMemory, head: int) -> None:
        """Use more than there is: what no device may do."""
        self.put_used(memory, head, 0)
        self.publish(memory, self.size + 1)

    def use(self, memory: GuestMemory, head: int, length: int) -> None:
        """Use one chain."""
        self.put_used(memory, head, length)
        self.publish(memory, 1)

    def suppress_kicks(self, memory: GuestMemory) -> None:
        """Tell the driver not to kick (2.7.10): this device polls."""
        if self.event_idx:
            behind = self.last_avail + 0x8000
            memory.write_u16(self.used + 4 + USED_ELEMENT.size * self.size, behind)
        else:
            memory.write_u16(self.used, 1)

    def want_kick(self, memory: GuestMemory, after: int) -> None:
        """Ask for a kick by the chain that follows so many more (2.7.10, with EVENT_IDX)."""
        assert self.event_idx
        event = self.last_avail + after
        memory.write_u16(self.used + 4 + USED_ELEMENT.size * self.size, event)
