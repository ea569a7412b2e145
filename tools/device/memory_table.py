"""VM1's memory table: checked as a whole, replaced as a whole.

Reference: QEMU's docs/interop/vhost-user.rst, "Memory region description"; docs/device.md 5.4.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.device.backend_rules import Reason, RefusalError
from tools.device.vm1_state import MemoryFile, MemoryRegion

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ADDRESS_LIMIT = 1 << 64
FILE_LIMIT = 1 << 63
SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; Python 3.11 has no name for it


@dataclass(frozen=True, slots=True)
class RegionDescription:
    """One region as a message describes it: all 64 bits, unchecked."""

    bus: int
    size: int
    user: int
    file_offset: int


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """Regions sorted by bus address, none overlapping another anywhere. Owns no descriptor."""

    regions: tuple[MemoryRegion, ...] = ()

    @property
    def descriptors(self) -> frozenset[int]:
        """The descriptors the regions' files are open by."""
        return frozenset(region.file.fd for region in self.regions)

    def bus_address(self, user: int, size: int, *, write: bool = False) -> int | None:  # noqa: ARG002 - all of it may be written
        """The bus address of size bytes at a user address, if one region covers them all.

        write: they have to be writable; all are.
        """
        for region in self.regions:
            offset = user - region.user
            if 0 <= offset <= region.size - size:
                return region.bus + offset
        return None

    def covers_user(self, user: int, size: int) -> bool:
        """Whether regions cover all of size bytes at a user address."""
        parts = (
            min(user + size, region.user + region.size) - max(user, region.user)
            for region in self.regions
        )
        return sum(part for part in parts if part > 0) == size

    def locate(self, bus: int, size: int) -> tuple[MemoryFile, int] | None:
        """File and file offset of size bytes at a bus address, if one region covers them all."""
        for region in self.regions:
            offset = bus - region.bus
            if 0 <= offset <= region.size - size:
                return region.file, region.file_offset + offset
        return None

    def replaced(
        self, described: Sequence[RegionDescription], fds: Sequence[int], slots: int
    ) -> MemoryTable:
        """The table of SET_MEM_TABLE: one descriptor for each region. Takes no descriptor over.

        A file that this table or an earlier region knows stays open by the descriptor it has.

        Raises:
            RefusalError: Count, file or region is impossible.
        """
        if not 0 < len(described) <= slots:
            raise RefusalError(Reason.MEMORY, f"has {len(described)} regions, not 1 to {slots}")
        if len(fds) != len(described):
            text = f"has {len(described)} regions and {len(fds)} descriptors"
            raise RefusalError(Reason.DESCRIPTOR_COUNT, text)
        known = [region.file for region in self.regions]
        regions = []
        for description, fd in zip(described, fds, strict=True):
            file = examine_file(fd, known)
            known.append(file)
            regions.append(_region(description, file))
        return _table(regions)

    def extended(self, description: RegionDescription, fd: int, slots: int) -> MemoryTable:
        """The table with one region more (ADD_MEM_REG). Takes no descriptor over.

        Raises:
            RefusalError: No slot is left, or file or region is impossible.
        """
        if len(self.regions) >= slots:
            raise RefusalError(Reason.MEMORY, f"is one more than {slots} regions")
        file = examine_file(fd, [region.file for region in self.regions])
        return _table([*self.regions, _region(description, file)])

    def reduced(self, description: RegionDescription) -> MemoryTable:
        """The table without one region, found by addresses and size only (REM_MEM_REG).

        Raises:
            RefusalError: There is no such region.
        """
        wanted = (description.bus, description.size, description.user)
        left = tuple(r for r in self.regions if (r.bus, r.size, r.user) != wanted)
        if len(left) == len(self.regions):
            raise RefusalError(Reason.MEMORY, f"names no region (bus address {description.bus:#x})")
        return MemoryTable(left)


def examine_file(fd: int, known: Iterable[MemoryFile]) -> MemoryFile:
    """What is known of a file of VM1's memory; by the descriptor of a known one that is the same.

    Seals it against shrinking where it allows that, before its size is looked at: memory that is
    cut off under a mapping kills who touches it.

    Only tmpfs (memfd) and hugetlbfs have seals to tell of, and only their pages come without
    waiting for anybody: of a FUSE file VM1 could withhold a page from the thread that touches it,
    for ever. Asked first, because already fstat of such a file could wait.

    Raises:
        RefusalError: It is no regular file of shared memory open for reading and writing.
    """
    try:
        if _seals(fd) is None:
            raise RefusalError(Reason.FILE, "names memory that is neither tmpfs nor hugetlbfs")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RefusalError(Reason.FILE, "names memory that is no regular file")
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise RefusalError(Reason.FILE, "names memory that is not open for reading and writing")
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        if (_seals(fd) or 0) & (fcntl.F_SEAL_WRITE | SEAL_FUTURE_WRITE):
            raise RefusalError(Reason.FILE, "names memory that is sealed against writing")
        facts = os.fstat(fd)
        page_bytes = os.fstatvfs(fd).f_bsize
    except OSError as error:
        raise RefusalError(
            Reason.FILE, f"names memory that cannot be examined ({error})"
        ) from error
    for file in known:
        if (file.device, file.inode) == (facts.st_dev, facts.st_ino):
            fd = file.fd
    return MemoryFile(fd, facts.st_dev, facts.st_ino, facts.st_size, True, page_bytes)


def is_sealed(fd: int) -> bool:
    """Whether the file can no longer shrink."""
    return bool((_seals(fd) or 0) & fcntl.F_SEAL_SHRINK)


def _seals(fd: int) -> int | None:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None  # no file of shared memory (EINVAL)


def _region(description: RegionDescription, file: MemoryFile) -> MemoryRegion:
    """Every sum is checked here once, so that nobody after us has to think of a wrap."""
    bus, size, user = description.bus, description.size, description.user
    if size == 0:
        raise RefusalError(Reason.MEMORY, f"has a region of no bytes (bus address {bus:#x})")
    if bus + size >= ADDRESS_LIMIT or user + size >= ADDRESS_LIMIT:
        raise RefusalError(Reason.MEMORY, f"has a region that passes 2^64 (bus address {bus:#x})")
    end = description.file_offset + size
    if end > file.size or end > FILE_LIMIT:
        raise RefusalError(
            Reason.MEMORY, f"has a region up to {end} of a file of {file.size} bytes"
        )
    return MemoryRegion(bus, size, user, file, description.file_offset)


def _table(regions: Sequence[MemoryRegion]) -> MemoryTable:
    """All regions of one file get the same, newest, facts of it."""
    newest = {(r.file.device, r.file.inode): r.file for r in regions}
    current = [
        MemoryRegion(r.bus, r.size, r.user, newest[r.file.device, r.file.inode], r.file_offset)
        for r in regions
    ]
    _check_apart("bus addresses", [(0, r.bus, r.size) for r in current])
    _check_apart("user addresses", [(0, r.user, r.size) for r in current])
    _check_apart("file offsets", [(r.file.fd, r.file_offset, r.size) for r in current])
    return MemoryTable(tuple(sorted(current, key=lambda region: region.bus)))


def _check_apart(what: str, spans: list[tuple[int, int, int]]) -> None:
    """No two spans (space, start, size) of one space may share a byte."""
    spans.sort()
    for (space, start, size), (next_space, next_start, _) in itertools.pairwise(spans):
        if space == next_space and start + size > next_start:
            raise RefusalError(
                Reason.MEMORY, f"has regions with overlapping {what} at {next_start:#x}"
            )
