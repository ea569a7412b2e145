"""The device's side of a virtqueue, split or packed (virtio 1.3, 2.7 and 2.8), which bites.

What breaks a rule of the driver's is noted in the faults of whoever owns the queue.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.words import store_word

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
LIMIT = 1 << 16


@dataclass(frozen=True)
class Chain:
    """What the driver made available: parts are (iova, length, device writes)."""

    id: int
    parts: tuple[tuple[int, int, bool], ...]


class RingModel:
    """One queue, enabled.

    Args:
        memory: Of (iova, size): what the device reaches there.
        areas: I/O addresses: descriptor, driver and device area.
        faults: Where broken rules go.
    """

    def __init__(
        self,
        memory: Callable[[int, int], memoryview],
        size: int,
        areas: Sequence[int],
        faults: list[str],
        *,
        in_order: bool = False,
    ) -> None:
        self.size = size
        self.descriptors, self.driver, self.device = areas
        self.in_order = in_order
        self.outstanding: dict[int, Chain] = {}
        self._waiting: deque[Chain] = deque()  # outstanding, but not yet taken
        self._memory = memory
        self._faults = faults

    def read(self, layout: str, iova: int) -> tuple[int, ...]:
        return struct.unpack(layout, self._memory(iova, struct.calcsize(layout)))

    def write(self, layout: str, iova: int, *values: int) -> None:
        target = self._memory(iova, struct.calcsize(layout))
        if len(target) == 2:
            store_word(target, int(values[0]))
        else:
            target[:] = struct.pack(layout, *values)

    def fault(self, text: str) -> None:
        self._faults.append(text)

    def _seen(self, chain: Chain) -> Chain:
        if chain.id in self.outstanding:
            self.fault(f"chain {chain.id} is given twice")
        if any(not length for _, length, _ in chain.parts):
            self.fault("a descriptor of no bytes")
        if [writes for *_, writes in chain.parts] != sorted(writes for *_, writes in chain.parts):
            self.fault("what the device writes comes before what it reads")
        self.outstanding[chain.id] = chain
        taken = sum(len(each.parts) for each in self.outstanding.values())
        if taken > self.size:
            self.fault(f"{taken} descriptors in a queue of {self.size}")
        return chain

    def _forget(self, id_: int, chains: int) -> list[Chain]:
        """What a report stands for is the driver's again."""
        given = list(self.outstanding)
        if id_ not in given:
            return []
        end = given.index(id_) + 1
        return [self.outstanding.pop(each) for each in given[max(0, end - chains) : end]]

    def given(self) -> list[Chain]:
        """All that the driver made available and does not have back, taken by the device or not."""
        while (chain := self._next()) is not None:
            self._waiting.append(chain)
        return list(self.outstanding.values())

    def pop(self) -> Chain | None:
        """The next chain, or None."""
        return self._waiting.popleft() if self._waiting else self._next()

    def _next(self) -> Chain | None:
        raise NotImplementedError

    def push(self, id_: int, written: int, chains: int = 1) -> None:
        """Use a buffer, true or not; in order it stands for so many chains up to this one."""
        raise NotImplementedError

    def want_notifications(self, *, wanted: bool) -> None:
        raise NotImplementedError

    @property
    def wants_interrupts(self) -> bool:
        raise NotImplementedError


class SplitModel(RingModel):
    """2.7."""

    _seen_index = 0
    _used_index = 0
    _next_slot = 0

    def _next(self) -> Chain | None:
        (index,) = self.read("<H", self.driver + 2)
        waiting = (index - self._seen_index) % LIMIT
        if waiting > self.size:
            self.fault(f"{waiting} chains available in a queue of {self.size}")
        if not waiting:
            return None
        (head,) = self.read("<H", self.driver + 4 + 2 * (self._seen_index % self.size))
        self._seen_index = (self._seen_index + 1) % LIMIT
        parts: list[tuple[int, int, bool]] = []
        slot = head
        while True:
            if self.in_order and slot != self._next_slot:
                self.fault(f"descriptor {slot} out of order, {self._next_slot} is due")
            self._next_slot = (self._next_slot + 1) % self.size
            iova, length, flags, following = self.read("<QIHH", self.descriptors + 16 * slot)
            if flags & ~(NEXT | WRITE):
                self.fault(f"descriptor flags {flags:#x}")
            parts.append((iova, length, bool(flags & WRITE)))
            if not flags & NEXT or len(parts) == self.size:
                return self._seen(Chain(head, tuple(parts)))
            slot = following

    def push(self, id_: int, written: int, chains: int = 1) -> None:
        slot = self._used_index % self.size
        self.write("<II", self.device + 4 + 8 * slot, id_, written)
        self.move_index(chains)
        self._forget(id_, chains)

    def move_index(self, by: int) -> None:
        self._used_index = (self._used_index + by) % LIMIT
        self.write("<H", self.device + 2, self._used_index)

    def want_notifications(self, *, wanted: bool) -> None:
        self.write("<H", self.device, not wanted)

    @property
    def wants_interrupts(self) -> bool:
        return not self.read("<H", self.driver)[0] & 1


class PackedModel(RingModel):
    """2.8."""

    _at = 0  # runs on: next to be made available
    _used_at = 0  # runs on: next to be reported

    def _marks(self, position: int, *, used: bool) -> int:
        even = position // self.size % 2 == 0
        if used:
            return AVAIL | USED if even else 0
        return AVAIL if even else USED

    def _next(self) -> Chain | None:
        parts: list[tuple[int, int, bool]] = []
        while True:
            at = self.descriptors + 16 * (self._at % self.size)
            (flags,) = self.read("<H", at + 14)  # before the rest: the driver wrote it last
            if flags & (AVAIL | USED) != self._marks(self._at, used=False):
                if parts:
                    self.fault("the first descriptor of a chain was shown before its last")
                return None
            if flags & ~(NEXT | WRITE | AVAIL | USED):
                self.fault(f"descriptor flags {flags:#x}")
            iova, length, id_ = self.read("<QIH", at)
            self._at += 1
            parts.append((iova, length, bool(flags & WRITE)))
            if not flags & NEXT or len(parts) == self.size:
                return self._seen(Chain(id_, tuple(parts)))

    def push(self, id_: int, written: int, chains: int = 1) -> None:
        at = self.descriptors + 16 * (self._used_at % self.size)
        flags = self._marks(self._used_at, used=True) | (WRITE if written else 0)
        self.write("<IH", at + 8, written, id_)
        self.write("<H", at + 14, flags)
        self._used_at += sum(len(chain.parts) for chain in self._forget(id_, chains)) or 1

    def want_notifications(self, *, wanted: bool) -> None:
        self.write("<H", self.device + 2, not wanted)

    @property
    def wants_interrupts(self) -> bool:
        return self.read("<H", self.driver + 2)[0] != 1
