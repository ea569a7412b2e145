"""Giving a PCI function to vfio-pci, and back to the kernel's choice of driver.

The kernel's way (Documentation/ABI/testing/sysfs-bus-pci): `driver_override` names the only driver
that may have the function, `unbind` takes it from the one that has it, `drivers_probe` lets the
kernel match again. The `driver` link tells how that ended. An override lasts until the function
goes or the machine restarts; making it last longer is driverctl's business.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from guest.discovery import SYSFS, group_members, pci_function
from guest.errors import VhostPciError, errno_text
from guest.modules import VFIO_MODULES, load, loaded
from guest.named_tuple import NamedTuple
from guest.syscalls import KERNEL
from guest.usage import uses

if TYPE_CHECKING:
    from guest.discovery import PciFunction
    from guest.syscalls import Syscalls

VFIO_DRIVER = "vfio-pci"
# Drivers that do no DMA of their own let the rest of their group go (driver_managed_dma).
_HARMLESS = ("pcieport", "pci-stub")
_DMESG = "dmesg tells why"


def is_vfio(driver: str | None) -> bool:
    """Whether a driver is vfio-pci, or one of the drivers that VFIO has for particular devices."""
    return driver is not None and "vfio" in driver


def obstructing(members: list[PciFunction]) -> list[PciFunction]:
    """The members of an IOMMU group whose drivers keep VFIO from using the group at all."""
    return [m for m in members if m.driver and not is_vfio(m.driver) and m.driver not in _HARMLESS]


class Step(NamedTuple):
    """One thing that is done: a module loaded, or, with a path, a value written there."""

    value: str
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is None:
            return f"modprobe {self.value}"
        return " ".join(filter(None, ("echo", self.value, ">", str(self.path))))


class Binding:
    """What driver one PCI function has, to be changed.

    Thread rule: one thread at a time.

    Args:
        address: The function's full PCI address.
        root: Where sysfs is mounted.
        syscalls: The kernel.

    Raises:
        UsageError: This is no PCI address.
        VhostPciError: No function is there.
    """

    def __init__(self, address: str, root: Path = SYSFS, syscalls: Syscalls = KERNEL) -> None:
        self._address = address
        self._root = root
        self._syscalls = syscalls
        self.function = pci_function(address, root)
        self.members = group_members(self.function)
        self._path = Path(self.function.sys_path)

    @property
    def override(self) -> str | None:
        """The only driver that may have the function, or None: any that knows it."""
        try:
            text = (self._path / "driver_override").read_text().strip()
        except OSError as error:
            raise self._error("read the driver override of", errno_text(error)) from error
        return None if text in ("", "(null)") else text

    @property
    def driver(self) -> str | None:
        """The driver the function has now."""
        return pci_function(self._address, self._root).driver

    def bind_steps(self) -> list[Step]:
        """What `bind` would do now; empty where nothing is left to do."""
        modules = [Step(module) for module in VFIO_MODULES if not loaded(module, self._root)]
        return modules if is_vfio(self.driver) else [*modules, *self._steps(VFIO_DRIVER)]

    def unbind_steps(self) -> list[Step]:
        """What `unbind` would do now; empty where VFIO has no part in the function."""
        if not (is_vfio(self.driver) or is_vfio(self.override)):
            return []
        return self._steps(None)

    def check_bind(self, *, force: bool = False) -> None:
        """Refuse what `bind` refuses, touching nothing.

        Args:
            force: Accept a function in use, and one kept for another driver.

        Raises:
            VhostPciError: No IOMMU, in use, or kept for another driver.
        """
        if is_vfio(self.driver):
            return
        if self.function.iommu_group is None:
            remedy = "enable one: intel_iommu=on or the like; in a VM, give it a virtual one"
            raise self._error("bind", "no IOMMU holds it", remedy)
        kept = self.override
        if kept is not None and not is_vfio(kept) and not force:
            remedy = f"driverctl set-override {self._address} {VFIO_DRIVER}, or use --force"
            raise self._error("bind", f"its driver_override keeps it for {kept}", remedy)
        self._check_unused("bind", force=force)

    def check_unbind(self, *, force: bool = False) -> None:
        """Refuse what `unbind` refuses, touching nothing.

        Args:
            force: Accept that a process holds it: the kernel asks that one to let go, and waits.

        Raises:
            VhostPciError: In use.
        """
        if is_vfio(self.driver):
            self._check_unused("unbind", force=force)

    def bind(self, *, force: bool = False) -> None:
        """Give the function to vfio-pci, loading what that needs. Nothing to do is fine.

        Raises:
            VhostPciError: `check_bind` refuses, a module is missing, or the kernel refuses; the
                function then has its old driver and override again, or the cause says that not.
        """
        self.check_bind(force=force)
        for module in VFIO_MODULES:
            load(module, self._root)
        if not is_vfio(self.driver):
            self._change("bind", VFIO_DRIVER)

    def unbind(self, *, force: bool = False) -> None:
        """Give the function back to the driver the kernel chooses, which may be none.

        Raises:
            VhostPciError: `check_unbind` refuses, or the kernel does; see `bind`.
        """
        self.check_unbind(force=force)
        if self.unbind_steps():
            self._change("unbind", None)

    def _check_unused(self, operation: str, *, force: bool) -> None:
        found = [] if force else uses(self.function, self._syscalls)
        if found:
            remedy = "end that first, or use --force"
            raise self._error(operation, f"it is in use: {', '.join(found)}", remedy)

    def _steps(self, override: str | None) -> list[Step]:
        """The writes that let the kernel match the function anew."""
        # A line end alone clears an override (drivers/pci/pci-sysfs.c driver_override_store).
        steps = [Step(override or "", self._path / "driver_override")]
        if self.driver is not None:
            steps.append(Step(self._address, self._path / "driver" / "unbind"))
        return [*steps, Step(self._address, self._root / "bus/pci/drivers_probe")]

    def _change(self, operation: str, override: str | None) -> None:
        former, kept = self.driver, self.override
        try:
            self._perform(self._steps(override))
            now = self.driver
            if override is not None and now != override:
                held = f"{now} has it" if now else "no driver has it"
                raise self._error(operation, f"the kernel did not take {override}: {held}", _DMESG)
            if override is None and is_vfio(now):
                raise self._error(operation, f"{now} has it still", _DMESG)
        except OSError as error:
            cause = self._undone(errno_text(error), former, kept)
            denied = "run as root" if isinstance(error, PermissionError) else _DMESG
            raise self._error(operation, cause, denied) from error
        except VhostPciError as error:
            cause = self._undone(error.cause, former, kept)
            raise self._error(operation, cause, error.remedy) from error

    def _undone(self, cause: str, former: str | None, kept: str | None) -> str:
        """Restore driver and override; the cause, and how that went."""
        with contextlib.suppress(OSError, VhostPciError):
            if self.driver == former:
                self._perform(self._steps(kept)[:1])
            else:
                # The former driver may not be the kernel's first choice.
                self._perform(self._steps(former))
                self._perform(self._steps(kept)[:1])
        with contextlib.suppress(VhostPciError):
            if (self.driver, self.override) == (former, kept):
                return f"{cause} (it has {former or 'no driver'} again)"
        return f"{cause}, and {former or 'the state before'} could not be restored"

    def _perform(self, steps: list[Step]) -> None:
        for step in steps:
            self._syscalls.write_attribute(str(step.path), f"{step.value}\n")

    def _error(self, operation: str, cause: str, remedy: str = "") -> VhostPciError:
        return VhostPciError(operation, self._address, cause, remedy)
