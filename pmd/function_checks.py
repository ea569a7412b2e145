"""What `pmd doctor` says of one vhost-pci function of this machine, before it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.state_area import COMMIT_REGION, WINDOW_RW
from guest.binding import is_vfio, obstructing
from guest.discovery import group_members
from guest.pci_facts import GIVE_ROOM, NO_ROOM, read_pci
from guest.usage import uses
from pmd.finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from guest.discovery import PciFunction
    from guest.pci_facts import Bar, PciFacts

_REGISTERS = 0


def check_function(pci: PciFunction) -> list[Finding]:
    """All that can be seen in sysfs."""
    facts = read_pci(pci)
    if facts is None or not facts.present:
        remedy = "look at the device server on the host, and plug the function anew"
        return [problem(pci.address, "it is gone: configuration space cannot be read", remedy)]
    return [
        check_driver(pci),
        check_group(pci),
        *check_bars(pci.address, facts),
        check_msi(pci.address, facts),
        ok(
            f"{pci.address} memory decode",
            "on" if facts.memory_enabled else "off until a driver opens it",
        ),
    ]


def check_driver(pci: PciFunction) -> Finding:
    """It has to become vfio-pci's, which `pmd run` sees to."""
    what = f"{pci.address} driver"
    if is_vfio(pci.driver):
        return ok(what, str(pci.driver))
    remedy = f"pmd run binds it; to have its window measured here: pmd bind {pci.address}"
    return warning(what, pci.driver or "none", remedy)


def check_group(pci: PciFunction) -> Finding:
    """VFIO takes a whole IOMMU group, or nothing of it."""
    what = f"{pci.address} IOMMU group"
    if pci.iommu_group is None:
        return problem(what, "none", "turn the IOMMU on: see above")
    members = group_members(pci)
    names = ", ".join(f"{m.address} ({m.driver or 'no driver'})" for m in members)
    others = obstructing([member for member in members if member.address != pci.address])
    if not others:
        return ok(what, f"{pci.iommu_group}: {names}")
    remedy = f"pmd bind {' '.join(each.address for each in others)}, or give it a root port alone"
    return problem(what, f"{pci.iommu_group} is not viable: {names}", remedy)


def check_bars(address: str, facts: PciFacts) -> list[Finding]:
    """Registers, the window, and the commit area where there is one."""
    found = [
        _check_bar(f"{address} BAR {index}", facts.bars[index])
        for index in (_REGISTERS, WINDOW_RW, COMMIT_REGION)
        if facts.bars[index].implemented
    ]
    if not facts.bars[WINDOW_RW].implemented:
        remedy = "plug the function once VM1's driver has started (device_add)"
        text = "absent: VM1 was not there when it was plugged"
        found.append(warning(f"{address} BAR {WINDOW_RW}", text, remedy))
    return found


def _check_bar(what: str, bar: Bar) -> Finding:
    if bar.size:
        size = f"{bar.size >> 20} MiB" if bar.size >> 20 else f"{bar.size >> 10} KiB"
        return ok(what, f"{size}, {'prefetchable' if bar.prefetchable else 'not prefetchable'}")
    return problem(what, NO_ROOM, GIVE_ROOM)


def check_msi(address: str, facts: PciFacts) -> Finding:
    """Interrupt and adaptive modes need it; a polling driver does not."""
    what = f"{address} MSI"
    if facts.msi is None:
        return ok(what, "only root can see")
    if facts.msi:
        return ok(what, "there")
    return warning(what, "none: VM1's kicks cannot wake this machine", "update the device server")


def check_use(pci: PciFunction) -> Finding | None:
    """Who has it open; None where it is free to be measured."""
    found = uses(pci)
    if not found:
        return None
    what = f"{pci.address} window"
    return ok(what, f"not measured, since the function is in use: {', '.join(found)}")
