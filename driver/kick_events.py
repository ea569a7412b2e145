"""What a driver that sleeps waits for: VM1's kicks, a new generation (docs/device.md 4, 6)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from driver.state_area import MSI_VECTORS, Register
from guest.errors import VhostPciError, errno_text
from guest.function import Irq, Region

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from guest.function import Function

_RING_VECTORS = MSI_VECTORS - 1


class KickEvents:
    """The eventfds of the rings given last.

    Owns those of interrupts; the function owns those it gives itself. Thread rule: `VhostPci`'s.

    Args:
        function: Open; outlives this.
        write: Writes a register of BAR 0.
    """

    def __init__(self, function: Function, write: Callable[[int, int], None]) -> None:
        self._function = function
        self._write = write
        self._vectors: list[int] = []
        self._armed: set[int] = set()

    @property
    def change_fd(self) -> int:
        """Written at each new generation; -1 before the first `take`."""
        return self._vectors[0] if self._vectors else -1

    def take(self, rings: Iterable[int]) -> dict[int, int]:
        """See `VhostPci.kick_fds`."""
        wanted = sorted(set(rings))
        offsets = {Register.KICK + 4 * ring: ring for ring in wanted}
        events = self._function.events(Region.BAR0, list(offsets))
        found = {offsets[offset]: fd for offset, fd in events.items()}
        by_interrupt = [ring for ring in wanted if ring not in found]
        self._assign(1 + max((ring % _RING_VECTORS + 1 for ring in by_interrupt), default=0))
        self._arm(set(by_interrupt))
        for ring in by_interrupt:
            found[ring] = self._vectors[1 + ring % _RING_VECTORS]
        return found

    def _assign(self, count: int) -> None:
        """Have at least so many vectors signalled; those there are stay."""
        if count <= len(self._vectors):
            return
        available = self._function.irq_count(Irq.MSI)
        if count > available:
            cause = f"it has {available} MSI vectors, and {count} are needed"
            raise VhostPciError("wait for kicks of", self._function.name, cause, "poll instead")
        with contextlib.ExitStack() as undo:
            more = []
            for _ in range(count - len(self._vectors)):
                more.append(_eventfd())
                undo.callback(os.close, more[-1])
            self._function.set_irqs(Irq.MSI, self._vectors + more)
            undo.pop_all()
        self._vectors += more

    def _arm(self, rings: set[int]) -> None:
        """KICK_ARM for these rings and no others."""
        for ring in sorted(self._armed - rings):
            self._write(Register.KICK_ARM, ring)
        for ring in sorted(rings - self._armed):
            self._write(Register.KICK_ARM, 1 << 16 | ring)
        self._armed = rings

    def close(self) -> None:
        """Disarm and let the vectors go, as well as a lost function lets itself be. Twice is fine.

        The function's own events stay open until it closes.
        """
        with contextlib.suppress(VhostPciError):
            self._arm(set())
            if self._vectors:
                self._function.set_irqs(Irq.MSI, [])
        while self._vectors:
            os.close(self._vectors.pop())


def _eventfd() -> int:
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise VhostPciError("create", "an eventfd", errno_text(error)) from error
