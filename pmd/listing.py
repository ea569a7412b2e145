"""`pmd list`: the vhost-pci functions of this machine, and what keeps one from being used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from driver.state_area import DEVICE_ID, VENDOR_ID
from guest.discovery import pci_functions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest.discovery import PciFunction


def found() -> list[dict[str, Any]]:
    """The functions as JSON objects, by address; `obstacle` is empty where one can be used.

    Raises:
        VhostPciError: They cannot be listed.
    """
    return [describe(function) for function in pci_functions(VENDOR_ID, DEVICE_ID)]


def describe(function: PciFunction) -> dict[str, Any]:
    """One function as a JSON object."""
    return {
        "address": function.address,
        "driver": function.driver,
        "iommu_group": function.iommu_group,
        "numa_node": function.numa_node,
        "obstacle": _obstacle(function),
    }


def _obstacle(function: PciFunction) -> str:
    """The first thing that keeps the function from being attached, and what to do about it."""
    if function.iommu_group is None:
        return "no IOMMU group: give this machine an IOMMU (intel_iommu=on, or a virtual one)"
    if "vfio" not in (function.driver or ""):
        state = f"bound to {function.driver}" if function.driver else "not bound"
        return f"{state}: driverctl set-override {function.address} vfio-pci"
    if not Path(f"/dev/vfio/{function.iommu_group}").exists():
        return f"no /dev/vfio/{function.iommu_group}: modprobe vfio-pci"
    return ""


def table(functions: Sequence[dict[str, Any]]) -> Table:
    """The functions as a table."""
    shown = Table("address", "driver", "IOMMU group", "usable")
    for function in functions:
        group = function["iommu_group"]
        shown.add_row(
            function["address"],
            function["driver"] or "-",
            "-" if group is None else str(group),
            function["obstacle"] or "yes",
        )
    return shown
