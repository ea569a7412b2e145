"""VM1's driver of a packed ring, by hand (virtio 1.3, 2.8): posts chains, finds them used."""

from __future__ import annotations

import copy
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
WRAP = 1 << 15  # of a position


@dataclass(frozen=True)
class Returned:
    """A used buffer; of one that a batch skipped (2.8.8) the length is not known: None."""

    id: int
    length: int | None


class PackedDriver:
    """It polls one location, and skips what it knows the chain of that id to have taken.

    Args:
        poke: Writes bytes at a bus address.
        peek: Reads so many bytes at a bus address.
        desc: Where the descriptor ring lies.
        size: Its descriptors.
        start: Index and wrap counter (2.8.1) as one number: index, plus WRAP for a counter of 1.
        in_order: A used descriptor may stand for all before it (2.8.8).
    """

    def __init__(
        self,
        poke: Callable[[int, bytes], None],
        peek: Callable[[int, int], bytes],
        desc: int,
        size: int,
        *,
        start: int = WRAP,
        in_order: bool = False,
    ) -> None:
        self._poke, self._peek = poke, peek
        self._desc, self.size, self._in_order = desc, size, in_order
        self.index, self.wrap = start & ~WRAP, bool(start & WRAP)
        self._used_index, self._used_wrap = self.index, self.wrap
        self.posted: deque[tuple[int, int]] = deque()  # id, slots: in ring order
        self._marks: list[tuple[int, int]] = []  # heads not yet shown: bus address, flags

    def twin(self) -> PackedDriver:
        """Another that goes on from here; all that was posted must be shown."""
        assert not self._marks
        twin = copy.copy(self)
        twin.posted, twin._marks = self.posted.copy(), []
        return twin

    @property
    def free(self) -> int:
        """Descriptors the driver may write."""
        return self.size - sum(slots for _, slots in self.posted)

    @property
    def position(self) -> int:
        """Of the next descriptor it makes available."""
        return self.index | (WRAP if self.wrap else 0)

    @property
    def used_position(self) -> int:
        """Of the next used descriptor it looks for."""
        return self._used_index | (WRAP if self._used_wrap else 0)

    def blank(self) -> None:
        """Leave the ring as one lap before `position`: all used, nothing available."""
        for index in range(self.size):
            lap = self.wrap if index < self.index else not self.wrap
            flags = AVAIL | USED if lap else 0
            self._poke(self._desc + 16 * index + 14, struct.pack("<H", flags))

    def put(self, address: int, length: int, buffer_id: int, flags: int, *, first: bool) -> None:
        """Write the next descriptor; the first of a chain has its flags when `show` is called.

        flags: All of them but AVAIL and USED, which are flipped from what they ought to be.
        """
        flags ^= AVAIL if self.wrap else USED
        where = self._desc + 16 * self.index
        self._poke(where, struct.pack("<QIH", address, length, buffer_id))
        if first:
            self._marks.append((where + 14, flags))
        else:
            self._poke(where + 14, struct.pack("<H", flags))
        self.index += 1
        if self.index == self.size:
            self.index, self.wrap = 0, not self.wrap

    def post(self, buffer_id: int, buffers: Sequence[tuple[int, int]], flags: int = 0) -> None:
        """Write one chain; only its last descriptor has the id (2.8.6). Not yet shown."""
        assert 0 < len(buffers) <= self.free
        for place, (address, length) in enumerate(buffers):
            last = place + 1 == len(buffers)
            one = flags if last else flags | NEXT
            self.put(address, length, buffer_id if last else 0xDEAD, one, first=place == 0)
        self.posted.append((buffer_id, len(buffers)))

    def show(self) -> None:
        """Make what was posted available: the oldest chain's head last."""
        for where, flags in reversed(self._marks):
            self._poke(where, struct.pack("<H", flags))
        self._marks.clear()

    def reap(self) -> list[Returned]:
        """All that is used by now, in order."""
        found: list[Returned] = []
        while True:
            where = self._desc + 16 * self._used_index
            length, buffer_id, flags = struct.unpack("<IHH", self._peek(where + 8, 8))
            if not bool(flags & AVAIL) == bool(flags & USED) == self._used_wrap:
                return found
            assert bool(flags & WRITE) == (length > 0)
            found += self._take_off(buffer_id, length)

    def _take_off(self, buffer_id: int, length: int) -> list[Returned]:
        """The buffers one used descriptor stands for, and on by their slots."""
        found: list[Returned] = []
        while not found or (self._in_order and found[-1].id != buffer_id):
            assert self.posted, f"{buffer_id} was used, and is not in the ring"
            oldest, slots = self.posted.popleft()
            found.append(Returned(oldest, None))
            self._used_index += slots
            if self._used_index >= self.size:
                self._used_index -= self.size
                self._used_wrap = not self._used_wrap
        assert found[-1].id == buffer_id, f"{buffer_id} was used, out of order"
        found[-1] = Returned(buffer_id, length)
        return found
