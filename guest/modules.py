"""Kernel modules that VFIO needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.discovery import SYSFS
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from pathlib import Path

# modprobe vfio-pci does not bring the IOMMU model, and VFIO_SET_IOMMU fails without it.
VFIO_MODULES = ("vfio-pci", "vfio_iommu_type1")


def loaded(module: str, root: Path = SYSFS) -> bool:
    """Whether the kernel has the module, loaded or built in (with parameters, as VFIO's are)."""
    return (root / "module" / module.replace("-", "_")).exists()


def load(module: str, root: Path = SYSFS) -> None:
    """Have the kernel load a module, unless it has it.

    Raises:
        VhostPciError: It cannot; the cause is modprobe's own.
    """
    if loaded(module, root):
        return
    import subprocess  # noqa: PLC0415 - where a module is missing, which is once in a machine's life

    operation, subject = "load the kernel module", module
    try:
        done = subprocess.run(["modprobe", module], capture_output=True, text=True, check=False)
    except OSError as error:
        remedy = f"install kmod, then: modprobe {module}"
        raise VhostPciError(operation, subject, "there is no modprobe", remedy) from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        cause = said[-1] if said else f"modprobe ended with status {done.returncode}"
        remedy = f"try as root: modprobe {module}; a kernel without it has no VFIO"
        raise VhostPciError(operation, subject, cause, remedy)
