"""What the front-end said of one ring, and what the driver in VM2 may know of it.

Addresses stay as they came and are resolved again whenever the memory table is another: front-ends
send them before the table, after it, and not again when it changes.
Section numbers are of the virtio specification, 1.3.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.device.backend_rules import Reason, RefusalError
from tools.device.eventfd import is_eventfd
from tools.device.packed_position import DESC, PackedRemains, may_stand_at
from tools.device.ring_layout import HALF_MASK, both_halves
from tools.device.vm1_state import RingState
from tools.vhost_user_abi import EVENT_INDEX_MASK, EVENT_NO_DESCRIPTOR, U64

if TYPE_CHECKING:
    from tools.device.ring_layout import AddressTable, RingLayout
    from tools.vhost_user_wire import Descriptors

SERIAL_MASK = 0xFFFF_FFFF
USED_INDEX_OFFSET = 2  # struct virtq_used: le16 flags, le16 idx (2.7.8)


@dataclass(slots=True)
class Ring:
    """One ring of the connection. The descriptors belong to the connection's state. -1: none.

    addresses: of the parts of descriptors, of the driver, of the device: user or I/O virtual ones.
    log: the bus address at which what is written to the last is to be logged.
    base: as SET_VRING_BASE gave it; after a stop, where the ring stood.
    kicked: a kick eventfd came, or word that there is none, and nothing has stopped the ring since.
    broken: the driver has quarantined it, and nothing has stopped it since.
    """

    size: int = 0
    addresses: tuple[int, int, int] | None = None
    log: int | None = None
    base: int = 0
    kicked: bool = False
    enabled: bool = False
    kick_fd: int = -1
    call_fd: int = -1
    error_fd: int = -1
    call_serial: int = 0
    broken: bool = False

    def state(self, table: AddressTable, layout: RingLayout, *, always_enabled: bool) -> RingState:
        """What the driver sees: all of a started ring, nothing of any other (docs/device.md 5.3).

        Size and base are judged once more: features may have come after them.
        always_enabled: VHOST_USER_F_PROTOCOL_FEATURES was not accepted ("ring states").
        """
        if not (self.kicked and self.addresses):
            return RingState()
        if layout.size_fault(self.size) or layout.base_fault(self.base, self.size):
            return RingState()
        resolved = layout.resolve(self.addresses, table, self.size)
        if resolved is None:
            return RingState()
        desc, driver, device = resolved
        return RingState(
            size=self.size,
            started=True,
            enabled=self.enabled or always_enabled,
            desc=desc,
            driver=driver,
            device=device,
            base=self.base,
            kick_fd=self.kick_fd,
            call_fd=self.call_fd,
            error_fd=self.error_fd,
            call_serial=self.call_serial,
            log=None if self.log == device else self.log,  # there it is marked anyhow
        )

    def stop(self) -> int:
        """No longer to be processed; returns the kick eventfd, which the caller closes.

        The next start brings size, base and addresses anew. Whether it is enabled, and its other
        eventfds, stay.
        """
        released, self.kick_fd = self.kick_fd, -1
        self.kicked = self.broken = False
        self.addresses = None
        return released

    def replace_call(self, fd: int) -> int:
        """Take the new call eventfd over; returns the old one, which the caller closes."""
        if fd != self.call_fd:
            self.call_serial = (self.call_serial + 1) & SERIAL_MASK
        released, self.call_fd = self.call_fd, fd
        return released

    def descriptors(self) -> tuple[int, ...]:
        """The eventfds it has."""
        return tuple(fd for fd in (self.kick_fd, self.call_fd, self.error_fd) if fd >= 0)


def check_alignment(addresses: tuple[int, int, int], layout: RingLayout) -> None:
    """Refuse addresses that 2.7 or 2.8 does not allow.

    Raises:
        RefusalError: One is not aligned.
    """
    for address, part in zip(addresses, layout.parts, strict=True):
        if address % part.alignment:
            text = f"puts the {part.name} at {address:#x}, not a multiple of {part.alignment}"
            raise RefusalError(Reason.RING_ADDRESS, text)


def parse_event(payload: bytes, fds: Descriptors) -> tuple[int, int]:
    """Ring index and eventfd (-1: none) of SET_VRING_KICK, CALL or ERR. Takes no descriptor over.

    Raises:
        RefusalError: The descriptor is missing, one too many, or no eventfd; or bits are unknown.
    """
    (value,) = U64.unpack(payload)
    if value & ~(EVENT_INDEX_MASK | EVENT_NO_DESCRIPTOR):
        raise RefusalError(Reason.VALUE, f"has unknown bits in {value:#x}")
    fd = next(iter(fds), -1)
    if (fd < 0) != bool(value & EVENT_NO_DESCRIPTOR):
        text = "says it has no descriptor and has one" if fd >= 0 else "has no descriptor"
        raise RefusalError(Reason.DESCRIPTOR_COUNT, text)
    if fd >= 0:
        if not is_eventfd(fd):
            raise RefusalError(Reason.EVENTFD, "has a descriptor that is no eventfd")
        os.set_blocking(fd, False)
    return value & EVENT_INDEX_MASK, fd


def leave(
    ring: RingState, table: AddressTable, layout: RingLayout, words: tuple[int, int]
) -> int | None:
    """Where a stopped ring stands, as SET_VRING_BASE would give it; None if nobody knows any more.

    To be called after the driver let go of the ring: then nobody changes it but VM1, whose own
    answer it is (docs/device.md 5.3, commit point). A batch that a driver's death cut short is
    finished in VM1's memory. words: its commit words, of packed rings.
    """
    if not layout.packed:
        index = _read(ring.device + USED_INDEX_OFFSET, 2, table)
        return None if index is None else int.from_bytes(index, "little")
    descriptors = _read(ring.desc, DESC.size * ring.size, table)
    if descriptors is None:
        return None
    remains = PackedRemains(descriptors, lambda bus, size: _read(bus, size, table))
    standing = remains.standing(words)
    if standing is None:
        return None
    for mark in standing.marks:
        _write(ring.desc + mark.offset, mark.data, table)
    return both_halves(standing.position)


def may_begin(desc: int, size: int, base: int, table: AddressTable) -> bool:
    """Whether a packed ring of VM1's, its descriptors at a bus address, could stand at its base."""
    descriptors = _read(desc, DESC.size * size, table)
    return descriptors is None or may_stand_at(descriptors, base & HALF_MASK)


def _read(bus: int, size: int, table: AddressTable) -> bytes | None:
    """Bytes of VM1's memory; None if they cannot be read."""
    place = table.locate(bus, size)
    if place is None:
        return None
    file, offset = place
    try:
        data = os.pread(file.fd, size, offset)
    except OSError:
        return None
    return data if len(data) == size else None


def _write(bus: int, data: bytes, table: AddressTable) -> None:
    """Store bytes in VM1's memory, where they can be."""
    place = table.locate(bus, len(data))
    if place is not None:
        file, offset = place
        with contextlib.suppress(OSError):
            os.pwrite(file.fd, data, offset)
