"""A device of memory behind a channel's source, with a VM1 that receives."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from driver.state_area import PAGE_SIZE
from tests.pmd.fake_source import STARTED_AND_ENABLED, FakeSource

if TYPE_CHECKING:
    from tests.driver.fake_function import FakeFunction

DESC, AVAIL, USED, DATA = 0, PAGE_SIZE, 2 * PAGE_SIZE, 4 * PAGE_SIZE
SIZE = 8
HEADER = struct.pack("<10xH", 1)
NOISE = b"\xa5" * 4096


class Receiver(FakeSource):
    """A VM1 that receives, with its transmitq stopped; buffer n is page n % SIZE of its data."""

    posted = 0

    def __init__(self, function: FakeFunction | None = None) -> None:
        self._frames: list[bytes] = []
        super().__init__(function)

    def start(self, generation: int, *, started: bool = True) -> None:
        flags = STARTED_AND_ENABLED if started else 0
        self.function.rings = [(SIZE, flags, DESC, AVAIL, USED, 0, 0), (0,) * 7]
        self.function.publish(generation)

    def post(self, *sizes: int) -> None:
        """One buffer of each size, header included."""
        for size in sizes:
            head = self.posted % SIZE
            assert self.posted - len(self.received()) < SIZE
            self.poke(self.data + PAGE_SIZE * head, NOISE)
            entry = struct.pack("<QIHH", self.data + PAGE_SIZE * head, size, 2, 0)
            self.poke(DESC + 16 * head, entry)
            self.poke(AVAIL + 4 + 2 * head, struct.pack("<H", head))
            self.posted += 1
        self.poke(AVAIL + 2, struct.pack("<H", self.posted))

    def received(self) -> list[bytes]:
        """Frames by their used elements; each behind a header of zeros and one buffer."""
        for number in range(len(self._frames), self.used_index):
            slot = number % SIZE
            head, length = struct.unpack("<II", self.peek(USED + 4 + 8 * slot, 8))
            assert head == slot
            data = self.peek(self.data + PAGE_SIZE * head, PAGE_SIZE)
            assert length == 0 or data[:12] == HEADER
            self._frames.append(data[12:length])
        return list(self._frames)
