"""VM1's memory by bus address, on private bytes: what `driver.split_ring` works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.memory_map import BusAddress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from driver.memory_map import MemoryMap, Run


class BusMemory:
    """VM1's memory by bus address.

    Args:
        map_: The table.
        windows: The bytes of each window, written in place.
    """

    def __init__(self, map_: MemoryMap, windows: Mapping[int, memoryview]) -> None:
        self._map = map_
        self._windows = windows

    def runs(self, bus: int, length: int, *, write: bool) -> list[Run]:
        """All of length bytes, in order; TranslationError if one of them is out of reach."""
        runs: list[Run] = []
        while length:
            run = self._map.translate(BusAddress(bus), length, write=write)
            runs.append(run)
            bus += run.length
            length -= run.length
        return runs

    def load(self, runs: Sequence[Run]) -> bytes:
        """The bytes of runs."""
        return b"".join(
            bytes(self._windows[run.window][run.offset : run.offset + run.length]) for run in runs
        )

    def store(self, runs: Sequence[Run], data: bytes) -> None:
        """Fill runs from the front with data, which may be shorter."""
        for run in runs:
            part, data = data[: run.length], data[run.length :]
            self._windows[run.window][run.offset : run.offset + len(part)] = part

    def read(self, bus: int, length: int) -> bytes:
        """Length bytes at bus."""
        return self.load(self.runs(bus, length, write=False))

    def write(self, bus: int, data: bytes) -> None:
        """Store data at bus."""
        self.store(self.runs(bus, len(data), write=True), data)

    def read16(self, bus: int) -> int:
        """A 16-bit field."""
        return int.from_bytes(self.read(bus, 2), "little")
