"""What the front-end said of one ring, and what the driver in VM2 may know of it.

Addresses stay as they came and are resolved again whenever the memory table is another: front-ends
send them before the table, after it, and not again when it changes.
Section numbers are of the virtio specification, 1.3.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.device.backend_rules import Reason, RefusalError
from tools.device.eventfd import is_eventfd
from tools.device.vm1_state import RingState
from tools.vhost_user_abi import EVENT_INDEX_MASK, EVENT_NO_DESCRIPTOR, RING_SIZE_MAX, U64

if TYPE_CHECKING:
    from tools.device.memory_table import MemoryTable
    from tools.vhost_user_wire import Descriptors

SERIAL_MASK = 0xFFFF_FFFF
USED_INDEX_OFFSET = 2  # struct virtq_used: le16 flags, le16 idx (2.7.8)


@dataclass(frozen=True, slots=True)
class RingAddresses:
    """User addresses of the three parts of a split ring (SET_VRING_ADDR)."""

    desc: int
    driver: int
    device: int

    def check_alignment(self) -> None:
        """Refuse what 2.7 does not allow."""
        for name, address, alignment in (
            ("descriptor table", self.desc, 16),
            ("available ring", self.driver, 2),
            ("used ring", self.device, 4),
        ):
            if address % alignment:
                text = f"puts the {name} at {address:#x}, not a multiple of {alignment}"
                raise RefusalError(Reason.RING_ADDRESS, text)

    def resolve(self, table: MemoryTable, size: int) -> tuple[int, int, int] | None:
        """Their bus addresses for a ring of size descriptors; None if any part is out of place."""
        desc = table.bus_address(self.desc, 16 * size)
        driver = table.bus_address(self.driver, 6 + 2 * size)
        device = table.bus_address(self.device, 6 + 8 * size)
        if desc is None or driver is None or device is None:
            return None
        # A region need not be aligned, so the bus address is judged too.
        return None if desc % 16 or driver % 2 or device % 4 else (desc, driver, device)


@dataclass(slots=True)
class Ring:
    """One ring of the connection. The descriptors belong to the connection's state. -1: none.

    kicked: a kick eventfd came, or word that there is none, and nothing has stopped the ring since.
    """

    size: int = 0
    addresses: RingAddresses | None = None
    base: int = 0
    kicked: bool = False
    enabled: bool = False
    kick_fd: int = -1
    call_fd: int = -1
    error_fd: int = -1
    call_serial: int = 0

    def state(self, table: MemoryTable, *, always_enabled: bool) -> RingState:
        """What the driver sees: all of a started ring, nothing of any other (docs/device.md 5.3).

        always_enabled: VHOST_USER_F_PROTOCOL_FEATURES was not accepted ("ring states").
        """
        if not (self.kicked and self.size and self.addresses):
            return RingState()
        resolved = self.addresses.resolve(table, self.size)
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
        )

    def stop(self) -> int:
        """No longer to be processed; returns the kick eventfd, which the caller closes.

        The next start brings size, base and addresses anew. Whether it is enabled, and its other
        eventfds, stay.
        """
        released, self.kick_fd = self.kick_fd, -1
        self.kicked = False
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


def check_size(size: int) -> None:
    """Refuse a size that no split ring has (2.7); size is the message's full 32 bits."""
    if not 0 < size <= RING_SIZE_MAX or size & (size - 1):
        raise RefusalError(
            Reason.RING_SIZE, f"gives {size} descriptors, not a power of two to 32768"
        )


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


def read_used_index(ring: RingState, table: MemoryTable) -> int | None:
    """used.idx of a ring in VM1's memory; None if it cannot be read any more.

    To be called after the driver let go of the ring: then nobody changes it but VM1, whose own
    answer it is (docs/device.md 5.3, commit point).
    """
    place = table.locate(ring.device + USED_INDEX_OFFSET, 2)
    if place is None:
        return None
    file, offset = place
    try:
        data = os.pread(file.fd, 2, offset)
    except OSError:
        return None
    return int.from_bytes(data, "little") if len(data) == 2 else None
