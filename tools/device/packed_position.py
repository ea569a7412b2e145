"""Where a packed ring stands when its driver is gone (docs/device.md 5.6; virtio 1.3, 2.8)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tools.device.ring_layout import INDEX_MASK, WRAP_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DESC = struct.Struct("<QIHH")  # 2.8.13: address, length, id, flags
MARK = struct.Struct("<IHH")  # its last 8 bytes, which a used descriptor changes
MARK_OFFSET = DESC.size - MARK.size
NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
ONE_FRAME = 1 << 16  # in the word "intended"
LENGTH_MAX = 0xFFFF_FFFF


class Mark(NamedTuple):
    """What is still to be stored in the descriptor ring, by offset."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """A position, as both halves of SET_VRING_BASE give it; right once the marks are stored."""

    position: int
    marks: tuple[Mark, ...] = ()


class _Chain(NamedTuple):
    slots: int
    id: int
    capacity: int


class PackedRemains:
    """A ring as its driver left it: one private copy, which nobody changes while it is judged.

    Args:
        descriptors: The whole descriptor ring.
        read: Reads VM1's memory by bus address, for indirect tables; None if it cannot.
    """

    def __init__(self, descriptors: bytes, read: Callable[[int, int], bytes | None]) -> None:
        self._descs = list(DESC.iter_unpack(descriptors))
        self._size = len(self._descs)
        self._read = read

    def standing(self, words: tuple[int, int]) -> Standing | None:
        """Where the ring stands by its commit words; None if those cannot be."""
        committed, intended = words
        one_frame, intended = bool(intended & ONE_FRAME), intended & ~ONE_FRAME
        begin, end = self._position(committed), self._position(intended)
        if begin is None or end is None or self._distance(begin, end) > self._size:
            return None
        if begin == end or not self._is_available(begin):
            return Standing(intended)
        chains: list[_Chain] = []
        at = begin
        while at != end and (chain := self._chain(at, self._distance(at, end))):
            chains.append(chain)
            at = self._after(at, chain.slots)
        if at == end or not self._is_used(at):
            return Standing(committed)
        return Standing(intended, tuple(self._marks(begin, chains, one_frame=one_frame)))

    # Positions are 0 to 2 * size - 1 here: the index, and size more where the wrap counter is 0.

    def _position(self, word: int) -> int | None:
        index, wrap = word & INDEX_MASK, word >> WRAP_SHIFT
        if index >= self._size or wrap > 1:
            return None
        return index if wrap else index + self._size

    def _after(self, position: int, count: int) -> int:
        return (position + count) % (2 * self._size)

    def _distance(self, begin: int, end: int) -> int:
        return (end - begin) % (2 * self._size)

    def _wrap(self, position: int) -> bool:
        return position % (2 * self._size) < self._size

    def _flags(self, position: int) -> int:
        return int(self._descs[position % self._size][3])

    def _is_available(self, position: int) -> bool:
        """2.8.1: AVAIL is the wrap counter, USED is not."""
        flags, wrap = self._flags(position), self._wrap(position)
        return bool(flags & AVAIL) == wrap != bool(flags & USED)

    def _is_used(self, position: int) -> bool:
        flags, wrap = self._flags(position), self._wrap(position)
        return bool(flags & AVAIL) == wrap == bool(flags & USED)

    def _chain(self, position: int, limit: int) -> _Chain | None:
        """The available chain of limit descriptors at most that begins here."""
        capacity = 0
        for slots in range(1, limit + 1):
            at = self._after(position, slots - 1)
            if not self._is_available(at):
                return None
            address, length, buffer_id, flags = self._descs[at % self._size]
            capacity += self._table_bytes(address, length) if flags & INDIRECT else length
            if not flags & NEXT:
                return _Chain(slots, buffer_id, min(capacity, LENGTH_MAX))
        return None

    def _table_bytes(self, address: int, length: int) -> int:
        """What an indirect table's buffers hold; 0 of one that is none (2.8.7)."""
        if length % DESC.size or length > DESC.size * self._size:
            return 0
        table = self._read(address, length) or b""
        return sum(entry[1] for entry in DESC.iter_unpack(table))

    def _marks(self, position: int, chains: Sequence[_Chain], *, one_frame: bool) -> list[Mark]:
        """The used descriptors of these chains, the first one last (2.8.9)."""
        marks = []
        for chain in chains:
            flags = AVAIL | USED if self._wrap(position) else 0
            length = chain.capacity if one_frame else 0
            flags |= WRITE if length else 0
            offset = DESC.size * (position % self._size) + MARK_OFFSET
            marks.append(Mark(offset, MARK.pack(length, chain.id, flags)))
            position = self._after(position, chain.slots)
        return marks[::-1]


def may_stand_at(descriptors: bytes, position: int) -> bool:
    """Whether a ring could stand at a position; False where one of its descriptors denies it.

    2.8.1: from there on, none was used in this lap; before it, none was last used in the lap
    before. What this does not deny can still be wrong.
    """
    index, wrap = position & INDEX_MASK, bool(position >> WRAP_SHIFT)
    return not any(
        bool(flags & AVAIL) == bool(flags & USED) == (wrap if place >= index else not wrap)
        for place, (_, _, _, flags) in enumerate(DESC.iter_unpack(descriptors))
    )
