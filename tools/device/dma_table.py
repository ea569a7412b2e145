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
        if not size or (address | size) % PAGE_SIZE or size > (1 << 64) - address:
            raise OSError(errno.EINVAL, "not a range of whole pages")
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
        """Take back one range exactly as it was added; ENOENT for any other."""
        if self._sizes.get(address) != size:
            raise OSError(errno.ENOENT, "not a mapped range")
        del self._sizes[address]
        del self._starts[bisect.bisect_left(self._starts, address)]

    def clear(self) -> None:
        """Take all back."""
        self._starts.clear()
        self._sizes.clear()
