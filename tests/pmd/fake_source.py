"""A device of memory behind a channel's source, with a VM1 that sends."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from driver.state_area import PAGE_SIZE, Register, Status
from guest.function import Area, Region
from tests.driver.fake_function import FakeFunction

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest.function import Function

DESC, AVAIL, USED, DATA = 0, PAGE_SIZE, 2 * PAGE_SIZE, 4 * PAGE_SIZE
WINDOW = 16 * PAGE_SIZE
STARTED_AND_ENABLED = 3
SIZE = 8


class Told(FakeFunction):
    """A function whose host does something at each generation that is acknowledged."""

    def __init__(self, told: Callable[[int], None]) -> None:
        super().__init__()
        self.gone_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._told = told

    def fileno(self) -> int:
        return self.gone_fd

    def write(self, index: int, offset: int, data: bytes) -> None:
        super().write(index, offset, data)
        if (index, offset) == (Region.BAR0, Register.ACK):
            self._told(int.from_bytes(data, "little"))

    def close(self) -> None:
        if self.gone_fd >= 0:
            os.close(self.gone_fd)
        self.gone_fd = -1
        super().close()


class FakeSource:
    """Opens one device of memory: the one given, owned from now on, or an ordinary one."""

    name = "fake"
    comes_back = False
    data = DATA  # where frames lie

    def __init__(self, function: FakeFunction | None = None) -> None:
        self.function = function or FakeFunction()
        self.function.add_window(2, Area(0, WINDOW))
        self.function.header["status"] = Status.CONNECTED | Status.RUNNING
        self.function.header["features"] = 1 << 32
        self.function.memory = [(0, WINDOW, 0, 2, 3)]
        self.start(2)

    def start(self, generation: int, *, started: bool = True) -> None:
        flags = STARTED_AND_ENABLED if started else 0
        self.function.rings = [(0,) * 7, (SIZE, flags, DESC, AVAIL, USED, 0, 0)]
        self.function.publish(generation)

    def open(self) -> Function:
        return self.function

    def settled(self) -> None:
        pass

    def close(self) -> None:
        self.function.close()

    # ---- VM1

    def _window(self, bus: int) -> int:
        """The file of the window where a bus address is; further ones are behind the first."""
        windows = [file for index, file in sorted(self.function.files.items()) if index]
        return windows[bus // WINDOW]

    def poke(self, bus: int, data: bytes) -> None:
        os.pwrite(self._window(bus), data, bus % WINDOW)

    def peek(self, bus: int, size: int) -> bytes:
        return os.pread(self._window(bus), size, bus % WINDOW)

    def send(self, number: int, size: int = 1000) -> None:
        """The number-th frame, filled with its number, is made available."""
        head = number % SIZE
        buffer = self.data + 4096 * head
        self.poke(buffer, bytes(12) + bytes([number % 256]) * size)
        self.poke(DESC + 16 * head, struct.pack("<QIHH", buffer, 12 + size, 0, 0))
        self.poke(AVAIL + 4 + 2 * head, struct.pack("<H", head))
        self.poke(AVAIL + 2, struct.pack("<H", number + 1))

    @property
    def used_index(self) -> int:
        """How many heads were returned."""
        return int(struct.unpack("<H", self.peek(USED + 2, 2))[0])

    def used(self) -> list[int]:
        """Heads returned, in order; of SIZE at most."""
        heads = range(self.used_index)
        return [struct.unpack("<I", self.peek(USED + 4 + 8 * i, 4))[0] for i in heads]
