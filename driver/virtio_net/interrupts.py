"""What a queue's interrupts are seen by: an eventfd for each receive queue, by MSI-X."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from driver.virtio_net.device import NO_VECTOR
from guest.closing import Closing
from guest.errors import VhostPciError, errno_text
from guest.function import Irq

if TYPE_CHECKING:
    from driver.virtio_net.device import Device
    from guest.function import Function

_log = logging.getLogger("pmd")


class Interrupts(Closing):
    """Vector n is queue pair n's; where the function has too few of them, no pair has one.

    Thread rule: as of the function.

    Args:
        function: Open; outlives this. No queue of it is enabled.
        pairs: How many queue pairs are going to be.

    Raises:
        VhostPciError: No eventfd is to be had.
    """

    def __init__(self, function: Function, pairs: int) -> None:
        self._function = function
        self._fds: list[int] = []
        try:
            if function.irq_count(Irq.MSIX) < pairs:
                return
            for _ in range(pairs):
                self._fds.append(_eventfd())
            function.set_irqs(Irq.MSIX, self._fds)
        except VhostPciError as error:
            self._forget()
            _log.warning("%s; its queues are polled", error)

    def vector(self, queue: int) -> int:
        """For `Device.enable_queue`."""
        receives = queue % 2 == 0 and queue // 2 < len(self._fds)  # the control queue: 2 * pairs
        return queue // 2 if receives else NO_VECTOR

    def fd(self, device: Device, pair: int) -> int:
        """Readable after an interrupt of its receive queue, which is enabled; -1: it has none."""
        if pair >= len(self._fds) or device.vector_of(2 * pair) != pair:
            return -1
        return self._fds[pair]

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
