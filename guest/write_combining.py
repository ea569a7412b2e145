"""BARs mapped write-combining: sysfs's resourceN_wc (Linux, Documentation/PCI/sysfs-pci.rst).

VFIO maps a BAR uncached, and has no other way. The kernel offers resourceN_wc for prefetchable
BARs, to root, whoever the function's driver is.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from guest.errors import VhostPciError, errno_text
from guest.mapping import Mapping
from guest.syscalls import KERNEL

if TYPE_CHECKING:
    from guest.discovery import PciFunction
    from guest.function import Area
    from guest.syscalls import Syscalls

_REMEDY = "or use the mapping by VFIO"
_OPEN_REFUSALS = {
    errno.ENOENT: (
        "the kernel offers no write-combining mapping of it",
        f"that takes a prefetchable BAR and a processor with PAT; {_REMEDY}",
    ),
    errno.EACCES: ("that takes root", f"run as root, {_REMEDY}"),
}
_MAP_REFUSALS = {
    errno.EPERM: ("the kernel is locked down", f"turn secure boot's lockdown off, {_REMEDY}"),
    # drivers/pci/pci-sysfs.c: under CONFIG_IO_STRICT_DEVMEM what a driver has claimed is its own.
    errno.EINVAL: (
        "the kernel keeps it for the function's driver",
        f"add iomem=relaxed to the kernel's command line, {_REMEDY}",
    ),
}


def combining_bars(pci: PciFunction) -> frozenset[int]:
    """The BARs of which the kernel offers a write-combining mapping."""
    return frozenset(bar for bar in range(6) if _path(pci, bar).exists())


def map_combining(
    pci: PciFunction, bar: int, area: Area, *, writable: bool, syscalls: Syscalls = KERNEL
) -> Mapping:
    """Map an area of a BAR. The caller owns the Mapping; the function must have memory decode on.

    Under CONFIG_IO_STRICT_DEVMEM only while VFIO maps nothing of the same BAR, nor has since it was
    opened; and a mapping by VFIO takes this one away (SIGBUS).

    Raises:
        VhostPciError: The kernel does not offer or allow it; the remedy says what to do.
    """
    name = f"BAR {bar} of {pci.address} write-combining"
    try:
        fd = syscalls.open(str(_path(pci, bar)))
    except OSError as error:
        raise _refusal(name, error, _OPEN_REFUSALS) from error
    try:
        return Mapping(fd, area.size, area.offset, writable=writable, name=name, combining=True)
    except VhostPciError as error:
        if isinstance(error.__cause__, OSError):
            raise _refusal(name, error.__cause__, _MAP_REFUSALS) from error
        raise
    finally:
        syscalls.close(fd)


def _refusal(name: str, error: OSError, reasons: dict[int, tuple[str, str]]) -> VhostPciError:
    cause, remedy = reasons.get(error.errno or 0, (errno_text(error), ""))
    return VhostPciError("map", name, cause, remedy)


def _path(pci: PciFunction, bar: int) -> Path:
    return Path(pci.sys_path) / f"resource{bar}_wc"
