"""`Function`: what a driver needs of a PCI function, whichever way it is reached.

Implementations: `guest.vfio.VfioFunction` (the kernel), `guest.vfio_user.VfioUserFunction` (a
socket).
Indices, flags and capabilities are VFIO's (linux/vfio.h).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol, Self

from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from guest.mapping import Mapping


class Region(enum.IntEnum):
    """VFIO region indices of a PCI function (linux/vfio.h VFIO_PCI_*_REGION_INDEX)."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class Irq(enum.IntEnum):
    """VFIO interrupt indices of a PCI function (linux/vfio.h VFIO_PCI_*_IRQ_INDEX)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class Area(NamedTuple):
    """A mappable part of a region: both in bytes, page aligned, relative to the region."""

    offset: int
    size: int


class RegionInfo(NamedTuple):
    """One region as it is now. A size of 0 means it does not exist; no areas means trapped only."""

    index: int  # type: ignore[assignment] # and not tuple.index
    size: int
    readable: bool
    writable: bool
    areas: tuple[Area, ...]


class Identity(NamedTuple):
    """PCI identity, as in configuration space; class_code is 24 bits."""

    vendor: int
    device: int
    class_code: int
    revision: int
    subsystem_vendor: int
    subsystem_device: int


class Doorbell(NamedTuple):
    """How to ring one register: 8 bytes to an eventfd (offset None), or 4 bytes at offset of fd.

    The Function owns fd, until its next `doorbells()` call or its close.
    """

    fd: int
    offset: int | None


class Function(Protocol):
    """An open PCI function. Control path only: every call may take microseconds to milliseconds.

    Thread rule: one thread at a time. Errors: VhostPciError; DeviceGoneError once it is lost.
    """

    @property
    def name(self) -> str:
        """For messages: the PCI address, or `vfio-user:PATH`."""
        ...

    def fileno(self) -> int:
        """A descriptor to poll: readable (POLLIN or POLLHUP) when the function went away."""
        ...

    def identity(self) -> Identity:
        """Read from configuration space."""
        ...

    def region_count(self) -> int:
        """How many region indices exist (9 or more)."""
        ...

    def region(self, index: int) -> RegionInfo:
        """Ask for the region anew; windows may change between calls (docs/device.md 3)."""
        ...

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Read size bytes of a region by trapped access."""
        ...

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Write a region by trapped access; done when it returns."""
        ...

    def map_area(self, index: int, area: Area, *, writable: bool) -> Mapping:
        """Map one area, shared. The caller owns the Mapping; it stays valid after close."""
        ...

    def doorbells(self, index: int, offsets: Sequence[int]) -> dict[int, Doorbell]:
        """How to ring the 32-bit registers at these offsets of a region, for use outside Python."""
        ...

    def events(self, index: int, offsets: Sequence[int]) -> dict[int, int]:
        """Eventfds that are written as the events at these offsets of a region happen.

        Without the offsets that this way to the function has none for: interrupts tell it then.
        The Function owns them, until its next `events()` call or its close. Others have the same
        open files, so one may turn out to block: wait edge-triggered, or read with RWF_NOWAIT.
        """
        ...

    def irq_count(self, index: int) -> int:
        """Vectors of an interrupt index, 0 for none."""
        ...

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        """Signal the i-th eventfd for vector i; an empty sequence disables the index."""
        ...

    def reset(self) -> None:
        """Function-level reset."""
        ...

    def dma_map(self, address: int, size: int, iova: int, *, writable: bool) -> None:
        """Let the function reach size bytes of this process's memory at address, by iova."""
        ...

    def dma_unmap(self, iova: int, size: int) -> None:
        """Take back exactly one earlier dma_map."""
        ...

    def close(self) -> None:
        """Let go, in reverse order of opening. Twice is fine."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
