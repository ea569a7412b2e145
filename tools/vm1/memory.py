"""VM1's memory: one sealed memfd, shown to the back-end as regions with holes between them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import UsageError, VhostPciError, errno_text
from guest.mapping import Mapping

if TYPE_CHECKING:
    from tools.vm1.options import MemoryOptions

_PAGE = 4096
_HUGE_PAGE = 2 << 20
_ALIGNMENT = 64  # more than any part of a ring needs (2.7)


@dataclass(frozen=True, slots=True)
class Region:
    """size_bytes from offset of the file, at bus for descriptors and at user in this process."""

    bus: int
    size_bytes: int
    user: int
    offset: int


@dataclass(frozen=True, slots=True)
class Place:
    """A piece of the memory, in one region: its address here, and its bus address."""

    host: int
    bus: int


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Memory(Closing):
    """The memfd, mapped here, and an allocator that goes round its regions.

    Owns descriptor and mapping; `close` invalidates every address. Thread rule: one thread.

    Args:
        options: Layout.
        pieces: The sizes in bytes that will be allocated, where options leave the size open.

    Raises:
        UsageError: Too small for its regions.
        VhostPciError: The kernel refused.
    """

    def __init__(self, options: MemoryOptions, pieces: list[int]) -> None:
        page = _HUGE_PAGE if options.huge_pages else _PAGE
        count = options.regions
        if options.size_bytes:
            size = options.size_bytes // count // page * page
        else:
            aligned = [_round_up(piece, _ALIGNMENT) for piece in pieces]
            # A region can be left with a rest too small for the largest piece.
            size = _round_up(sum(aligned) // count + max(aligned), page)
        if not size:
            cause = f"{count} regions of {page} bytes do not fit"
            raise UsageError("use", f"--memory {options.size_bytes}", cause)
        self._free = [0] * count
        self._next = 0
        self.fd = -1
        self.fd = _create(size * count, huge_pages=options.huge_pages)
        try:
            name = "VM1's memory"
            self._mapping = Mapping(self.fd, size * count, 0, writable=True, name=name)
        except VhostPciError:
            os.close(self.fd)
            raise
        # A hole as large as a region lies behind each.
        self.regions = tuple(
            Region(
                bus=options.bus_base + 2 * index * size,
                size_bytes=size,
                user=self._mapping.address + index * size,
                offset=index * size,
            )
            for index in range(count)
        )

    def allocate(self, size_bytes: int) -> Place:
        """A zeroed piece, aligned to a cache line, for good.

        Neighbouring pieces lie in different regions.

        Raises:
            UsageError: No region has so much left.
        """
        count = len(self.regions)
        for turn in range(count):
            index = (self._next + turn) % count
            begin = _round_up(self._free[index], _ALIGNMENT)
            if begin + size_bytes <= self.regions[index].size_bytes:
                self._free[index] = begin + size_bytes
                self._next = (index + 1) % count
                region = self.regions[index]
                self._mapping.prefault(region.offset + begin, size_bytes)
                return Place(region.user + begin, region.bus + begin)
        total = sum(region.size_bytes for region in self.regions)
        cause = "rings and buffers do not fit"
        raise UsageError("use", f"--memory {total}", cause, "leave it out to get what is needed")

    def close(self) -> None:
        """Unmap and close. Twice is fine."""
        if self.fd >= 0:
            self._mapping.close()
            os.close(self.fd)
            self.fd = -1


def _create(size_bytes: int, *, huge_pages: bool) -> int:
    """A memfd that can no longer shrink, so that a back-end's mapping stays good."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if huge_pages else 0)
    fd = -1
    try:
        fd = os.memfd_create("vhost-pci-vm1", flags)
        os.ftruncate(fd, size_bytes)
        if huge_pages:
            os.posix_fallocate(fd, 0, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except (OSError, OverflowError) as error:
        with contextlib.suppress(OSError):
            os.close(fd)
        cause = errno_text(error) if isinstance(error, OSError) else str(error)
        remedy = "reserve pages in /proc/sys/vm/nr_hugepages" if huge_pages else ""
        raise VhostPciError("create", f"{size_bytes} bytes of memory", cause, remedy) from error
    return fd
