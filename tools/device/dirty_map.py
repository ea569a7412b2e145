"""What a driver marks in the dirty map, brought to VM1's log (docs/device.md 5.7).

A driver in a VM sees no other memory than the windows it was plugged with, and VM1's log exists
only while VM1 migrates: so the driver marks what it writes in memory of the device, and the device
takes the marks from there. A mark is first cleared and then brought to the log: one that is set
again meanwhile is taken the next time, and what it was of had been written before the log shows it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import numpy as np

from driver.state_area import DIRTY_SHIFT_MIN, DriverStatus, Permission
from tools.device.ring_layout import layout_of
from tools.device.state_writer import DIRTY_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from tools.device.dirty_log import Log
    from tools.device.driver_watch import DriverWatch
    from tools.device.state_writer import StateWriter
    from tools.device.vm1_state import MemoryRegion, Vm1State

log = logging.getLogger(__name__)

PERIOD_S = 0.1


class DirtyMap:
    """Takes marks while VM1's VMM wants to know. Thread rule: the running event loop's.

    shift: of what a mark is of; 0 while nobody asks.

    Args:
        writer: Has the memory.
        driver: Whether the driver marks, and has marked all that it wrote.
    """

    def __init__(self, writer: StateWriter, driver: DriverWatch) -> None:
        self.shift = 0
        self._writer = writer
        self._driver = driver
        self._vm1: Vm1State | None = None
        self._all = False  # marks of before are of other addresses
        self._following = False  # the driver may still mark as the state before had it
        self._timer: asyncio.TimerHandle | None = None
        self._marks_taken = 0
        self._times_all = 0

    def describe(self) -> dict[str, int]:
        """For the host's display; times_all: how often all memory was taken for written."""
        counted = {"marks_taken": self._marks_taken, "times_all": self._times_all}
        return {"shift": self.shift, **counted}

    def begin(self, state: Vm1State) -> None:
        """A state is about to be shown: choose what a mark is of."""
        # Marks are of bus addresses, the log of guest-physical ones.
        marked = state.logging and state.translations is None
        former, self.shift = self.shift, choose_shift(state.memory) if marked else 0
        if not former:
            self._driver.unmarked = False
        self._all |= bool(former and self.shift and former != self.shift)
        self._vm1 = state
        self._following = True

    def settle(self, before: Vm1State) -> None:
        """The driver has let go of the state before, or is lost: bring all of it to the log.

        What VM1 is answered after this shows in its log.
        """
        state = self._vm1
        self._following = False
        if state is None or not (before.logging or state.logging):
            return
        target = state.log or before.log
        active = self._driver.status == DriverStatus.ACTIVE
        self._all |= active and not self._driver.marks
        if target:
            shift = self.shift or choose_shift(before.memory)
            self._take(target, shift, before, state)
        self._set_timer()

    def _take(self, target: Log, shift: int, *states: Vm1State) -> None:
        """Bring the marks to the log; all memory, where a driver may have left some out."""
        self._all |= self._driver.unmarked
        marks = self._writer.take_marks()
        self._marks_taken += len(marks)
        self._times_all += self._all
        try:
            for state in states:
                _mark_rings(target, state)
                _mark_translations(target, state)
            if self._all:
                for region in (each for state in states for each in state.memory):
                    target.mark(region.bus, region.size)
            else:
                for first, count in runs(marks):
                    target.mark(first << shift, count << shift)
        except OSError as error:
            log.warning("VM1's log of changed memory cannot be written: %s", error)
        self._driver.unmarked = self._all = False

    def _set_timer(self) -> None:
        if self._timer is None and self._vm1 is not None and self._vm1.logging:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._look)

    def _look(self) -> None:
        """So that VM1's VMM sees in time what is to be sent again."""
        self._timer = None
        state = self._vm1
        if state is not None and state.logging and state.log and not self._following:
            self._take(state.log, self.shift, state)
        self._set_timer()

    def close(self) -> None:
        """Look no more. Twice is fine."""
        self._vm1 = None
        if self._timer:
            self._timer.cancel()
            self._timer = None


def choose_shift(memory: tuple[MemoryRegion, ...]) -> int:
    """What a mark has to be of, as a power of two, for the map to have one of every byte."""
    last = max((region.bus + region.size - 1 for region in memory), default=0)
    return max(DIRTY_SHIFT_MIN, last.bit_length() - (DIRTY_SIZE.bit_length() - 1))


def runs(marks: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """First and count of each run of ascending numbers without a gap."""
    if not len(marks):
        return
    breaks = np.flatnonzero(np.diff(marks) != 1) + 1
    starts = (0, *breaks.tolist())
    for start, end in zip(starts, (*starts[1:], len(marks)), strict=True):
        yield int(marks[start]), end - start


def _mark_rings(target: Log, state: Vm1State) -> None:
    """Mark what a driver writes of the rings that run, whether it did or not."""
    if state.translations is not None:
        return
    layout = layout_of(state.features)
    for ring in (each for each in state.rings if each.started):
        for bus, part in zip((ring.desc, ring.driver, ring.device), layout.parts, strict=True):
            if part.written:
                target.mark(bus, part.fixed + part.each * ring.size)
        if ring.log is not None:
            used = layout.parts[2]
            target.mark(ring.log, used.fixed + used.each * ring.size)


def _mark_translations(target: Log, state: Vm1State) -> None:
    """Mark all that a driver could have written by I/O virtual addresses, rings among it."""
    for each in state.translations or ():
        if each.permission & Permission.WRITE:
            target.mark(each.physical, each.size)
