"""The rings of one front-end's connection, and the messages about them.

Reference: QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from tools.device.backend_rules import Reason, RefusalError
from tools.device.iotlb import Translations
from tools.device.memory_table import MemoryTable
from tools.device.ring_layout import PACKED, SPLIT, RingLayout, layout_of
from tools.device.rings import Ring, check_alignment, leave, may_begin, parse_event
from tools.device.vm1_state import Span
from tools.vhost_user_abi import VRING_ADDRESS, VRING_LOG, VRING_STATE, Feature, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.device.commit_area import CommitArea
    from tools.device.ring_layout import AddressTable
    from tools.device.vm1_state import RingState, Vm1State
    from tools.vhost_user_wire import Descriptors, Message

    # Gives the reply's payload, maybe with descriptors (borrowed), once the driver has followed;
    # None: only an acknowledgement.
    Answer: TypeAlias = Callable[[], bytes | tuple[bytes, tuple[int, ...]]] | None
    Handler: TypeAlias = Callable[[Message, Descriptors], Answer]


class RingSet:
    """The state of all rings, changed by its handlers and by features and memory that change.

    Owns the eventfds; those it needs no longer go to `released`, and what an operator should know
    to `notes`: both belong to the connection. resumes: the front-end brought what it kept of
    an earlier device, which knows better than it where packed rings stand.

    Args:
        queue_pairs: How many the device has.
        commits: Where the driver leaves the positions of packed rings.
        released: Descriptors to be closed once the driver has let go.
        notes: Lines for the log.
    """

    def __init__(
        self, queue_pairs: int, commits: CommitArea, released: list[int], notes: list[str]
    ) -> None:
        self.rings = [Ring() for _ in range(2 * queue_pairs)]
        self._commits = commits
        self._released = released
        self._notes = notes
        self._table: AddressTable = MemoryTable()
        self._features: int | None = None
        self.resumes = False
        self.handlers: dict[int, Handler] = {
            Request.SET_VRING_NUM: self._set_size,
            Request.SET_VRING_ADDR: self._set_addresses,
            Request.SET_VRING_BASE: self._set_base,
            Request.GET_VRING_BASE: self._get_base,
            Request.SET_VRING_KICK: self._set_kick,
            Request.SET_VRING_CALL: self._set_call,
            Request.SET_VRING_ERR: self._set_error,
            Request.SET_VRING_ENABLE: self._set_enable,
        }

    def __len__(self) -> int:
        return len(self.rings)

    @property
    def started(self) -> bool:
        """Whether any is."""
        return any(ring.started for ring in self.states())

    def states(self) -> tuple[RingState, ...]:
        """What the driver may know of each."""
        # A ring needs accepted features: what its descriptors mean depends on them.
        table: AddressTable = self._table if self._features is not None else MemoryTable()
        always = not (self._features or 0) & Feature.PROTOCOL_FEATURES
        layout = layout_of(self._features or 0)
        return tuple(ring.state(table, layout, always_enabled=always) for ring in self.rings)

    def take_table(self, table: AddressTable) -> None:
        """VM1's memory is another."""
        self._table = table

    @property
    def _translated(self) -> bool:
        return not isinstance(self._table, MemoryTable)

    def spans(self) -> list[Span]:
        """The memory of the rings that VM1 has kicked, by the addresses that it gave."""
        layout = layout_of(self._features or 0)
        return [
            Span(address, part.fixed + part.each * ring.size, 3 if part.written else 1)
            for ring in self.rings
            if ring.kicked and ring.addresses and not layout.size_fault(ring.size)
            for address, part in zip(ring.addresses, layout.parts, strict=True)
        ]

    def take_features(self, features: int | None) -> None:
        """VM1's driver accepted these; None: none any more.

        What was said of a ring of one layout is nothing of a ring of the other.
        """
        known, self._features = self._features, features
        if None not in (known, features) and layout_of(known or 0) != layout_of(features or 0):
            for ring in self.rings:
                ring.addresses, ring.base = None, 0

    def note_stops(self, before: Vm1State, after: Vm1State) -> None:
        """Remember where each ring stands that ended between two states the driver has seen."""
        table: AddressTable = MemoryTable(before.memory)
        if before.translations is not None:
            table = Translations(before.translations)
        layout = layout_of(before.features)
        for index, ring in enumerate(self.rings):
            old, new = before.rings[index], after.rings[index]
            if not old.started or new.started:
                continue
            position = leave(old, table, layout, self._commits.words(index))
            if position is None:
                self._notes.append(f"ring {index}: nobody knows where it stands")
            else:
                ring.base = position
            if ring.kicked and not self._translated:
                self._notes.append(f"ring {index} is stopped: its memory was taken away")

    def stop_all(self) -> None:
        """Stop and disable every ring."""
        for ring in self.rings:
            self._release(ring.stop())
            ring.enabled = False

    def close(self) -> None:
        """Give all eventfds up."""
        for ring in self.rings:
            self._released.extend(ring.descriptors())
        self.rings = []

    def _layouts(self) -> tuple[RingLayout, ...]:
        """Those that a ring may turn out to have: features may come last."""
        return (SPLIT, PACKED) if self._features is None else (layout_of(self._features),)

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise RefusalError(Reason.RING_INDEX, f"names ring {index} of {len(self.rings)}")
        return self.rings[index]

    def _check_stopped(self, index: int, what: str) -> None:
        if self.states()[index].started:
            raise RefusalError(
                Reason.RING_STARTED, f"changes the {what} of ring {index}, which runs"
            )

    def _set_size(self, message: Message, _fds: Descriptors) -> Answer:
        index, size = VRING_STATE.unpack(message.payload)
        ring = self._ring(index)
        faults = [layout.size_fault(size) for layout in self._layouts()]
        if all(faults):
            raise RefusalError(Reason.RING_SIZE, f"gives {faults[0]}")
        if size != ring.size:
            self._check_stopped(index, "size")
        ring.size = size
        return None

    def _set_base(self, message: Message, _fds: Descriptors) -> Answer:
        index, base = VRING_STATE.unpack(message.payload)
        ring = self._ring(index)
        faults = [layout.base_fault(base, ring.size) for layout in self._layouts()]
        if all(faults):
            raise RefusalError(Reason.RING_BASE, f"gives {faults[0]}")
        if base != ring.base:
            self._check_stopped(index, "base")
        ring.base = base
        return None

    def _set_addresses(self, message: Message, _fds: Descriptors) -> Answer:
        index, flags, desc, used, avail, log = VRING_ADDRESS.unpack(message.payload)
        ring = self._ring(index)
        if flags & ~VRING_LOG:
            raise RefusalError(Reason.VALUE, f"has unknown flags {flags:#x}")
        addresses = (desc, avail, used)
        check_alignment(addresses, self._layouts()[0])  # of both, split asks for less
        # I/O virtual ones are not known yet.
        known = isinstance(self._table, MemoryTable) and self._table.regions
        if known and not any(
            layout.resolve(addresses, self._table, ring.size or 1) for layout in self._layouts()
        ):
            raise RefusalError(Reason.RING_ADDRESS, f"puts ring {index} outside VM1's memory")
        for other, its in enumerate(self.rings):
            if other != index and its.kicked and its.addresses == addresses:
                raise RefusalError(Reason.RING_ADDRESS, f"puts ring {index} where ring {other} is")
        if addresses != ring.addresses:
            self._check_stopped(index, "addresses")
        ring.addresses = addresses
        ring.log = log if flags & VRING_LOG else None
        return None

    def _get_base(self, message: Message, _fds: Descriptors) -> Answer:
        index, _ = VRING_STATE.unpack(message.payload)
        ring = self._ring(index)
        self._release(ring.stop())
        return lambda: VRING_STATE.pack(index, ring.base)

    def _set_enable(self, message: Message, _fds: Descriptors) -> Answer:
        index, enable = VRING_STATE.unpack(message.payload)
        ring = self._ring(index)
        if enable > 1:
            raise RefusalError(Reason.VALUE, f"gives {enable}, neither 0 nor 1")
        # QEMU sends it before SET_FEATURES too, so only a known "no" is one.
        if self._features is not None and not self._features & Feature.PROTOCOL_FEATURES:
            raise RefusalError(
                Reason.NOT_NEGOTIATED, "needs PROTOCOL_FEATURES, which was not accepted"
            )
        ring.enabled = bool(enable)
        return None

    def _set_kick(self, message: Message, fds: Descriptors) -> Answer:
        index, fd = parse_event(message.payload, fds)
        ring = self._ring(index)
        if not ring.kicked:
            self._check_position(index, ring)
        self._release(ring.kick_fd)
        ring.kick_fd = self._keep(fds, fd)
        ring.kicked = True
        if not self.states()[index].started and not self._translated:
            self._notes.append(f"ring {index} was kicked, and cannot start: it is not set up")
        return None

    def _check_position(self, index: int, ring: Ring) -> None:
        """Refuse to begin a packed ring where VM1's own descriptors say that it does not stand.

        So it is after the death of a device, of which the front-end kept no region.
        """
        layout = layout_of(self._features or 0)
        if self.resumes or not layout.packed or not ring.addresses:
            return
        if layout.base_fault(ring.base, ring.size):
            return  # then it does not start either
        resolved = layout.resolve(ring.addresses, self._table, ring.size)
        if resolved and not may_begin(resolved[0], ring.size, ring.base, self._table):
            ring.broken = True
            text = f"starts ring {index} at {ring.base:#x}, where it does not stand: reset VM1"
            raise RefusalError(Reason.RING_BASE, text)

    def _set_call(self, message: Message, fds: Descriptors) -> Answer:
        index, fd = parse_event(message.payload, fds)
        ring = self._ring(index)
        self._release(ring.replace_call(self._keep(fds, fd)))
        return None

    def _set_error(self, message: Message, fds: Descriptors) -> Answer:
        index, fd = parse_event(message.payload, fds)
        ring = self._ring(index)
        self._release(ring.error_fd)
        ring.error_fd = self._keep(fds, fd)
        return None

    def _keep(self, fds: Descriptors, fd: int) -> int:
        return fds.take(fd) if fd >= 0 else fd

    def _release(self, fd: int) -> None:
        if fd >= 0:
            self._released.append(fd)
