"""The one door to the kernel: what guest/vfio*.py and guest/binding.py ask of it."""

from __future__ import annotations

import fcntl
import os


class Syscalls:
    """As the manual pages have them; errors are OSError. Tests derive another kernel from it."""

    def open(self, path: str) -> int:
        """Open for reading and writing, close-on-exec."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: int | bytearray) -> int:
        """An integer is passed as it is; a bytearray by address, and the kernel may change it."""
        # fcntl returns the call's result only for a mutable buffer (bytes would swallow it).
        return fcntl.ioctl(fd, request, argument)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read up to size bytes at offset."""
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write data at offset; how much was written."""
        return os.pwrite(fd, data, offset)

    def write_attribute(self, path: str, value: str) -> None:
        """Write a sysfs attribute, in one write; errors are the kernel's answer to the value."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


KERNEL = Syscalls()
