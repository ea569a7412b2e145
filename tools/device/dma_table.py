"""What the client said is at which I/O virtual address: bookkeeping, for the device does no DMA."""

from __future__ import annotations

import bisect
import errno

from driver.state_area import PAGE_SIZE

DMA_MAPS_MAX = 65535


class DmaTable:
    """Address ranges that do not overlap. Thread rule: one thread.

    Refusals are OSError with the errno of the protocol's error reply, and change nothing.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, address: int, size: int) -> None:
        """Add a range of whole pages: EINVAL if it is not one, EEXIST if it overlaps, ENOSPC."""
        _check_pages(address, size)
        position = bisect.bisect_right(self._starts, address)
        before = self._starts[position - 1] if position else None
        after = self._starts[position] if position < len(self._starts) else None
        if (before is not None and address < before + self._sizes[before]) or (
            after is not None and after < address + size
        ):
            raise OSError(errno.EEXIST, "overlaps a mapped range")
        if len(self) >= DMA_MAPS_MAX:
            raise OSError(errno.ENOSPC, "more ranges than advertised")
        self._starts.insert(position, address)
        self._sizes[address] = size

    def remove(self, address: int, size: int) -> None:
        """Take back every range inside these pages: EINVAL if that would cut one in two.

        There may be none: with an IOMMU in VM2, stock QEMU unmaps the address space in powers of
        two, as VFIO's type 1 IOMMU, version 2, lets it, and tells its user of every refusal.
        """
        _check_pages(address, size)
        first = bisect.bisect_left(self._starts, address)
        last = bisect.bisect_left(self._starts, address + size)
        for start in self._starts[max(first - 1, 0) : last]:
            end = start + self._sizes[start]
            if start < address < end or start < address + size < end:
                raise OSError(errno.EINVAL, "cuts a mapped range")
        for start in self._starts[first:last]:
            del self._sizes[start]
        del self._starts[first:last]

    def clear(self) -> None:
        """Take all back."""
        self._starts.clear()
        self._sizes.clear()


def _check_pages(address: int, size: int) -> None:
    if not size or (address | size) % PAGE_SIZE or size > (1 << 64) - address:
        raise OSError(errno.EINVAL, "not a range of whole pages")
