"""A device of memory behind a channel's source, with a VM1 that receives."""

from __future__ import annotations

import struct

from driver.state_area import PAGE_SIZE
from tests.pmd.fake_source import STARTED_AND_ENABLED, FakeSource

DESC, AVAIL, USED, DATA = 0, PAGE_SIZE, 2 * PAGE_SIZE, 4 * PAGE_SIZE
SIZE = 8
HEADER = struct.pack("<10xH", 1)
NOISE = b"\xa5" * 4096


class Receiver(FakeSource):
    """A VM1 that receives, with its transmitq stopped; buffer n is page n of its data."""

    posted = 0

    def start(self, generation: int, *, started: bool = True) -> None:
        flags = STARTED_AND_ENABLED if started else 0
        self.function.rings = [(SIZE, flags, DESC, AVAIL, USED, 0, 0), (0,) * 7]
        self.function.publish(generation)

    def post(self, *sizes: int) -> None:
        """One buffer of each size, header included."""
        for size in sizes:
            self.poke(self.data + PAGE_SIZE * self.posted, NOISE)
            entry = struct.pack("<QIHH", self.data + PAGE_SIZE * self.posted, size, 2, 0)
            self.poke(DESC + 16 * self.posted, entry)
            self.poke(AVAIL + 4 + 2 * self.posted, struct.pack("<H", self.posted))
            self.posted += 1
        self.poke(AVAIL + 2, struct.pack("<H", self.posted))

    def received(self) -> list[bytes]:
        """Frames by their used elements; each behind a header of zeros and one buffer."""
        count = struct.unpack("<H", self.peek(USED + 2, 2))[0]
        frames = []
        for number in range(count):
            head, length = struct.unpack("<II", self.peek(USED + 4 + 8 * number, 8))
            assert head == number
            data = self.peek(self.data + PAGE_SIZE * head, PAGE_SIZE)
            assert length == 0 or data[:12] == HEADER
            frames.append(data[12:length])
        return frames
