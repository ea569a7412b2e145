"""The log in which VM1's VMM looks for changed memory while VM1 migrates (vhost-user, "Migration").

A bit for each 4096 bytes of bus addresses. Other processes set bits of the same bytes, and the VMM
clears them, each atomically. Here whole bytes are stored, all bits set: that needs no atomic access
and loses nobody's bit, and the log is never mapped, so a VMM that cuts it off harms only itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.device.backend_rules import Reason, RefusalError
from tools.device.memory_table import FILE_LIMIT, examine_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tools.device.vm1_state import MemoryRegion

BYTE_SHIFT = 15  # bus addresses that a byte of the log is of: eight pages
_CHUNK = b"\xff" * (1 << 16)


@dataclass(frozen=True, slots=True)
class Log:
    """size bytes at an offset of a file. Who made it owns fd, until a state without it shows."""

    fd: int
    offset: int
    size: int

    def covers(self, memory: Iterable[MemoryRegion]) -> bool:
        """Whether there is a bit for every page of these regions."""
        return all((region.bus + region.size - 1) >> BYTE_SHIFT < self.size for region in memory)

    def mark(self, bus: int, size: int) -> None:
        """Mark size bytes of bus addresses, more than none, as far as there are bits for them.

        Raises:
            OSError: The file does not take it: it was cut off.
        """
        at, end = bus >> BYTE_SHIFT, min(((bus + size - 1) >> BYTE_SHIFT) + 1, self.size)
        while at < end:
            at += os.pwrite(self.fd, _CHUNK[: end - at], self.offset + at)


def make_log(fd: int, offset: int, size: int, memory: Iterable[MemoryRegion]) -> Log:
    """The log of SET_LOG_BASE; does not take fd over.

    Raises:
        RefusalError: There can be no log at that place, or none of this memory.
    """
    file = examine_file(fd, ())
    if size == 0 or offset + size > min(file.size, FILE_LIMIT):
        text = f"has a log of {size} bytes at {offset:#x} of a file of {file.size}"
        raise RefusalError(Reason.LOG, text)
    log = Log(fd, offset, size)
    check_log(log, memory)
    return log


def check_log(log: Log | None, memory: Iterable[MemoryRegion]) -> None:
    """Refuse memory that a log, if there is one, has no bits for.

    Raises:
        RefusalError: That is so.
    """
    if log and not log.covers(memory):
        raise RefusalError(Reason.LOG, f"leaves memory without a bit in a log of {log.size} bytes")
