"""`pmd doctor`: everything that keeps pmd from running, or from running well, and the remedies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.state_area import DEVICE_ID, VENDOR_ID
from guest.binding import VFIO_DRIVER, is_vfio
from guest.cpu_facts import read_cpu
from guest.cpus import default_lcores, parse_lcores, usable_cpus
from guest.discovery import pci_function, pci_functions
from guest.iommu import read_iommu
from guest.kernel_facts import (
    ROOT,
    ModuleState,
    access,
    lockable_bytes,
    module_state,
    read_kernel,
)
from guest.modules import VFIO_MODULES
from guest.vfio_container import CONTAINER_PATH, GROUP_PATH
from pmd import machine_checks as machine
from pmd.finding import has_problem, problem
from pmd.function_checks import check_function, check_use
from pmd.source import PciSource, sources
from pmd.window_checks import check_source, check_windows
from pmd.window_map import WindowMap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from guest.discovery import PciFunction
    from pmd.finding import Finding
    from pmd.source import Source


def examine(devices: Sequence[str], lcores: str) -> list[Finding]:
    """Look at the machine and at each device, as `pmd run` would use them.

    Functions that nobody uses are opened for a moment; VM1 does not notice.

    Raises:
        UsageError: A device or CPU is none.
        VhostPciError: CPUs cannot be listed, or a PCI address is not there.
    """
    cpus = parse_lcores(lcores) if lcores else default_lcores(1)
    functions: list[PciFunction] = []
    others: list[Source] = []
    for device in devices or ("auto",):
        if device == "auto":
            functions += pci_functions(VENDOR_ID, DEVICE_ID)
            continue
        for source in sources((device,), WindowMap.VFIO):
            if isinstance(source, PciSource):
                functions.append(pci_function(source.name))
            else:
                others.append(source)
    found = examine_machine(cpus)
    if functions or not others:
        found += examine_vfio(functions)
    for function in functions:
        found += examine_function(function)
    if not functions and not others:
        remedy = "plug one into this VM, or name a device server: --device vfio-user:PATH"
        found.append(problem("vhost-pci function", "none on this machine", remedy))
    return [*found, *(check_source(source) for source in others)]


def examine_machine(cpus: Sequence[int], root: Path = ROOT) -> list[Finding]:
    """What counts for every device."""
    kernel = read_kernel(root)
    return [
        machine.check_cpu_count(len(usable_cpus(root / "sys"))),
        *machine.check_lcores([read_cpu(cpu, root / "sys") for cpu in cpus]),
        machine.check_clock(kernel),
        machine.check_huge_pages(kernel),
        machine.check_datagrams(kernel),
    ]


def examine_vfio(functions: Sequence[PciFunction], root: Path = ROOT) -> list[Finding]:
    """What counts for PCI functions of this machine."""
    kernel = read_kernel(root)
    modules = {each: module_state(each, root) for each in VFIO_MODULES}
    # Nodes come with the modules, and a group's with the first function that is bound.
    nodes = [CONTAINER_PATH] if modules[VFIO_DRIVER] is ModuleState.LOADED else []
    groups = {each.iommu_group for each in functions if is_vfio(each.driver)} - {None}
    nodes += [GROUP_PATH.format(group) for group in sorted(groups, key=str)]
    return [
        machine.check_iommu(read_iommu(root / "sys"), kernel),
        *(machine.check_module(each, state) for each, state in modules.items()),
        *(machine.check_node(node, access(node, root)) for node in nodes),
        machine.check_lockable(lockable_bytes(root)),
        machine.check_lockdown(kernel),
    ]


def examine_function(pci: PciFunction) -> list[Finding]:
    """One function; its window only where all else is well and nobody uses it."""
    found = check_function(pci)
    if has_problem(found) or not is_vfio(pci.driver):
        return found
    use = check_use(pci)
    return [*found, *(check_windows(pci) if use is None else [use])]
