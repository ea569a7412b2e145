"""VM1's memory and eventfds for the device's tests, and the Vm1State that shows them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tools.device.vm1_state import MemoryFile, MemoryRegion, RingState, Vm1State

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def memory_file(size: int, *, read_only_path: Path | None = None) -> MemoryFile:
    """A memory file of size bytes; with read_only_path, one there that is open for reading."""
    if read_only_path:
        read_only_path.write_bytes(bytes(size))
        fd = os.open(read_only_path, os.O_RDONLY | os.O_CLOEXEC)
    else:
        fd = os.memfd_create("vm1", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
    status = os.fstat(fd)
    return MemoryFile(fd, status.st_dev, status.st_ino, size, read_only_path is None)


def region(file: MemoryFile, bus: int, size: int, file_offset: int = 0) -> MemoryRegion:
    """size bytes of the file at bus; VM1's VMM has them elsewhere."""
    return MemoryRegion(bus, size, 0x7F00_0000_0000 + bus, file, file_offset)


def state(*memory: MemoryRegion, rings: tuple[RingState, ...] = (), features: int = 0) -> Vm1State:
    """A connected VM1."""
    return Vm1State(True, features, memory, rings)


@dataclass
class Vm1:
    """Owns files and eventfds."""

    fds: list[int] = field(default_factory=list)

    def file(self, size: int, *, read_only_path: Path | None = None) -> MemoryFile:
        """As `memory_file`."""
        file = memory_file(size, read_only_path=read_only_path)
        self.fds.append(file.fd)
        return file

    def eventfd(self) -> int:
        """A new eventfd, non-blocking."""
        self.fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return self.fds[-1]

    def ring(self) -> RingState:
        """A started, enabled ring of 256 at bus address 0, with all eventfds."""
        kick, call, error = self.eventfd(), self.eventfd(), self.eventfd()
        return RingState(256, True, True, 0, 0x1000, 0x2000, 7, kick, call, error, call_serial=3)

    def close(self) -> None:
        """Close all."""
        while self.fds:
            os.close(self.fds.pop())
