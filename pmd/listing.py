"""`pmd list`: the vhost-pci functions of this machine, and what keeps one from being used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from driver.state_area import DEVICE_ID, VENDOR_ID
from guest.binding import is_vfio, obstructing
from guest.discovery import SYSFS, group_members, pci_functions
from guest.modules import VFIO_MODULES, loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest.discovery import PciFunction


def found() -> list[dict[str, Any]]:
    """The functions as JSON objects, by address; `obstacle` is empty where one can be used."""
    return [describe(function) for function in pci_functions(VENDOR_ID, DEVICE_ID)]


def describe(function: PciFunction, root: Path = SYSFS) -> dict[str, Any]:
    """One function as a JSON object; root is where sysfs is mounted."""
    members = group_members(function)
    return {
        "address": function.address,
        "driver": function.driver,
        "iommu_group": function.iommu_group,
        "members": [{"address": m.address, "driver": m.driver} for m in members],
        "numa_node": function.numa_node,
        "obstacle": _obstacle(function, members, root),
    }


def _obstacle(function: PciFunction, members: list[PciFunction], root: Path) -> str:
    """The first thing that keeps the function from being attached, and what to do about it."""
    group = function.iommu_group
    if group is None:
        return "no IOMMU group: give this machine an IOMMU (intel_iommu=on, or a virtual one)"
    others = [m for m in obstructing(members) if m.address != function.address]
    if others:
        names = ", ".join(f"{other.address} ({other.driver})" for other in others)
        return f"IOMMU group {group} is not viable: pmd bind {names}"
    if not is_vfio(function.driver):
        state = f"bound to {function.driver}" if function.driver else "not bound"
        return f"{state}: pmd run binds it, or: pmd bind {function.address}"
    if not Path(f"/dev/vfio/{group}").exists():
        return f"no /dev/vfio/{group}: modprobe vfio-pci"
    missing = [module for module in VFIO_MODULES if not loaded(module, root)]
    if missing:
        return f"not loaded: pmd run loads it, or: modprobe {missing[0]}"
    return ""


def table(functions: Sequence[dict[str, Any]]) -> str:
    """The functions as a table, without a trailing newline."""
    rows: list[tuple[str, ...]] = [("ADDRESS", "DRIVER", "NUMA", "GROUP", "IN THE GROUP", "USABLE")]
    rows += [_row(function) for function in functions]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(words).rstrip() for words in lines)


def _row(function: dict[str, Any]) -> tuple[str, ...]:
    group = function["iommu_group"]
    node = function["numa_node"]
    others = [m for m in function["members"] if m["address"] != function["address"]]
    return (
        function["address"],
        function["driver"] or "-",
        "-" if node is None else str(node),
        "-" if group is None else str(group),
        ", ".join(f"{m['address']} ({m['driver'] or '-'})" for m in others) or "alone",
        function["obstacle"] or "yes",
    )


def show(*, json: bool) -> None:
    """Print them, as a JSON array or a table."""
    functions = found()
    if json:
        import json as json_format  # noqa: PLC0415 - a library that only this line needs

        print(json_format.dumps(functions), flush=True)
    else:
        none = "no vhost-pci function on this machine"
        print(table(functions) if functions else none, flush=True)
