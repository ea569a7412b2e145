"""What is known of VM1, as frozen facts: what the vhost-user side hands to the function side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tools.device.dirty_log import Log


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """An open file of VM1's memory. Who made the Vm1State owns fd until the next is published.

    Two files are the same memory if (device, inode) are equal, whatever their descriptors.
    page_bytes: what it can be mapped by; more than 4096 where it consists of huge pages.
    """

    fd: int
    device: int
    inode: int
    size: int
    writable: bool
    page_bytes: int = 4096


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """size bytes of VM1's bus addresses, at file_offset of a file; user: VM1's VMM address."""

    bus: int
    size: int
    user: int
    file: MemoryFile
    file_offset: int


@dataclass(frozen=True, slots=True)
class Translation:
    """size bytes of I/O virtual addresses from bus on, at file_offset of a file.

    physical: the guest-physical address. permission: 1 read, 2 write.
    """

    bus: int
    size: int
    physical: int
    file: MemoryFile
    file_offset: int
    permission: int


class Span(NamedTuple):
    """I/O virtual addresses and what is wanted of them: permission 1 read, 2 write."""

    address: int
    length: int
    permission: int

    def overlaps(self, other: Span) -> bool:
        """Whether they share an address."""
        begin = max(self.address, other.address)
        return begin < min(self.address + self.length, other.address + other.length)


class Announcement(NamedTuple):
    """The address that the network is to learn VM1's place from; number: 0 for none yet."""

    address: int = 0
    number: int = 0


NOT_ANNOUNCED = Announcement()


@dataclass(frozen=True, slots=True)
class RingState:
    """One ring, addresses already turned into bus addresses and checked. -1: no such eventfd.

    log: where else VM1 wants its used part to be marked, while it migrates.
    """

    size: int = 0
    started: bool = False
    enabled: bool = False
    desc: int = 0
    driver: int = 0
    device: int = 0
    base: int = 0
    kick_fd: int = -1
    call_fd: int = -1
    error_fd: int = -1
    call_serial: int = 0
    log: int | None = None


@dataclass(frozen=True, slots=True)
class Vm1State:
    """All of it; replaced as a whole.

    commit_serial: of the commit area's file. resumes: the front-end kept it (docs/device.md 5.6).
    mtu: what VM1 was told and accepted, else 0. logging: changed memory is to be marked;
    in the log, as soon as there is one. translations: what is known of VM1's I/O virtual addresses,
    sorted; None: bus addresses are guest-physical. refused: what VM1's IOMMU was asked for and
    does not have. answers: changes with each answer to a driver's misses (docs/device.md 5.8).
    announcement: what VM1's VMM wants to be announced (5.9).
    """

    connected: bool
    features: int
    memory: tuple[MemoryRegion, ...]
    rings: tuple[RingState, ...]
    commit_serial: int = 0
    resumes: bool = False
    mtu: int = 0
    logging: bool = False
    log: Log | None = None
    translations: tuple[Translation, ...] | None = None
    refused: tuple[Span, ...] = ()
    answers: int = 0
    announcement: Announcement = NOT_ANNOUNCED
