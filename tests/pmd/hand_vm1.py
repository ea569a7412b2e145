"""A VM1 whose every store is made by hand, so that it can break its rings."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import tempfile
from typing import TYPE_CHECKING

from guest.closing import Closing
from tests.pmd.wait import wait_for
from tools.vm1.frontend import FrontEnd
from tools.vm1.options import MemoryOptions, Mode, Options, RingOptions, Socket, TrafficOptions
from tools.vm1.rings import Rings

if TYPE_CHECKING:
    from pathlib import Path

    from tools.vm1.memory import Memory
    from tools.vm1.rings import Ring

RECEIVE, TRANSMIT = 0, 1
_INDEX = 2  # of avail.idx and used.idx in their areas (virtio 1.3, 2.7.6, 2.7.8)
_ENTRIES = 4
_WRITE = 2
_MAP_FIXED = 0x10


def _replace_by_file(memory: Memory) -> None:
    """Put a file of tmpfs in the place of memory's sealed one: it cannot be sealed."""
    size = sum(region.size_bytes for region in memory.regions)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(size)
        os.dup2(file.fileno(), memory.fd, inheritable=False)
    address = ctypes.c_void_p(memory.regions[0].user)
    flags = mmap.MAP_SHARED | _MAP_FIXED
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    length, offset = ctypes.c_size_t(size), ctypes.c_long(0)
    assert libc.mmap(address, length, protection, flags, memory.fd, offset) == address.value


class HandVm1(Closing):
    """One queue pair at the device's socket, started and empty. One thread.

    Args:
        path: The device's vhost-user socket.
        sealable: Whether the device can keep the memory from shrinking.
        ready: Whether its driver is (DRIVER_OK); else all that was done is to negotiate, and the
            rings are to be filled before `driver_ok`.
    """

    def __init__(self, path: Path, *, sealable: bool = True, ready: bool = True) -> None:
        options = Options(
            Mode.IDLE, Socket(path, listen=False), MemoryOptions(), RingOptions(), TrafficOptions()
        )
        self.rings = Rings(options)
        if not sealable:
            _replace_by_file(self.rings.memory)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        self._front_end = FrontEnd(connection, str(path))
        self._front_end.negotiate(options.rings)
        if ready:
            self.driver_ok()

    def _ring(self, index: int) -> Ring:
        return self.rings.rings[index]

    def driver_ok(self) -> None:
        """What a VMM does once the driver is ready. Once."""
        self._front_end.share_memory(self.rings.memory)
        self.start()

    def start(self) -> None:
        """Start both rings where their used index is."""
        self._front_end.start(self.rings.rings, [self.used(RECEIVE), self.used(TRANSMIT)])
        for ring in self.rings.rings:
            os.eventfd_write(ring.kick_fd, 1)

    def stop(self) -> list[int]:
        """Stop both rings; the bases that the device answers."""
        return self._front_end.stop(2)

    def used(self, index: int) -> int:
        """used.idx of a ring."""
        return ctypes.c_uint16.from_address(self._ring(index).used.host + _INDEX).value

    def set_available(self, index: int, value: int) -> None:
        """Store avail.idx of a ring, whatever it says."""
        address = self._ring(index).avail.host + _INDEX
        ctypes.c_uint16.from_address(address).value = value & 0xFFFF

    def offer(self, head: int) -> None:
        """Put head into the next entry of the transmit ring, without a new avail.idx."""
        ring = self._ring(TRANSMIT)
        slot = self.used(TRANSMIT) % ring.shape.size
        ctypes.c_uint16.from_address(ring.avail.host + _ENTRIES + 2 * slot).value = head

    def stock(self) -> None:
        """Post one receive buffer, the first of its ring."""
        ring = self._ring(RECEIVE)
        slot = ring.slots[0]
        descriptor = struct.pack("<QIHH", slot.bus, 2048, _WRITE, 0)
        ctypes.memmove(ring.desc.host, descriptor, len(descriptor))
        ctypes.c_uint16.from_address(ring.avail.host + _ENTRIES).value = 0
        self.set_available(RECEIVE, 1)

    def transmit(self) -> None:
        """Send one frame of 60 zero bytes, and wait until the device has taken it."""
        before = self.used(TRANSMIT)
        self.send()
        wait_for(lambda: self.used(TRANSMIT) == (before + 1) & 0xFFFF, "the used index")

    def send(self) -> None:
        """Make such a frame available, behind those that were taken."""
        ring = self._ring(TRANSMIT)
        before = self.used(TRANSMIT)
        descriptor = struct.pack("<QIHH", ring.slots[0].bus, 12 + 60, 0, 0)
        ctypes.memset(ring.slots[0].host, 0, 12 + 60)
        ctypes.memmove(ring.desc.host, descriptor, len(descriptor))
        self.offer(0)
        self.set_available(TRANSMIT, before + 1)

    def wait_for_error(self, index: int) -> None:
        """Until the device signals the ring's error eventfd."""
        wait_for(lambda: self._ring(index).error_count() > 0, f"the error of ring {index}")

    def truncate(self) -> None:
        """Take the memory away. Nothing here may touch it from now on."""
        os.ftruncate(self.rings.memory.fd, 0)

    def close(self) -> None:
        """Hang up."""
        self._front_end.close()
        self.rings.close()
