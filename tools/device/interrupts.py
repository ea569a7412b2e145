"""The function's interrupts: which eventfd a vector signals (vfio-user DEVICE_SET_IRQS)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from driver.state_area import MSI_VECTORS
from guest.function import Irq
from tools.device.eventfd import is_eventfd, signal_eventfd

if TYPE_CHECKING:
    from collections.abc import Sequence

VECTORS: dict[int, int] = {Irq.INTX: 0, Irq.MSI: MSI_VECTORS, Irq.MSIX: 0, Irq.ERR: 1, Irq.REQ: 0}


class Interrupts:
    """Owns the eventfds that the client assigned. Thread rule: one thread."""

    def __init__(self) -> None:
        self._eventfds: dict[tuple[int, int], int] = {}

    def assign(self, index: int, start: int, eventfds: Sequence[int]) -> None:
        """Signal eventfds[i] for vector start + i from now on; takes the descriptors over.

        The caller has checked the range. ValueError, with nothing changed and nothing taken over,
        if one is no eventfd.
        """
        if not all(is_eventfd(fd) for fd in eventfds):
            raise ValueError("a descriptor is no eventfd")
        self.release(index, start, len(eventfds))
        for vector, fd in enumerate(eventfds, start):
            self._eventfds[index, vector] = fd

    def release(self, index: int, start: int = 0, count: int = MSI_VECTORS) -> None:
        """Close the eventfds of some vectors; those without one are passed over."""
        for vector in range(start, start + count):
            fd = self._eventfds.pop((index, vector), -1)
            if fd >= 0:
                os.close(fd)

    def signal(self, index: int, vector: int) -> bool:
        """Interrupt the driver; False if nobody listens to that vector."""
        fd = self._eventfds.get((index, vector), -1)
        if fd >= 0:
            signal_eventfd(fd)
        return fd >= 0

    def close(self) -> None:
        """Close all."""
        for index in VECTORS:
            self.release(index)
