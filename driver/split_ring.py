"""The device side of a split ring in pure Python, word by word after virtio 1.3, section 2.7.

Where the specification leaves a choice, beside those of `driver.device_ring`:

* A turn reads avail.idx once. More than the ring's size ahead: fault index_jump, nothing consumed.
  An available entry that names no descriptor: the chains before it are done, then fault bad_head.
* A chain has as many buffers as the ring's size at most, those of its indirect table included
  (2.7.5.3.1); the descriptor that refers to a table holds no buffer and does not count, so a table
  of exactly the size is legal. The next index is judged before the count: bad_next, chain_loop.
* The walk ends at the first fault.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
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
from driver.ring import DESC_BYTES, USED_ELEMENT_BYTES
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.bus_memory import BusMemory

AVAIL_NO_INTERRUPT = 1  # 2.7.6
USED_NO_NOTIFY = 1  # 2.7.8


@dataclass(frozen=True, slots=True)
class _Desc:
    address: int
    length: int
    flags: DescFlag
    next: int

    @classmethod
    def parse(cls, table: bytes) -> list[_Desc]:
        return [
            cls(address, length, DescFlag(flags), following)
            for address, length, flags, following in struct.iter_unpack("<QIHH", table)
        ]


class SplitRing(DeviceRing):
    """A split ring that runs from used.idx.

    Raises:
        VhostPciError: avail.idx is further than the ring's size from used.idx.
    """

    def __init__(self, layout: Layout, memory: BusMemory) -> None:
        super().__init__(layout, memory)
        self._next = memory.read16(layout.used + 2)
        self._published = self._next
        try:
            self._look()
        except RingError as error:
            cause = "its available index is further than its size from its used index"
            raise VhostPciError("run", "the ring", cause) from error
        flags = 0 if layout.event_idx else USED_NO_NOTIFY
        memory.write(layout.used, flags.to_bytes(2, "little"))

    def _look(self) -> None:
        self._index = self._memory.read16(self.layout.avail + 2)
        if (self._index - self._next) % 65536 > self.layout.size:
            raise RingError(Fault.INDEX_JUMP)

    def _has_more(self) -> bool:
        return self._index != self._next

    def _claim(self, ahead: int) -> Claim | None:
        if ahead == (self._index - self._next) % 65536:
            return None
        slot = (self._next + ahead) % self.layout.size
        head = self._memory.read16(self.layout.avail + 4 + 2 * slot)
        if head >= self.layout.size:
            raise RingError(Fault.BAD_HEAD)
        return Claim(head, 1, self._buffers(head))

    def _put_used(self, claim: Claim, length: int, *, more: bool) -> None:  # noqa: ARG002 - one index publishes all
        slot = self._next % self.layout.size
        element = struct.pack("<II", claim.id, length)
        self._memory.write(self.layout.used + 4 + USED_ELEMENT_BYTES * slot, element)
        self._next = (self._next + 1) % 65536

    def _publish(self, *, transmit: bool) -> bool:  # noqa: ARG002 - both alike
        layout, memory = self.layout, self._memory
        memory.write(layout.used + 2, self._next.to_bytes(2, "little"))
        before, self._published = self._published, self._next
        if layout.event_idx:
            event = memory.read16(layout.avail + 4 + 2 * layout.size)
            # 2.7.7.2: a call is due if used_event is one of the indices just used.
            return (self._next - event - 1) % 65536 < (self._next - before) % 65536
        return not memory.read16(layout.avail) & AVAIL_NO_INTERRUPT

    def _buffers(self, head: int) -> Iterator[Buffer]:
        """The buffers of a chain, in order, each read when it is come to."""
        table: list[_Desc] | None = None
        index, walked = head, 0
        while True:
            if index >= (self.layout.size if table is None else len(table)):
                raise ChainError(Verdict.BAD_NEXT)
            if walked == self.layout.size:
                raise ChainError(Verdict.CHAIN_LOOP)
            if table is None:
                where = self.layout.desc + DESC_BYTES * index
                desc = _Desc.parse(self._memory.read(where, DESC_BYTES))[0]
            else:
                desc = table[index]
            if DescFlag.INDIRECT in desc.flags:
                table = self._indirect_table(desc, nested=table is not None)
                index = 0
                continue
            walked += 1
            own = 1 if table is None or index == 0 else 0
            yield Buffer(desc.address, desc.length, DescFlag.WRITE in desc.flags, own)
            if DescFlag.NEXT not in desc.flags:
                return
            index = desc.next

    def _indirect_table(self, desc: _Desc, *, nested: bool) -> list[_Desc]:
        """2.7.5.3.1, 2.7.5.3.2; WRITE is ignored."""
        legal = (
            self.layout.indirect
            and not nested
            and DescFlag.NEXT not in desc.flags
            and desc.length > 0
            and desc.length % DESC_BYTES == 0
            and desc.length // DESC_BYTES <= self.layout.size
        )
        if not legal:
            raise ChainError(Verdict.BAD_INDIRECT)
        try:
            return _Desc.parse(self._memory.read(desc.address, desc.length))
        except TranslationError:
            raise ChainError(Verdict.BAD_ADDRESS) from None
