"""PCI functions of this machine, as sysfs shows them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from guest.errors import UsageError, VhostPciError
from guest.named_tuple import NamedTuple

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
    found = (_read(path) for path in paths if _has_ids(path, vendor, device))
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


def _has_ids(path: Path, vendor: int, device: int) -> bool:
    """Whether it has these; False if the function has gone meanwhile. Few have the device's."""
    try:
        return _number(path, "device") == device and _number(path, "vendor") == vendor
    except OSError:
        return False


def _read(path: Path) -> PciFunction | None:
    """From sysfs; None if the function has gone meanwhile."""
    try:
        place = os.path.realpath(path, strict=True)
        group = _link_name(place, "iommu_group")
        node = _number(place, "numa_node", absent=-1)
        return PciFunction(
            address=os.path.basename(place),  # noqa: PTH119 - all of this at each start, many times
            vendor=_number(place, "vendor"),
            device=_number(place, "device"),
            class_code=_number(place, "class"),
            driver=_link_name(place, "driver"),
            iommu_group=None if group is None else int(group),
            numa_node=None if node < 0 else node,
            sys_path=place,
        )
    except OSError:
        return None


def _number(place: str | Path, name: str, absent: int | None = None) -> int:
    """An attribute that is one: decimal, or with 0x."""
    try:
        with open(f"{place}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - as above
            return int(file.read(), 0)
    except FileNotFoundError:
        if absent is None:
            raise
        return absent


def _link_name(place: str, name: str) -> str | None:
    """The last part of where a link leads; None where there is no link."""
    try:
        return os.readlink(f"{place}/{name}").rpartition("/")[2]  # noqa: PTH115 - as above
    except FileNotFoundError:
        return None
