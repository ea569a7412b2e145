"""The device side of a split ring in pure Python, word by word after virtio 1.3, section 2.7.

The oracle of the kernel's tests: the same ring, read by a second hand. It works on private memory,
one turn at a time, and names what it finds as pmd/csrc/ringk.h does. Never in the data path.

Where the specification leaves a choice, this is the toolkit's, for kernel and oracle alike:

* A turn reads avail.idx once. More than the ring's size ahead: fault index_jump, nothing consumed.
  An available entry that names no descriptor: the chains before it are done, then fault bad_head.
* A chain has as many buffers as the ring's size at most, those of its indirect table included
  (2.7.5.3.1); the descriptor that refers to a table holds no buffer and does not count, so a table
  of exactly the size is legal. The next index is judged before the count: bad_next, chain_loop.
* A descriptor is judged in this order: indirect, direction, (transmit only) length, address. The
  first fault in walking order is the chain's verdict; an empty buffer is not translated.
* The walk of a transmit chain ends as oversize at the descriptor that makes it longer than header
  and FRAME_MAX. In a receive chain, descriptors after that many bytes are walked but not
  translated. A hostile chain so costs no more than an honest one.
* Receiving, a turn begins no frame once it has completed `burst` chains; a frame of several buffers
  may overshoot that. A ring of fewer buffers than a frame needs drops the frame (small_buffer) and
  returns them all, so that VM1 can post larger ones.
* A faulty chain met while buffers are gathered goes back empty with those before it, because
  completion is in order; the frame begins anew after it.
"""

from __future__ import annotations

import enum
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.memory_map import TranslationError
from driver.ring import DESC_BYTES, ETHERNET_HEADER_BYTES, USED_ELEMENT_BYTES
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from driver.bus_memory import BusMemory
    from driver.memory_map import Run

FRAME_MAX = 65562  # the longest frame: a 16-bit IP length, Ethernet header and tags


class DescFlag(enum.IntFlag):
    """Descriptor flags (2.7.5)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


AVAIL_NO_INTERRUPT = 1  # 2.7.6
USED_NO_NOTIFY = 1  # 2.7.8


class Verdict(enum.StrEnum):
    """What became of a chain: enum rk_drop."""

    SENT = "sent"
    BAD_ADDRESS = "bad_address"
    BAD_NEXT = "bad_next"
    CHAIN_LOOP = "chain_loop"
    BAD_DIRECTION = "bad_direction"
    BAD_INDIRECT = "bad_indirect"
    RUNT = "runt"
    OVERSIZE = "oversize"
    DISABLED = "disabled"
    SMALL_BUFFER = "small_buffer"


class Fault(enum.StrEnum):
    """Why a ring is no longer touched: enum rk_fault."""

    NONE = "none"
    INDEX_JUMP = "index_jump"
    BAD_HEAD = "bad_head"


class ChainError(Exception):
    """A chain is to be returned without its frame."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.value)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Layout:
    """A ring as negotiated: bus addresses of its parts, size, and the features that matter."""

    desc: int
    avail: int
    used: int
    size: int
    header_bytes: int = 12
    indirect: bool = False
    event_idx: bool = False
    mergeable: bool = False
    enabled: bool = True


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


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain taken for a frame: its buffers, and how many bytes its descriptors claim."""

    head: int
    runs: list[Run]
    capacity: int


class SplitRing:
    """A ring that runs from used.idx.

    Counts what it does: packets and payload_bytes of forwarded frames, drops by verdict, calls.

    Raises:
        VhostPciError: avail.idx is further than the ring's size from used.idx.
    """

    def __init__(self, layout: Layout, memory: BusMemory) -> None:
        self.layout = layout
        self.fault = Fault.NONE
        self.drops: Counter[Verdict] = Counter()
        self.packets = 0
        self.payload_bytes = 0
        self.calls = 0
        self._memory = memory
        self._next = memory.read16(layout.used + 2)
        self._used_next = self._next
        self._pending()
        if self.fault is not Fault.NONE:
            cause = "its available index is further than its size from its used index"
            raise VhostPciError("run", "the ring", cause)
        flags = 0 if layout.event_idx else USED_NO_NOTIFY
        memory.write(layout.used, flags.to_bytes(2, "little"))

    @property
    def used_index(self) -> int:
        """What it last published as used.idx."""
        return self._used_next

    def _pending(self) -> int:
        index = self._memory.read16(self.layout.avail + 2)
        pending = (index - self._next) % 65536
        if pending > self.layout.size:
            self.fault = Fault.INDEX_JUMP
            return 0
        return pending

    def _head(self, ahead: int) -> int:
        slot = (self._next + ahead) % self.layout.size
        return self._memory.read16(self.layout.avail + 4 + 2 * slot)

    def _put_used(self, head: int, length: int) -> None:
        slot = self._used_next % self.layout.size
        element = struct.pack("<II", head, length)
        self._memory.write(self.layout.used + 4 + USED_ELEMENT_BYTES * slot, element)
        self._used_next = (self._used_next + 1) % 65536
        self._next = (self._next + 1) % 65536

    def _publish(self, before: int) -> None:
        layout, memory = self.layout, self._memory
        memory.write(layout.used + 2, self._used_next.to_bytes(2, "little"))
        if layout.event_idx:
            event = memory.read16(layout.avail + 4 + 2 * layout.size)
            # 2.7.7.2: a call is due if used_event is one of the indices just used.
            wanted = (self._used_next - event - 1) % 65536 < (self._used_next - before) % 65536
        else:
            wanted = not memory.read16(layout.avail) & AVAIL_NO_INTERRUPT
        self.calls += wanted

    def _descriptors(self, head: int) -> Iterator[_Desc]:
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
            yield desc
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

    def _walk(self, head: int, *, write: bool) -> Chain:
        limit = self.layout.header_bytes + FRAME_MAX
        runs: list[Run] = []
        capacity = 0
        for desc in self._descriptors(head):
            if (DescFlag.WRITE in desc.flags) != write:
                raise ChainError(Verdict.BAD_DIRECTION)
            if not write and capacity + desc.length > limit:
                raise ChainError(Verdict.OVERSIZE)
            if capacity < limit:
                try:
                    runs += self._memory.runs(desc.address, desc.length, write=write)
                except TranslationError:
                    raise ChainError(Verdict.BAD_ADDRESS) from None
            capacity += desc.length
        return Chain(head, runs, capacity)

    def transmit(self, burst: int, room: int | None = None) -> list[bytes]:
        """One turn of a ring that VM1 transmits on.

        Args:
            burst: Chains it may complete.
            room: Frames the port takes; the chain of the first it does not take, and all after
                it, stay available. None: all.

        Returns:
            The frames taken.
        """
        if self.fault is not Fault.NONE:
            return []
        chains: list[tuple[int, bytes | Verdict]] = []
        bad_head = False
        for ahead in range(min(self._pending(), burst)):
            head = self._head(ahead)
            if head >= self.layout.size:
                bad_head = True
                break
            chains.append((head, self._frame(head)))
        taken: list[bytes] = []
        done, before = 0, self._used_next
        for head, outcome in chains:
            if isinstance(outcome, Verdict):
                self.drops[outcome] += 1
            elif len(taken) == room:
                break
            else:
                taken.append(outcome)
            self._put_used(head, 0)
            done += 1
        self.packets += len(taken)
        self.payload_bytes += sum(map(len, taken))
        if bad_head and done == len(chains):
            self.fault = Fault.BAD_HEAD
        if done:
            self._publish(before)
        return taken

    def _frame(self, head: int) -> bytes | Verdict:
        if not self.layout.enabled:
            return Verdict.DISABLED
        try:
            chain = self._walk(head, write=False)
        except ChainError as error:
            return error.verdict
        if chain.capacity < self.layout.header_bytes + ETHERNET_HEADER_BYTES:
            return Verdict.RUNT
        return self._memory.load(chain.runs)[self.layout.header_bytes :]

    def receive(self, frames: Sequence[bytes], burst: int) -> int:
        """One turn of a ring that VM1 receives on.

        Args:
            frames: What the port has, oldest first.
            burst: Chains after which no frame is begun.

        Returns:
            How many frames are done with: written, or dropped.
        """
        if self.fault is not Fault.NONE or not self.layout.enabled:
            return 0
        pending, before = self._pending(), self._used_next
        completed = taken = 0
        for frame in frames[: min(pending, burst)]:
            placed, chains = self._place(frame, pending - completed, burst - completed)
            completed += chains
            if not placed:
                break
            taken += 1
        if completed:
            self._publish(before)
        return taken

    def _place(self, frame: bytes, available: int, budget: int) -> tuple[bool, int]:
        """Write or drop one frame: whether that was possible, and the chains completed."""
        need = self.layout.header_bytes + len(frame)
        completed = 0
        chains: list[Chain] = []
        while sum(chain.capacity for chain in chains) < need:
            if len(chains) == (self.layout.size if self.layout.mergeable else 1):
                self.drops[Verdict.SMALL_BUFFER] += 1
                return True, completed + self._return_empty([chain.head for chain in chains])
            out_of_budget = not chains and completed >= budget
            if out_of_budget or completed + len(chains) == available:
                return False, completed
            head = self._head(len(chains))
            if head >= self.layout.size:
                self.fault = Fault.BAD_HEAD
                return False, completed
            try:
                chains.append(self._walk(head, write=True))
            except ChainError as error:
                self.drops[error.verdict] += 1
                completed += self._return_empty([*(chain.head for chain in chains), head])
                chains = []
        self._fill(chains, frame)
        return True, completed + len(chains)

    def _return_empty(self, heads: Sequence[int]) -> int:
        for head in heads:
            self._put_used(head, 0)
        return len(heads)

    def _fill(self, chains: Sequence[Chain], frame: bytes) -> None:
        """Header and frame into chains, each but the last used wholly (5.1.6.4.1)."""
        header = bytes(10)
        if self.layout.header_bytes > len(header):
            header += len(chains).to_bytes(2, "little")  # num_buffers
        data = header + frame
        lengths: list[int] = []
        for chain in chains:
            part, data = data[: chain.capacity], data[chain.capacity :]
            self._memory.store(chain.runs, part)
            lengths.append(len(part))
        for chain, length in zip(chains, lengths, strict=True):
            self._put_used(chain.head, length)
        self.packets += 1
        self.payload_bytes += len(frame)
