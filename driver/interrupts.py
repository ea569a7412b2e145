"""What a VF's interrupts are seen by: an eventfd for each MSI-X vector."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text
from guest.function import Irq

if TYPE_CHECKING:
    from guest.function import Function

_log = logging.getLogger("pmd")


class Interrupts(Closing):
    """The first vectors of a function, or none where it has fewer: its queues are polled then.

    Thread rule: as of the function.

    Args:
        function: Open; outlives this. Nothing of it interrupts yet.
        count: How many vectors are wanted.
    """

    def __init__(self, function: Function, count: int) -> None:
        self._function = function
        self._fds: list[int] = []
        try:
            if function.irq_count(Irq.MSIX) < count:
                return
            for _ in range(count):
                self._fds.append(_eventfd())
            function.set_irqs(Irq.MSIX, self._fds)
        except VhostPciError as error:
            self._forget()
            _log.warning("%s; its queues are polled", error)

    def __len__(self) -> int:
        """How many vectors there are."""
        return len(self._fds)

    def fd(self, vector: int) -> int:
        """Readable after an interrupt of this vector; -1: it does not exist. Owned by this."""
        return self._fds[vector] if vector < len(self._fds) else -1

    def _forget(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def close(self) -> None:
        """No interrupts any more; the device was reset. Twice is fine."""
        if self._fds:
            with contextlib.suppress(VhostPciError):
                self._function.set_irqs(Irq.MSIX, [])
        self._forget()


def _eventfd() -> int:
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise VhostPciError("create", "an eventfd", errno_text(error)) from error
