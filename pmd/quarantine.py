"""Quarantine: rings that are not to be touched, and what brings each back.

A ring whose accounting broke (or that was left with an impossible avail.idx) comes back when its
entry in the ring table changes: size, layout, base, STARTED, addresses. Enabling it or giving it
another call eventfd does not count. A ring whose memory went away, or that could not be set up,
also comes back with any new generation: the memory may be another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.state_area import RingFlag
from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from driver.ring import Ring


def _setup(ring: Ring) -> tuple[int, ...]:
    layout = ring.flags & (RingFlag.STARTED | RingFlag.PACKED)
    return (ring.size, layout, ring.desc, ring.avail, ring.used, ring.base)


class _Record(NamedTuple):
    setup: tuple[int, ...]
    generation: int | None


class Quarantine:
    """The rings of one function that stay out. One thread."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}
        self.count = 0

    def add(self, ring: Ring, generation: int, *, lasting: bool) -> None:
        """Keep ring out; lasting: whatever the generation, until its own entry changes."""
        self._records[ring.index] = _Record(_setup(ring), None if lasting else generation)
        self.count += 1

    def admits(self, ring: Ring, generation: int) -> bool:
        """Whether ring, as it is at generation, may run; forgets a quarantine that is over."""
        record = self._records.get(ring.index)
        if record is None:
            return True
        same_setup = record.setup == _setup(ring)
        if same_setup and record.generation in (None, generation):
            return False
        del self._records[ring.index]
        return True

    def clear(self) -> None:
        """Another device: nothing is known of its rings."""
        self._records.clear()
