"""The control queue (5.1.6.5): one command at a time, waited for."""

from __future__ import annotations

import ctypes
import enum
import struct
import time
from typing import TYPE_CHECKING

from guest.errors import VhostPciError

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.virtio_net.queue import Queue

DATA_BYTES = 64  # of a command and its answer
_ANSWER_AT = 63
_ANSWER_S = 5.0
_PAUSE_S = 0.0005
_NEXT, _WRITE = 1, 2
_AVAIL, _USED = 1 << 7, 1 << 15
_NO_INTERRUPT = 1  # 2.7.6, 2.8.14
_OK = 0
_UNANSWERED = 0xFF


class Command(enum.Enum):
    """(class, command)."""

    PROMISCUOUS = (0, 0)
    ALL_MULTICAST = (0, 1)
    SET_ADDRESS = (1, 1)
    SET_QUEUE_PAIRS = (4, 0)


class ControlQueue:
    """A control queue of a started device. Each command is a chain of two descriptors.

    Thread rule: one thread at a time.

    Args:
        name: The device's, for messages.
        queue: The queue, zeroed: 2 descriptors or more, and DATA_BYTES of buffers.
        notify: Notifies the device of the queue.
        order: Orders memory accesses before and after it, as the device sees them.
    """

    def __init__(
        self,
        name: str,
        queue: Queue,
        notify: Callable[[], None],
        order: Callable[[], None],
    ) -> None:
        self._name = name
        self._areas = queue.areas
        self._data = queue.buffers
        self._notify = notify
        self._order = order
        self._sent = 0  # commands

    def request(self, command: Command, data: bytes) -> bool:
        """Whether the device obeys.

        Raises:
            VhostPciError: It does not answer, or not as it may. The device has to be reset.
        """
        words = bytes(command.value) + data
        if len(words) > _ANSWER_AT:
            raise AssertionError("a command of that length was not foreseen")
        _poke(self._data, words.ljust(_ANSWER_AT, b"\0") + bytes([_UNANSWERED]))
        if self._areas.packed:
            self._give_packed(len(words))
        else:
            self._give_split(len(words))
        self._order()
        self._notify()
        self._wait()
        self._order()
        self._sent += 1
        return _peek(self._data + _ANSWER_AT, 1)[0] == _OK

    def _chain(self, length: int) -> list[tuple[int, int, int, int]]:
        """(address, I/O address, length, flags) of the next two descriptors and what they name."""
        iova = self._data + self._areas.iova_offset
        slot = 2 * self._sent % self._areas.size
        at = self._areas.descriptor + 16 * slot
        return [(at, iova, length, _NEXT), (at + 16, iova + _ANSWER_AT, 1, _WRITE)]

    def _give_split(self, length: int) -> None:
        """2.7.13."""
        areas = self._areas
        head = 2 * self._sent % areas.size
        for at, iova, size, flags in self._chain(length):
            _poke(at, struct.pack("<QIHH", iova, size, flags, head + 1 if flags & _NEXT else 0))
        _poke(areas.driver + 4 + 2 * (self._sent % areas.size), struct.pack("<H", head))
        self._order()
        _poke(areas.driver, struct.pack("<HH", _NO_INTERRUPT, (self._sent + 1) % (1 << 16)))

    def _give_packed(self, length: int) -> None:
        """2.8.21: the first descriptor's flags are written last."""
        _poke(self._areas.driver, struct.pack("<HH", 0, _NO_INTERRUPT))
        mine = _AVAIL if self._even() else _USED
        (first, *_, first_flags), (_, *_, second_flags) = chain = self._chain(length)
        for at, iova, size, _ in chain:
            _poke(at, struct.pack("<QIH", iova, size, 2 * self._sent % self._areas.size))
        _poke(first + 16 + 14, struct.pack("<H", second_flags | mine))
        self._order()
        _poke(first + 14, struct.pack("<H", first_flags | mine))

    def _even(self) -> bool:
        """Whether the ring has been gone round an even number of times."""
        return 2 * self._sent // self._areas.size % 2 == 0

    def _wait(self) -> None:
        deadline = time.monotonic() + _ANSWER_S
        while not self._answered():
            if time.monotonic() > deadline:
                raise VhostPciError("use", self._name, "its control queue does not answer")
            time.sleep(_PAUSE_S)

    def _answered(self) -> bool:
        areas = self._areas
        if areas.packed:
            at = areas.descriptor + 16 * (2 * self._sent % areas.size) + 14
            (flags,) = struct.unpack("<H", _peek(at, 2))
            return bool(flags & (_AVAIL | _USED) == (_AVAIL | _USED if self._even() else 0))
        (used,) = struct.unpack("<H", _peek(areas.device + 2, 2))
        before, after = (self._sent % (1 << 16), (self._sent + 1) % (1 << 16))
        if used not in (before, after):
            cause = f"its control queue used {used} commands of {after}"
            raise VhostPciError("use", self._name, cause)
        return bool(used == after)


def _poke(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


def _peek(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)
