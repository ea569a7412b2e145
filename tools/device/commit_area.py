"""Where packed rings stand: the commit words that the driver leaves (docs/device.md 5.6)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from driver.state_area import COMMIT

if TYPE_CHECKING:
    import mmap


class CommitWords(Protocol):
    """Where the words are kept."""

    def begin(self, ring: int, position: int) -> None:
        """Set both words; before the ring is shown as started."""
        ...

    def words(self, ring: int) -> tuple[int, int]:
        """Both words, committed first, as the driver wrote them: hostile input."""
        ...


class CommitArea:
    """The words in memory that is shared with the driver; borrows it. Thread rule: one thread."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset

    def begin(self, ring: int, position: int) -> None:
        """Set both words; before the ring is shown as started."""
        # Native "I" copies four aligned bytes at once, one store.
        struct.pack_into("II", self._memory, self._place(ring), position, position)

    def words(self, ring: int) -> tuple[int, int]:
        """Both words, committed first, as the driver wrote them: hostile input."""
        committed, intended = struct.unpack_from("II", self._memory, self._place(ring))
        return committed, intended

    def _place(self, ring: int) -> int:
        return self._offset + ring * COMMIT.itemsize
