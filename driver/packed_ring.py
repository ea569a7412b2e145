"""The device side of a packed ring in pure Python, word by word after virtio 1.3, section 2.8.

Where the specification leaves a choice, beside those of `driver.device_ring`:

* A chain of which a descriptor is not available (yet) is not available: its driver breaks 2.8.17.
* A chain that goes on into descriptors which VM1 does not own (it has as many as the ring, less
  those not yet returned) ends the ring: fault long_chain. Where it ends, nobody can tell.
* INDIRECT in a list is bad_indirect (2.8.19); in a table WRITE alone means something (2.8.7), and
  that only where VM1 receives: DPDK's driver has it in tables to be read. An id is echoed, never
  judged.
* A used descriptor has WRITE where its length is not 0 (2.8.3).
* Where IN_ORDER was accepted, a turn of a transmit ring is one batch of 2.8.8. Receiving, each
  buffer gets its used descriptor: a batch would say that those before the last are full.
* A reserved value in the driver's event structure, or one that needs EVENT_IDX without it, or an
  offset that is none: VM1 is called.

Positions here are 0..2*size-1: the descriptor's index, plus size where its wrap counter is 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from driver.device_ring import (
    Buffer,
    ChainError,
    Claim,
    DescFlag,
    DeviceRing,
    Fault,
    Layout,
    RingError,
    Verdict,
)
from driver.memory_map import TranslationError
from driver.ring import DESC_BYTES
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from driver.bus_memory import BusMemory

WRAP = 1 << 15  # of a position as docs/device.md 5.6 and 2.8.14 write it
ONE_FRAME = 1 << 16  # in the word "intended"
EVENT_ENABLE, EVENT_DISABLE, EVENT_DESC = 0, 1, 2  # 2.8.10
_AVAIL_AND_USED = DescFlag.AVAIL | DescFlag.USED


@dataclass(frozen=True, slots=True)
class _Desc:
    address: int
    length: int
    id: int
    flags: DescFlag

    @classmethod
    def parse(cls, table: bytes) -> list[_Desc]:
        return [
            cls(address, length, buffer_id, DescFlag(flags))
            for address, length, buffer_id, flags in struct.iter_unpack("<QIHH", table)
        ]

    @property
    def buffer(self) -> Buffer:
        return Buffer(self.address, self.length, DescFlag.WRITE in self.flags)


@dataclass(frozen=True, slots=True)
class _Used:
    claim: Claim
    length: int
    more: bool


class PackedRing(DeviceRing):
    """A packed ring that runs from its commit words.

    Args:
        layout: As negotiated.
        memory: VM1's.
        commit: The ring's commit words (docs/device.md 5.6), 8 bytes, read and written.

    Raises:
        VhostPciError: The commit words are no batch of this ring.
    """

    def __init__(self, layout: Layout, memory: BusMemory, commit: memoryview) -> None:
        super().__init__(layout, memory)
        self._commit = commit
        self._pending: list[_Used] = []
        memory.write(layout.used, struct.pack("<HH", 0, EVENT_DISABLE))
        self._next = self._used_next = self._begin()

    def _begin(self) -> int:
        """Where the last device stopped: docs/device.md 5.6."""
        committed, intended = struct.unpack("<II", self._commit)
        begin, end = self._position(committed), self._position(intended)
        if begin is None or end is None or self._distance(begin, end) > self.layout.size:
            cause = "its commit words are no batch of this ring"
            raise VhostPciError("run", "the ring", cause)
        if begin == end or not self._is_available(begin):
            return end
        cut: list[_Used] = []
        at = begin
        try:
            while at != end and (claim := self._claim_at(at, self._distance(at, end))):
                length = self._capacity(claim) if intended & ONE_FRAME else 0
                cut.append(_Used(claim, length, more=False))
                at = self._after(at, claim.slots)
        except RingError:
            return begin
        if at == end or not self._is_used(at):
            return begin
        self._mark(begin, cut)
        self._commit[0:4] = struct.pack("<I", self._word(end))
        return end

    def _capacity(self, claim: Claim) -> int:
        try:
            return self._judge(claim, write=True).capacity
        except ChainError:
            return 0

    # ---- positions ----------------------------------------------------------------------------

    def _position(self, word: int) -> int | None:
        index, wrap = word & (WRAP - 1), word & WRAP
        if index >= self.layout.size:
            return None
        return index if wrap else index + self.layout.size

    def _word(self, position: int) -> int:
        index, lap = position % self.layout.size, position // self.layout.size
        return index | (0 if lap else WRAP)

    def _after(self, position: int, count: int) -> int:
        return (position + count) % (2 * self.layout.size)

    def _distance(self, begin: int, end: int) -> int:
        return (end - begin) % (2 * self.layout.size)

    def _where(self, position: int) -> int:
        return self.layout.desc + DESC_BYTES * (position % self.layout.size)

    def _read(self, position: int) -> _Desc:
        return _Desc.parse(self._memory.read(self._where(position), DESC_BYTES))[0]

    def _marks(self, position: int) -> tuple[bool, bool, bool]:
        flags = self._read(position).flags
        wrap = position % (2 * self.layout.size) < self.layout.size
        return DescFlag.AVAIL in flags, DescFlag.USED in flags, wrap

    def _is_available(self, position: int) -> bool:
        """2.8.1: AVAIL is the wrap counter, USED is not."""
        avail, used, wrap = self._marks(position)
        return avail == wrap != used

    def _is_used(self, position: int) -> bool:
        avail, used, wrap = self._marks(position)
        return avail == wrap == used

    # ---- what is available --------------------------------------------------------------------

    def _look(self) -> None:
        """Nothing: each descriptor says itself whether it is available."""

    def _limit(self) -> int:
        return self.layout.size - self._distance(self._used_next, self._next)

    def _has_more(self) -> bool:
        return self._limit() > 0 and self._is_available(self._next)

    def _claim(self, ahead: int) -> Claim | None:
        limit = self._limit() - ahead
        return self._claim_at(self._after(self._next, ahead), limit)

    def _claim_at(self, position: int, limit: int) -> Claim | None:
        """The chain at position, of limit descriptors at most."""
        descs: list[_Desc] = []
        while len(descs) < limit:
            if not self._is_available(position + len(descs)):
                return None
            descs.append(self._read(position + len(descs)))
            if DescFlag.NEXT not in descs[-1].flags:
                return Claim(descs[-1].id, len(descs), self._buffers(descs))
        if descs:
            raise RingError(Fault.LONG_CHAIN)
        return None

    def _buffers(self, descs: Sequence[_Desc]) -> Iterator[Buffer]:
        for desc in descs:
            if DescFlag.INDIRECT in desc.flags:
                yield from self._indirect_table(desc, alone=len(descs) == 1)
            else:
                yield desc.buffer

    def _indirect_table(self, desc: _Desc, *, alone: bool) -> list[Buffer]:
        """2.8.7, 2.8.19."""
        legal = (
            self.layout.indirect
            and alone
            and desc.length > 0
            and desc.length % DESC_BYTES == 0
            and desc.length // DESC_BYTES <= self.layout.size
        )
        if not legal:
            raise ChainError(Verdict.BAD_INDIRECT)
        try:
            table = self._memory.read(desc.address, desc.length)
        except TranslationError:
            raise ChainError(Verdict.BAD_ADDRESS) from None
        first, *others = [replace(entry.buffer, lax=True) for entry in _Desc.parse(table)]
        return [first, *(replace(buffer, own=0) for buffer in others)]

    # ---- what is used -------------------------------------------------------------------------

    def _put_used(self, claim: Claim, length: int, *, more: bool) -> None:
        self._pending.append(_Used(claim, length, more))
        self._next = self._after(self._next, claim.slots)

    def _publish(self, *, transmit: bool) -> bool:
        before = self._used_next
        for batch in self._batches():
            end = self._after(self._used_next, sum(used.claim.slots for used in batch))
            one_frame = ONE_FRAME if batch[0].more else 0
            self._commit[4:8] = struct.pack("<I", self._word(end) | one_frame)
            if transmit and self.layout.in_order:
                self._mark(self._used_next, batch[-1:])
            else:
                self._mark(self._used_next, batch)
            self._commit[0:4] = struct.pack("<I", self._word(end))
            self._used_next = end
        self._pending = []
        return self._wants_call(before)

    def _batches(self) -> Iterator[list[_Used]]:
        """What is published at once: buffers of a frame each, or one frame in several."""
        batch: list[_Used] = []
        inside = False
        for used in self._pending:
            if used.more and not inside and batch:
                yield batch
                batch = []
            batch.append(used)
            if inside and not used.more:
                yield batch
                batch = []
            inside = used.more
        if batch:
            yield batch

    def _mark(self, position: int, batch: Sequence[_Used]) -> None:
        """Write used descriptors from position on, the first one last (2.8.9)."""
        writes: list[tuple[int, bytes]] = []
        for used in batch:
            wrap = position % (2 * self.layout.size) < self.layout.size
            flags = _AVAIL_AND_USED if wrap else DescFlag(0)
            if used.length:
                flags |= DescFlag.WRITE
            data = struct.pack("<IHH", used.length, used.claim.id, flags)
            writes.append((self._where(position) + 8, data))
            position = self._after(position, used.claim.slots)
        for where, data in reversed(writes):
            self._memory.write(where, data)

    def _wants_call(self, before: int) -> bool:
        """2.8.10, 2.8.14: the descriptor the driver waits for is one of those just used."""
        event, flags = struct.unpack("<HH", self._memory.read(self.layout.avail, 4))
        if flags & 3 == EVENT_DISABLE:
            return False
        if flags & 3 == EVENT_DESC and self.layout.event_idx:
            position = self._position(event)
            if position is not None:
                used = self._distance(before, self._used_next)
                return self._distance(before, position) < used
        return True
