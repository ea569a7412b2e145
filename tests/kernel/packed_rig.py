"""The rig of tests.kernel.rig with a packed ring: its driver, its commit words, its oracle."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from driver.bus_memory import BusMemory
from driver.packed_ring import PackedRing
from pmd.kernel import RingFlags
from tests.kernel.packed_driver import WRAP, PackedDriver
from tests.kernel.rig import BIG, USED, Rig
from tests.kernel.shared_memory import shared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from driver.device_ring import DeviceRing
    from pmd.kernel import RingConfig
    from tests.kernel.packed_driver import Returned

DEVICE_EVENT = USED
ENABLE, DISABLE, AT = 0, 1, 2  # 2.8.10
HEADER = 12


class PackedRig(Rig):
    """VM1's memory and one packed ring, which begins at a position.

    Args:
        size: Of the ring.
        start: Index, plus WRAP for a wrap counter of 1.
        features: As `Layout`.
    """

    def __init__(
        self, size: int = 8, start: int = WRAP, *, far: bool = True, **features: object
    ) -> None:
        self._start = start
        self.commit = shared(4096).view(np.uint32)[:2]
        self.commit[:] = start
        self._oracle_commit = bytearray()
        super().__init__(size, far=far, **features)
        self.driver = PackedDriver(
            self.poke, self.peek, self.layout.desc, size, start=start, in_order=self.layout.in_order
        )
        self.driver.blank()
        self.set_event(ENABLE)

    def set_index(self, index: int) -> None:
        """A packed ring has none."""

    def set_event(self, flags: int, position: int = 0) -> None:
        """VM1's event structure: when it wants to be called (2.8.14)."""
        self.poke(self.layout.avail, struct.pack("<HH", position, flags))

    def set_commit(self, committed: int, intended: int) -> None:
        """The commit words that the last driver in VM2 left."""
        self.commit[:] = (committed, intended)

    def chain(self, head: int, buffers: Sequence[tuple[int, int]], flags: int = 0) -> None:
        """Post a chain of id `head`, and show it."""
        self.driver.post(head, buffers, flags)
        self.driver.show()

    def post_frame(self, number: int, buffers: int, payload: bytes) -> None:
        """A transmit chain of id `number` in so many buffers; not yet shown.

        One of 256 bytes in BIG is its own until 500 later ones.
        """
        data = bytes(HEADER) + payload
        where = BIG + 256 * (number % 500)
        self.poke(where, data)
        cuts = [*range(buffers), len(data)]
        self.driver.post(number, [(where + a, b - a) for a, b in pairwise(cuts)])

    def raw(self, index: int, address: int, length: int, buffer_id: int, flags: int) -> None:
        """Write the descriptor at index, whatever it was."""
        where = self.layout.desc + 16 * index
        self.poke(where, struct.pack("<QIHH", address, length, buffer_id, flags))

    def _own_parts(self) -> list[tuple[int, int]]:
        return [(self.layout.desc, 16 * self.layout.size), (self.layout.used, 4)]

    def config(self) -> RingConfig:
        config = super().config()
        address = self.commit.ctypes.data
        return config._replace(flags=config.flags | RingFlags.PACKED, commit=address)

    def oracle(self) -> tuple[DeviceRing, dict[int, bytearray]]:
        copies = {window: bytearray(data.tobytes()) for window, data in self.windows.items()}
        views = {window: memoryview(copy) for window, copy in copies.items()}
        self._oracle_commit = bytearray(self.commit.tobytes())
        memory = BusMemory(self.memory, views)
        return PackedRing(self.layout, memory, memoryview(self._oracle_commit)), copies

    def live_oracle(self) -> PackedRing:
        """The oracle's ring on VM1's memory itself."""
        views = {window: data.data for window, data in self.windows.items()}
        return PackedRing(self.layout, BusMemory(self.memory, views), self.commit.data.cast("B"))

    def check_alike(self, copies: dict[int, bytearray]) -> None:
        super().check_alike(copies)
        assert self.commit.tobytes() == bytes(self._oracle_commit)


def received(rig: PackedRig, buffers: dict[int, int], back: list[Returned]) -> Iterator[bytes]:
    """The frames in used receive buffers, put together by num_buffers (5.1.6.4)."""
    queue = list(back)
    while queue:
        first = queue[0]
        assert first.length
        data = rig.peek(buffers[first.id], first.length)
        (count,) = struct.unpack("<H", data[10:HEADER])
        assert len(queue) >= count > 0, "a frame must be seen whole (2.8.9)"
        for each in queue[1:count]:
            data += rig.peek(buffers[each.id], each.length or 0)
        yield data[HEADER:]
        del queue[:count]
