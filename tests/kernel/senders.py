"""VM1's driver by the rules of 2.7 and 2.8: it kicks only when asked to, and awaits calls."""

from __future__ import annotations

import abc
import os
import select
import struct
import threading
import time
from typing import TYPE_CHECKING

from tests.kernel.packed_driver import WRAP
from tests.kernel.packed_rig import AT, ENABLE
from tests.kernel.rig import AVAIL, BIG, USED

if TYPE_CHECKING:
    from tests.kernel.packed_rig import PackedRig
    from tests.kernel.rig import Rig

DEADLINE_S = 60.0
SIZE = 8
_BUFFER = 12 + 60


def _fence() -> None:
    """What CPython's lock operations are, on the machines there are."""
    threading.Lock().acquire()


class Sender(abc.ABC):
    """Sends chains of one buffer; or has them filled, on a ring that it receives on.

    Attributes:
        kicks: How many of them were wanted.
        sent: Chains so far.
    """

    def __init__(self, rig: Rig, kick_fd: int) -> None:
        self._call_fd = rig.call_fd
        self._kick_fd = kick_fd
        self._event_idx = rig.layout.event_idx
        self.kicks = 0
        self.sent = 0

    @abc.abstractmethod
    def _post(self, count: int) -> None:
        """Make so many chains available."""

    @abc.abstractmethod
    def _wanted(self, count: int) -> bool:
        """Whether the device asked to be kicked for the last count chains."""

    @abc.abstractmethod
    def _all_used(self) -> bool:
        """Whether the device has used all."""

    @abc.abstractmethod
    def _ask_for_call(self) -> None:
        """To be called once all is used; with EVENT_IDX only."""

    def send(self, count: int) -> None:
        """Make count more chains available, and kick if that is asked for (2.7.10.2, 2.8.21.2)."""
        self.sent += count
        self._post(count)
        _fence()
        if self._wanted(count):
            os.eventfd_write(self._kick_fd, 1)
            self.kicks += 1

    def wait_used(self) -> None:
        """Until the device has used all (2.7.14, 2.8.22)."""
        deadline = time.monotonic() + DEADLINE_S
        while not self._all_used():
            assert time.monotonic() < deadline, f"a wake-up was lost at {self.sent}"
            if self._event_idx:
                self._ask_for_call()
                _fence()
            if self._all_used():
                return
            assert select.select([self._call_fd], [], [], DEADLINE_S)[0], "a call was lost"
            os.eventfd_read(self._call_fd)


class SplitSender(Sender):
    """On a split ring of SIZE."""

    def __init__(self, rig: Rig, kick_fd: int, direction: int = 0) -> None:
        super().__init__(rig, kick_fd)
        self._rig = rig
        for head in range(SIZE):
            rig.desc(head, BIG + 0x1000 * head, _BUFFER, direction)

    def _post(self, count: int) -> None:
        before = self._rig.index % 65536
        self._rig.make_available(*((before + i) % SIZE for i in range(count)))

    def _wanted(self, count: int) -> bool:
        if not self._event_idx:
            return not struct.unpack("<H", self._rig.peek(USED, 2))[0] & 1
        event = struct.unpack("<H", self._rig.peek(USED + 4 + 8 * SIZE, 2))[0]
        return bool((self._rig.index - event - 1) % 65536 < count)

    def _all_used(self) -> bool:
        return self._rig.used_index() == self._rig.index % 65536

    def _ask_for_call(self) -> None:
        used_event = (self._rig.index - 1) % 65536
        self._rig.poke(AVAIL + 4 + 2 * SIZE, struct.pack("<H", used_event))


class PackedSender(Sender):
    """On a packed ring of SIZE. With EVENT_IDX it is called for the last chain alone."""

    def __init__(self, rig: PackedRig, kick_fd: int, direction: int = 0) -> None:
        super().__init__(rig, kick_fd)
        self._rig, self._direction = rig, direction
        self._last = 0
        rig.set_event(AT if self._event_idx else ENABLE)

    def _post(self, count: int) -> None:
        for _ in range(count):
            self._last = self._rig.driver.position
            at = self._last & ~WRAP
            self._rig.driver.post(at, [(BIG + 0x1000 * at, _BUFFER)], self._direction)
        self._rig.driver.show()

    def _wanted(self, count: int) -> bool:
        """2.8.21.2: the flags last, as the device may be writing."""
        event, flags = struct.unpack("<HH", self._rig.peek(USED, 4))
        if flags != AT:
            return bool(flags == ENABLE)
        passed = (self._place(self._last) - self._place(event)) % (2 * SIZE)
        return passed < count

    @staticmethod
    def _place(position: int) -> int:
        return (position & ~WRAP) + (0 if position & WRAP else SIZE)

    def _all_used(self) -> bool:
        self._rig.driver.reap()
        return not self._rig.driver.posted

    def _ask_for_call(self) -> None:
        self._rig.poke(AVAIL, struct.pack("<H", self._last))
