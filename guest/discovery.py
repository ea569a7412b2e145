"""PCI functions of this machine, as sysfs shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from guest.errors import UsageError, VhostPciError

SYSFS = Path("/sys")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


class PciFunction(NamedTuple):
    """A PCI function at the moment of asking.

    class_code has 24 bits. driver is None where none is bound, iommu_group where there is no
    IOMMU, numa_node where the machine does not tell.
    """

    address: str
    vendor: int
    device: int
    class_code: int
    driver: str | None
    iommu_group: int | None
    numa_node: int | None
    sys_path: str


def is_pci_address(text: str) -> bool:
    """Whether text is a full PCI address as sysfs writes it: `0000:01:00.0`."""
    return _ADDRESS.fullmatch(text) is not None


def full_address(text: str) -> str:
    """A PCI address as sysfs writes it; one without a domain is of domain 0000.

    Raises:
        UsageError: This is no PCI address.
    """
    for address in (text.lower(), f"0000:{text.lower()}"):
        if is_pci_address(address):
            return address
    raise UsageError("find", text, "this is no PCI address", "give it in full, like 0000:01:00.0")


def pci_functions(vendor: int, device: int) -> list[PciFunction]:
    """All functions with these ids, by address; empty on a machine without PCI."""
    devices = SYSFS / "bus/pci/devices"
    paths = sorted(devices.iterdir()) if devices.exists() else ()
    found = (_read(path) for path in paths if _ids(path) == (vendor, device))
    return [each for each in found if each is not None]


def pci_function(address: str, root: Path = SYSFS) -> PciFunction:
    """The function at a full PCI address, below root where sysfs is mounted.

    Raises:
        UsageError: This is no PCI address.
        VhostPciError: No function is there.
    """
    if not is_pci_address(address):
        raise UsageError(
            "find", address, "this is no PCI address", "give it in full, like 0000:01:00.0"
        )
    devices = root / "bus/pci/devices"
    if not devices.exists():
        raise VhostPciError("find", address, "this machine has no PCI bus")
    found = _read(devices / address)
    if found is None:
        raise VhostPciError("find", address, "no such PCI function", "look at lspci -D")
    return found


def group_members(function: PciFunction) -> list[PciFunction]:
    """All functions of its IOMMU group, itself included, by address; empty without a group."""
    devices = Path(function.sys_path) / "iommu_group" / "devices"
    try:
        found = [_read(path) for path in devices.iterdir()]
    except OSError:
        return []
    return sorted((each for each in found if each is not None), key=lambda each: each.address)


def _ids(path: Path) -> tuple[int, int] | None:
    """Vendor and device; None if the function has gone meanwhile."""
    try:
        return int((path / "vendor").read_text(), 16), int((path / "device").read_text(), 16)
    except OSError:
        return None


def _read(path: Path) -> PciFunction | None:
    """From sysfs; None if the function has gone meanwhile."""
    try:
        path = path.resolve(strict=True)
        group = _link_name(path / "iommu_group")
        node = int((path / "numa_node").read_text()) if (path / "numa_node").exists() else -1
        return PciFunction(
            address=path.name,
            vendor=int((path / "vendor").read_text(), 16),
            device=int((path / "device").read_text(), 16),
            class_code=int((path / "class").read_text(), 16),
            driver=_link_name(path / "driver"),
            iommu_group=None if group is None else int(group),
            numa_node=None if node < 0 else node,
            sys_path=str(path),
        )
    except OSError:
        return None


def _link_name(path: Path) -> str | None:
    return path.resolve().name if path.is_symlink() else None
