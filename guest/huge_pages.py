"""Huge pages of the default size: taken from the kernel for a while, and given back."""

from __future__ import annotations

import contextlib
from pathlib import Path

from guest.closing import Closing

ROOT = Path("/")


class HugePageReserve(Closing):
    """Sees to it that enough are free, where it may; as many as before are reserved at the end.

    Thread rule: one thread.

    Args:
        size_bytes: How much memory is wanted of them.
        root: Where proc is mounted.

    Attributes:
        enough: Whether so much was free in the end.
    """

    def __init__(self, size_bytes: int, root: Path = ROOT) -> None:
        self._reserved = root / "proc/sys/vm/nr_hugepages"
        self._facts = root / "proc/meminfo"
        self._before: int | None = None
        free, page_bytes = self._fact("HugePages_Free"), self._fact("Hugepagesize") << 10
        wanted = -(-size_bytes // page_bytes) if page_bytes else 0
        if page_bytes and free < wanted:
            self._reserve(wanted - free)
            free = self._fact("HugePages_Free")
        self.enough = bool(page_bytes) and free >= wanted

    def _fact(self, name: str) -> int:
        with contextlib.suppress(OSError):
            for line in self._facts.read_text().splitlines():
                key, _, value = line.partition(":")
                if key == name:
                    return int(value.split()[0])
        return 0

    def _reserve(self, more: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            before = int(self._reserved.read_text())
            self._reserved.write_text(f"{before + more}\n")
            self._before = before

    def close(self) -> None:
        """Reserve what was reserved before. Twice is fine."""
        if self._before is not None:
            with contextlib.suppress(OSError):
                self._reserved.write_text(f"{self._before}\n")
            self._before = None
