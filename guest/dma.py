"""Memory that a function reaches by DMA, and the I/O addresses given to it.

The ladder: `IovaSpace` of the container's ranges; `DmaMemory` takes an address from it, allocates
and maps; `close` takes the mapping back before the memory goes.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest.function import Function

_HUGE_PAGE = 2 << 20
_MAP_HUGETLB = 0x40000  # asm-generic/mman-common.h
# Where the kernel tells no ranges: what every IOMMU translates, below x86's interrupt window.
_LEAST_RANGE = (0, 0xFEDFFFFF)


class IovaSpace:
    """I/O addresses of one container, given out upwards.

    0 is not given out: devices take it for none.

    Args:
        ranges: (first, last) pairs, both inclusive, that the IOMMU translates
            (`guest.vfio_container.IommuInfo.iova_ranges`); none: the kernel does not tell.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = list(ranges) or [_LEAST_RANGE]
        self._next = _HUGE_PAGE

    def take(self, size: int) -> int:
        """An address, aligned to 2 MiB, of size bytes that nobody else has.

        Raises:
            VhostPciError: The IOMMU translates no range of that size.
        """
        for first, last in self._ranges:
            begin = -(-max(first, self._next) // _HUGE_PAGE) * _HUGE_PAGE
            if begin + size - 1 <= last:
                self._next = begin + size
                return begin
        most = max(last + 1 - first for first, last in self._ranges)
        cause, remedy = "the IOMMU has no room of that size left", ""
        if size > most:
            cause = f"the IOMMU translates at most {most} in one piece"
            remedy = "give it more address bits: in a VM, intel-iommu,aw-bits=48"
        raise VhostPciError("map for DMA", f"{size} bytes", cause, remedy)

    def mark(self) -> int:
        """Where it stands, for `rewind`."""
        return self._next

    def rewind(self, mark: int) -> None:
        """Take back all that was given out since the mark; nothing is mapped there any more."""
        self._next = mark


class DmaMemory(Closing):
    """Zeroed memory of this process that a function reads and writes; huge pages where there are.

    Thread rule: as of the function. The function must outlive it.

    Args:
        function: Who may reach it.
        space: Of the function's container.
        size: Bytes; rounded up to huge pages.

    Raises:
        VhostPciError: There is no memory, or the IOMMU refuses it.
    """

    def __init__(self, function: Function, space: IovaSpace, size: int) -> None:
        self.size = -(-size // _HUGE_PAGE) * _HUGE_PAGE
        self._function = function
        self._map: mmap.mmap | None = shared_memory(self.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        try:
            self.iova = space.take(self.size)
            function.dma_map(self.address, self.size, self.iova, writable=True)
        except BaseException:
            self._map.close()
            raise

    def close(self) -> None:
        """Take it from the function, then free it; nothing may use it any more. Twice is fine."""
        if self._map is None:
            return
        memory, self._map = self._map, None
        try:
            self._function.dma_unmap(self.iova, self.size)
        finally:
            memory.close()


def shared_memory(size: int) -> mmap.mmap:
    """Zeroed memory that a device may write while this process has it; huge pages where there are.

    Raises:
        VhostPciError: There is not as much.
    """
    # Shared, because a child's copy of private memory could be what this process keeps, while the
    # device keeps the old pages.
    shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    populated = shared | mmap.MAP_POPULATE
    try:
        return mmap.mmap(-1, size, populated | _MAP_HUGETLB)
    except OSError:
        pass
    try:
        return mmap.mmap(-1, size, populated)
    except OSError as error:
        raise VhostPciError("allocate", f"{size} bytes for DMA", errno_text(error)) from error
