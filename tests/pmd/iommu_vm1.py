"""A VM1 whose driver maps each frame for its device, and takes it back when it is done."""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from typing import TYPE_CHECKING

from tests.device.iommu_front_end import ACCESS_PLATFORM, PAGE, READ, WRITE, IommuFrontEnd
from tests.device.vhost_user_peer import BUS, FEATURES, MIB, PROTOCOL, USER, Region
from tests.pmd.wait import DEADLINE_S
from tests.words import store_word

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECEIVE, TRANSMIT = 0, 1
SIZE = 256
HEADER = 12
RING_IOVA = 0xFF00_0000
_RING_BYTES = 0x10000
_WRITE = 2


class IommuVm1(IommuFrontEnd):
    """One queue pair, started, with its ring parts mapped. One thread: misses wait for `until`."""

    def __init__(self, path: Path, protocol: int = PROTOCOL) -> None:
        super().__init__(path)
        self.file = os.memfd_create("vm1", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.file, 4 * MIB)
        self.memory = mmap.mmap(self.file, 4 * MIB)
        self.posted = [0, 0]
        self.misses = 0
        self.begin(FEATURES | ACCESS_PLATFORM, protocol)
        assert self.set_memory([Region(BUS, 4 * MIB, USER)], [self.file])
        for ring in (RECEIVE, TRANSMIT):
            at = ring * _RING_BYTES
            self.map(RING_IOVA + at, USER + at, 4)
            self.start_ring(ring, SIZE, RING_IOVA + at)
            self.enable_ring(ring)

    def close(self) -> None:
        super().close()
        if not self.memory.closed:
            self.memory.close()
            os.close(self.file)

    def post(self, ring: int, iova: int, length: int) -> None:
        """One buffer becomes available, and the device is kicked."""
        at, slot = ring * _RING_BYTES, self.posted[ring] % SIZE
        flags = _WRITE if ring == RECEIVE else 0
        self.memory[at + 16 * slot : at + 16 * slot + 16] = struct.pack(
            "<QIHH", iova, length, flags, 0
        )
        available = at + 0x2000
        self.memory[available + 4 + 2 * slot : available + 6 + 2 * slot] = struct.pack("<H", slot)
        self.posted[ring] += 1
        store_word(memoryview(self.memory)[available + 2 : available + 4], self.posted[ring])
        os.eventfd_write(self.eventfds[2 * ring], 1)

    def used(self, ring: int) -> int:
        """used.idx."""
        at = ring * _RING_BYTES + 0x3002
        return int(struct.unpack("<H", self.memory[at : at + 2])[0])

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Answer misses until it holds."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"{what} did not come within {DEADLINE_S:g} s"
            if select.select([self.channel], [], [], 0.002)[0]:
                self.serve(1)
                self.misses += 1

    def done(self) -> None:
        """Until all that was posted is used."""
        self.until(lambda: [self.used(ring) for ring in (0, 1)] == self.posted, "every buffer")

    def transmit(self, iova: int, page: int, frame: bytes) -> None:
        """Map a page of the file for reading, and send what is in it."""
        self.memory[page * PAGE : page * PAGE + HEADER] = bytes(HEADER)
        self.memory[page * PAGE + HEADER : page * PAGE + HEADER + len(frame)] = frame
        self.map(iova, USER + page * PAGE, permission=READ)
        self.post(TRANSMIT, iova, HEADER + len(frame))

    def stock(self, iova: int, page: int) -> None:
        """Map a page for writing, and post it."""
        self.map(iova, USER + page * PAGE, permission=WRITE)
        self.post(RECEIVE, iova, 2048)

    def frame(self, page: int, length: int) -> bytes:
        """What was received into a page."""
        return self.memory[page * PAGE + HEADER : page * PAGE + HEADER + length]
