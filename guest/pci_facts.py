"""A PCI function's BARs and configuration space, as sysfs shows them to who has not opened it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from guest.named_tuple import NamedTuple
from guest.pci_config import COMMAND, COMMAND_MEMORY, CONFIG_SIZE, HEADER_SIZE, capabilities

if TYPE_CHECKING:
    from guest.discovery import PciFunction

# What is wrong with a BAR that is implemented and has no size, and what to do about it.
NO_ROOM = "no addresses were left for it when it was plugged"
GIVE_ROOM = "give the root port room: pcie-root-port,pref64-reserve=64G (more than VM1's memory)"
# linux/ioport.h
_IORESOURCE_PREFETCH = 0x2000
_IORESOURCE_UNSET = 0x20000000
# Type 0 header (PCI Local Bus Specification 3.0, sections 6.1, 6.2.5.1)
_VENDOR_GONE = 0xFFFF
_BAR0 = 0x10
_CAPABILITY_MSI = 0x05


class Bar(NamedTuple):
    """One BAR. A size of 0 with `implemented` means that it was given no addresses."""

    size: int
    prefetchable: bool
    implemented: bool


class PciFacts(NamedTuple):
    """One function at the moment of asking.

    Attributes:
        present: False where configuration space reads all ones: nothing else is true then.
        memory_enabled: Its BARs answer (the command register); off until a driver opens it.
        msi: It can signal MSI; None where only root may see that.
        bars: BAR 0 to 5.
    """

    present: bool
    memory_enabled: bool
    msi: bool | None
    bars: tuple[Bar, ...]


def read_pci(pci: PciFunction) -> PciFacts | None:
    """The facts; None where the function has gone meanwhile."""
    path = Path(pci.sys_path)
    try:
        with (path / "config").open("rb", buffering=0) as file:
            # Where the function is emulated each word is a trap, and of 4 KiB nobody looks at more.
            config = file.read(CONFIG_SIZE)
        resources = [
            tuple(int(word, 16) for word in line.split())
            for line in (path / "resource").read_text(encoding="ascii").splitlines()[:6]
        ]
    except OSError:
        return None
    if len(config) < HEADER_SIZE or len(resources) < 6:
        return None
    vendor = struct.unpack_from("<H", config, 0)[0]
    command = struct.unpack_from("<H", config, COMMAND)[0]
    registers = struct.unpack_from("<6I", config, _BAR0)
    return PciFacts(
        present=vendor != _VENDOR_GONE,
        memory_enabled=bool(command & COMMAND_MEMORY),
        msi=_has_msi(config) if len(config) > HEADER_SIZE else None,
        bars=tuple(
            Bar(_size(begin, end, flags), bool(flags & _IORESOURCE_PREFETCH), register != 0)
            for (begin, end, flags), register in zip(resources, registers, strict=True)
        ),
    )


def _has_msi(config: bytes) -> bool:
    return any(identifier == _CAPABILITY_MSI for identifier, _ in capabilities(config))


def _size(begin: int, end: int, flags: int) -> int:
    return end - begin + 1 if end > begin and not flags & _IORESOURCE_UNSET else 0
