"""What uses a PCI function now: why it should not be taken from its driver."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from guest.syscalls import KERNEL
from guest.vfio_container import GROUP_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest.discovery import PciFunction
    from guest.syscalls import Syscalls

_MOUNTS = Path("/proc/self/mountinfo")
_IPV6_ADDRESSES = Path("/proc/net/if_inet6")
_IFF_UP = 0x1  # linux/if.h
_SIOCGIFADDR = 0x8915  # linux/sockios.h
_IFREQ = struct.Struct("16s24x")  # linux/if.h: a name, and room for an address


def uses(function: PciFunction, syscalls: Syscalls = KERNEL) -> list[str]:
    """One clause for each use, empty where nothing uses it: "eth0 is up", "sda is mounted" ...

    An interface in another network namespace is not seen.
    """
    path = Path(function.sys_path)
    found = [*_networks(path), *_disks(path), *_virtual_functions(path)]
    if function.iommu_group is not None and "vfio" in (function.driver or ""):
        found += _holders(function.iommu_group, syscalls)
    return found


def _below(path: Path, kind: str) -> Iterator[Path]:
    """The class devices of a kind (`net`, `block`) of a function or of what hangs below it."""
    for folder, names, _ in os.walk(path):
        if Path(folder).name == kind:
            yield from (Path(folder) / name for name in sorted(names))
            names.clear()


def _networks(path: Path) -> Iterator[str]:
    for interface in _below(path, "net"):
        name = interface.name
        try:
            up = int((interface / "flags").read_text(), 0) & _IFF_UP
        except OSError:
            continue  # it went away meanwhile
        if up:
            yield f"network interface {name} is up"
        elif (interface / "master").exists():
            yield f"network interface {name} belongs to {(interface / 'master').resolve().name}"
        elif _has_address(name):
            yield f"network interface {name} has an address"


def _has_address(name: str) -> bool:
    """Whether an interface has an IPv4 or IPv6 address; routes need it to be up."""
    import socket  # noqa: PLC0415 - see guest/hotplug.py

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            fcntl.ioctl(asked, _SIOCGIFADDR, _IFREQ.pack(os.fsencode(name)))
        except OSError:
            pass  # none, or no such interface
        else:
            return True
    lines = _IPV6_ADDRESSES.read_text().splitlines() if _IPV6_ADDRESSES.exists() else []
    return any(line.split()[-1] == name for line in lines)


def _disks(path: Path) -> Iterator[str]:
    mounted = {line.split()[2] for line in _MOUNTS.read_text().splitlines()}
    for disk in _below(path, "block"):
        if any((disk / "holders").glob("*")):
            yield f"disk {disk.name} is part of another device"
        for number in (disk / "dev", *sorted(disk.glob("*/dev"))):
            if number.exists() and number.read_text().strip() in mounted:
                yield f"disk {number.parent.name} is mounted"


def _virtual_functions(path: Path) -> Iterator[str]:
    count = path / "sriov_numvfs"
    if count.exists() and int(count.read_text()):
        yield f"it has {int(count.read_text())} virtual functions"


def _holders(group: int, syscalls: Syscalls) -> Iterator[str]:
    """A VFIO group can be open once: opening it tells whether another process holds it."""
    try:
        syscalls.close(syscalls.open(GROUP_PATH.format(group)))
    except OSError as error:
        if error.errno == errno.EBUSY:
            yield f"another process holds its IOMMU group {group}"
