"""Shared memory mappings and the numpy views onto them."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text


class Mapping(Closing):
    """size bytes of fd from offset, mapped MAP_SHARED.

    Owns the mapping, not the descriptor, which may be closed after construction. Views taken with
    `array` keep the memory alive: `close` then raises BufferError, which is a bug of the caller.

    Args:
        fd: Any descriptor that can be mapped.
        size: In bytes, more than 0.
        offset: In the file, a multiple of the page size.
        writable: Also map for writing.
        name: For messages.
        combining: Whether fd maps write-combining, where accesses have no order of their own.

    Raises:
        VhostPciError: The kernel refused.
    """

    def __init__(
        self,
        fd: int,
        size: int,
        offset: int,
        *,
        writable: bool,
        name: str,
        combining: bool = False,
    ) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, protection, offset=offset)
        except (OSError, ValueError, OverflowError) as error:
            cause = errno_text(error) if isinstance(error, OSError) else str(error)
            raise VhostPciError("map", f"{size} bytes of {name}", cause) from error
        self.size = size
        self.writable = writable
        self.name = name
        self.combining = combining
        self.address = self._find_address()

    def _find_address(self) -> int:
        view = np.frombuffer(self._map, dtype=np.uint8)
        return int(view.ctypes.data)

    def array(self, dtype: npt.DTypeLike, offset: int = 0, count: int = -1) -> npt.NDArray[Any]:
        """A numpy view of count items of dtype (-1: as many as fit) from offset bytes on.

        Data plane and tables only: numpy may read wider than asked, so never device registers.
        Drop the view before `close`.
        """
        item = np.dtype(dtype).itemsize
        if count < 0:
            count = (self.size - offset) // item
        if offset < 0 or offset + count * item > self.size:
            raise VhostPciError(
                "view", self.name, f"{count} items of {item} bytes at {offset} pass its {self.size}"
            )
        return np.frombuffer(self._map, dtype=dtype, count=count, offset=offset)

    def prefault(self) -> None:
        """Ask for the pages' translations to be there before the data path needs them."""
        libc = ctypes.CDLL(None, use_errno=True)
        madv_populate_read = 22  # linux/mman.h; older kernels refuse, and the first touch does it
        libc.madvise(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size), madv_populate_read)

    def close(self) -> None:
        """Unmap. Twice is fine."""
        self._map.close()
