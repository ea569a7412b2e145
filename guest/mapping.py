"""Shared memory mappings and the numpy views onto them."""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import TYPE_CHECKING, Any

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    import numpy.typing as npt

_PY_BUFFER_WORDS = 10  # Py_buffer: part of Python's stable ABI since 3.11; the first is the address


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
        # Of a read-only mapping ctypes' own from_buffer does not tell.
        view = (ctypes.c_size_t * _PY_BUFFER_WORDS)()
        buffer = ctypes.py_object(self._map)
        ctypes.pythonapi.PyObject_GetBuffer(buffer, ctypes.byref(view), 0)
        address = int(view[0])
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
        return address

    def write(self, offset: int, data: bytes) -> None:
        """Store data from offset on, in no particular order; memory only."""
        self._check(f"{len(data)} bytes", offset, len(data))
        self._map[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        """A private copy of size bytes from offset on, which others may be writing meanwhile.

        Memory only: it may be read wider than asked, so never device registers.
        """
        self._check(f"{size} bytes", offset, size)
        return self._map[offset : offset + size]

    def load(self, offset: int) -> int:
        """The 32-bit word at offset, a multiple of 4: one load."""
        self._check("4 bytes", offset, 4)
        # Native "I" copies four aligned bytes at once; "<I" would take byte after byte.
        return int(struct.unpack_from("I", self._map, offset)[0])

    def store(self, offset: int, value: int) -> None:
        """Write the 32-bit word at offset, a multiple of 4, of a writable mapping: one store."""
        self._check("4 bytes", offset, 4)
        struct.pack_into("I", self._map, offset, value)

    def _check(self, what: str, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise VhostPciError("view", self.name, f"{what} at {offset} pass its {self.size}")

    def array(self, dtype: npt.DTypeLike, offset: int = 0, count: int = -1) -> npt.NDArray[Any]:
        """A numpy view of count items of dtype (-1: as many as fit) from offset bytes on.

        Data plane and tables only: numpy may read wider than asked, so never device registers.
        Drop the view before `close`.
        """
        import numpy as np  # noqa: PLC0415 - slow to import, and nothing that serves VM1 asks for it

        item = np.dtype(dtype).itemsize
        if count < 0:
            count = (self.size - offset) // item
        self._check(f"{count} items of {item} bytes", offset, count * item)
        return np.frombuffer(self._map, dtype=dtype, count=count, offset=offset)

    def prefault(self, offset: int, size: int) -> None:
        """Ask for translations of these bytes' pages to be there before the data path needs them.

        The rest may be a hole of any size, whose pages nobody has to have.
        """
        self._check(f"{size} bytes", offset, size)
        libc = ctypes.CDLL(None, use_errno=True)
        madv_populate_read = 22  # linux/mman.h; older kernels refuse, and the first touch does it
        begin = (self.address + offset) // mmap.PAGESIZE * mmap.PAGESIZE
        length = self.address + offset + size - begin
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), madv_populate_read)

    def close(self) -> None:
        """Unmap. Twice is fine."""
        self._map.close()
