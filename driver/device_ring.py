"""The device side of a ring in pure Python: what the two layouts of virtio 1.3 have in common.

The oracle of the kernel's tests: the same ring, read by a second hand. It works on private memory,
one turn at a time, and names what it finds as pmd/csrc/ringk.h does. Never in the data path.

Where the specification leaves a choice, this is the toolkit's, for kernel and oracle alike:

* Chains are completed strictly in order.
* A descriptor is judged in this order: indirect, direction, (transmit only) length, address. The
  first fault in walking order is the chain's verdict; an empty buffer is not translated.
* A transmit chain is oversize at the descriptor that makes it longer than header and FRAME_MAX. In
  a receive chain, descriptors after that many bytes are not translated. A hostile chain so costs
  no more than an honest one.
* Where the ring's accounting cannot be trusted, the chains before that point are done first.
* Receiving, a turn begins no frame once it has completed `burst` chains; a frame of several buffers
  may overshoot that. Where buffers of all the ring's descriptors are less than a frame needs, it is
  dropped (small_buffer) and they are returned, so that VM1 can post larger ones.
* A frame over the MTU is dropped when there is a buffer, which it does not take.
* Of a frame that VM1 sends, the virtio-net header is looked at where offloads were negotiated, and
  last (driver.offload). What the port does not take is done here: a frame may become several.
* A faulty chain met while buffers are gathered goes back empty with those before it, because
  completion is in order; the frame begins anew after it.
"""

from __future__ import annotations

import abc
import enum
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from driver.memory_map import TranslationError
from driver.offload import Offload, OffloadError, OffloadFlag, forwarded
from driver.offloads import NO_OFFLOADS, Offloads
from driver.ring import ETHERNET_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from driver.bus_memory import BusMemory
    from driver.memory_map import Run

_TAGS = (b"\x81\x00", b"\x88\xa8")  # 802.1Q, 802.1ad
FRAME_MAX = 65562  # the longest frame: a 16-bit IP length, Ethernet header and tags


class DescFlag(enum.IntFlag):
    """Descriptor flags (2.7.5, 2.8.1)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4
    AVAIL = 1 << 7
    USED = 1 << 15


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
    BAD_OFFLOAD = "bad_offload"
    OVER_MTU = "over_mtu"


class Fault(enum.StrEnum):
    """Why a ring is no longer touched: enum rk_fault."""

    NONE = "none"
    INDEX_JUMP = "index_jump"
    BAD_HEAD = "bad_head"
    LONG_CHAIN = "long_chain"


class ChainError(Exception):
    """A chain is to be returned without its frame."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.value)
        self.verdict = verdict


class RingError(Exception):
    """From here on, the ring's accounting cannot be trusted."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Layout:
    """A ring as negotiated: bus addresses of its parts, size, and the features that matter.

    Packed: desc is the descriptor ring, avail the driver's event structure, used the device's.
    """

    desc: int
    avail: int
    used: int
    size: int
    header_bytes: int = 12
    indirect: bool = False
    event_idx: bool = False
    mergeable: bool = False
    enabled: bool = True
    in_order: bool = False
    offloads: Offloads = NO_OFFLOADS
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Buffer:
    """What a descriptor says of its buffer.

    own: Descriptors of the ring that it takes; those of a table share the one that refers to it.
    lax: It may be read though it is writable.
    """

    address: int
    length: int
    writable: bool
    own: int = 1
    lax: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """An available chain that a turn has come to: not yet judged, not yet consumed.

    Attributes:
        id: What its used element says.
        slots: How many entries of the ring it takes.
        buffers: In order, each read when it is come to; may raise ChainError.
    """

    id: int
    slots: int
    buffers: Iterable[Buffer]


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain taken for a frame: its buffers, and how many bytes its descriptors claim.

    own: Descriptors of the ring that it takes.
    """

    claim: Claim
    runs: list[Run]
    capacity: int
    own: int


class DeviceRing(abc.ABC):
    """A ring that runs from where its last device left it.

    Counts what it does: packets and payload_bytes of forwarded frames, drops by verdict, chains
    completed, calls. A frame counts as VM1 sent it, whatever it becomes.

    Attributes:
        taken: Offloads that the port takes; at first all that were negotiated.
    """

    def __init__(self, layout: Layout, memory: BusMemory) -> None:
        self.layout = layout
        self.fault = Fault.NONE
        self.taken = layout.offloads
        self.drops: Counter[Verdict] = Counter()
        self.packets = 0
        self.payload_bytes = 0
        self.completed = 0
        self.calls = 0
        self._memory = memory

    @abc.abstractmethod
    def _look(self) -> None:
        """Read what is read once a turn; RingError."""

    @abc.abstractmethod
    def _has_more(self) -> bool:
        """Whether anything is available, which need not be a whole chain."""

    @abc.abstractmethod
    def _claim(self, ahead: int) -> Claim | None:
        """The available chain after `ahead` entries not yet consumed; None if none; RingError."""

    @abc.abstractmethod
    def _put_used(self, claim: Claim, length: int, *, more: bool) -> None:
        """Consume and return the oldest chain; more: the next one holds more of its frame."""

    @abc.abstractmethod
    def _publish(self, *, transmit: bool) -> bool:
        """Show VM1 what was put since the last time; whether it wants to be called for it."""

    def _return(self, claim: Claim, length: int = 0, *, more: bool = False) -> None:
        self._put_used(claim, length, more=more)
        self.completed += 1

    def _judge(self, claim: Claim, *, write: bool) -> Chain:
        limit = self.layout.header_bytes + FRAME_MAX
        runs: list[Run] = []
        capacity = own = 0
        for buffer in claim.buffers:
            if buffer.writable != write and (write or not buffer.lax):
                raise ChainError(Verdict.BAD_DIRECTION)
            if not write and capacity + buffer.length > limit:
                raise ChainError(Verdict.OVERSIZE)
            if capacity < limit:
                try:
                    runs += self._memory.runs(buffer.address, buffer.length, write=write)
                except TranslationError:
                    raise ChainError(Verdict.BAD_ADDRESS) from None
            capacity += buffer.length
            own += buffer.own
        return Chain(claim, runs, capacity, own)

    def transmit(self, burst: int, room: int | None = None) -> list[bytes]:
        """One turn of a ring that VM1 transmits on.

        Args:
            burst: Chains it may complete.
            room: Frames of VM1's that the port takes; the chain of the first it does not take,
                and all after it, stay available. None: all.

        Returns:
            What the port was given.
        """
        if self.fault is not Fault.NONE:
            return []
        found: list[tuple[Claim, bytes | Verdict]] = []
        fault = Fault.NONE
        try:
            self._look()
            ahead = 0
            while len(found) < burst and (claim := self._claim(ahead)) is not None:
                found.append((claim, self._frame(claim)))
                ahead += claim.slots
        except RingError as error:
            fault = error.fault
        given: list[bytes] = []
        before, packets = self.completed, self.packets
        for claim, outcome in found:
            if isinstance(outcome, Verdict):
                self.drops[outcome] += 1
            elif self.packets - packets == room:
                break
            else:
                given += self._sent(outcome)
            self._return(claim)
        if self.completed - before == len(found):
            self.fault = fault
        if self.completed != before:
            self.calls += self._publish(transmit=True)
        return given

    def _frame(self, claim: Claim) -> bytes | Verdict:
        if not self.layout.enabled:
            return Verdict.DISABLED
        try:
            chain = self._judge(claim, write=False)
        except ChainError as error:
            return error.verdict
        if chain.capacity < self.layout.header_bytes + ETHERNET_HEADER_BYTES:
            return Verdict.RUNT
        return self._memory.load(chain.runs)

    def _sent(self, data: bytes) -> list[bytes]:
        """What becomes of a header and its frame, counted; nothing, if they are no pair."""
        frame = data[self.layout.header_bytes :]
        given = [frame]
        if self.layout.offloads:
            offload = Offload.parse(data)
            asked = replace(offload, flags=offload.flags & OffloadFlag.NEEDS_CSUM)
            try:
                told = forwarded(frame, asked, self.layout.offloads, self.taken)
            except OffloadError:
                self.drops[Verdict.BAD_OFFLOAD] += 1
                return []
            given = [each for each, _ in told]
        self.packets += 1
        self.payload_bytes += len(frame)
        return given

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
        before, taken = self.completed, 0
        try:
            self._look()
            for frame in frames[:burst]:
                if not self._place(frame, before + burst):
                    break
                taken += 1
        except RingError as error:
            self.fault = error.fault
        if self.completed != before:
            self.calls += self._publish(transmit=False)
        return taken

    def _place(self, frame: bytes, enough: int) -> bool:
        """Write or drop one frame; False if it waits: for buffers, or as enough is completed."""
        if self._is_over_mtu(frame):
            if not self._has_more():
                return False
            self.drops[Verdict.OVER_MTU] += 1
            return True
        need = self.layout.header_bytes + len(frame)
        chains: list[Chain] = []
        while sum(chain.capacity for chain in chains) < need:
            own = sum(chain.own for chain in chains)
            if chains and (own >= self.layout.size or not self.layout.mergeable):
                self.drops[Verdict.SMALL_BUFFER] += 1
                self._return_empty(chains)
                return True
            if not chains and self.completed >= enough:
                return False
            claim = self._claim(sum(chain.claim.slots for chain in chains))
            if claim is None:
                return False
            try:
                chains.append(self._judge(claim, write=True))
            except ChainError as error:
                self.drops[error.verdict] += 1
                self._return_empty(chains)
                self._return(claim)
                chains = []
        self._fill(chains, frame)
        return True

    def _is_over_mtu(self, frame: bytes) -> bool:
        """5.1.4.1: longer than the MTU behind its Ethernet header, tags included (up to two)."""
        header = ETHERNET_HEADER_BYTES
        while header < ETHERNET_HEADER_BYTES + 8 and frame[header - 2 : header] in _TAGS:
            header += 4
        return 0 < self.layout.mtu < len(frame) - header

    def _return_empty(self, chains: Sequence[Chain]) -> None:
        for chain in chains:
            self._return(chain.claim)

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
            self._return(chain.claim, length, more=chain is not chains[-1])
        self.packets += 1
        self.payload_bytes += len(frame)
