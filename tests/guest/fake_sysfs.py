"""A kernel's PCI bus: a sysfs tree in a directory, which answers writes as the kernel does.

Drivers exist once their module is loaded, which a `modprobe` of its own on PATH does. Whatever the
kernel refuses is refused with its errno: a wrong order of writes ends as on a real machine.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from guest.syscalls import Syscalls

if TYPE_CHECKING:
    import pytest

_MODPROBE = """#!/bin/sh
echo "$1" >> {root}/modprobed
case " {missing} " in *" $1 "*)
    echo "modprobe: FATAL: Module $1 not found in directory /lib/modules/6.1" >&2
    exit 1
esac
mkdir -p "{root}/module/$(echo "$1" | tr - _)"
"""


@dataclass
class FakeSysfs(Syscalls):
    """The tree at root, and the kernel behind it.

    Attributes:
        drivers: Built-in drivers by name, with the (vendor, device) each takes unasked.
        refusing: Drivers whose probe fails.
        adding: Functions that the kernel has told of and is not done with: no driver matches one
            (drivers/pci/pci-driver.c pci_bus_match).
        stubborn: Attributes (names) that refuse every write, with the errno.
        held: IOMMU groups that a process has open.
        written: Every accepted write, as "attribute value".
    """

    root: Path
    drivers: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    refusing: set[str] = field(default_factory=set)
    adding: set[str] = field(default_factory=set)
    stubborn: dict[str, int] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    written: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.root / "bus/pci/devices").mkdir(parents=True)
        (self.root / "bus/pci/drivers_probe").write_text("")

    def install_modprobe(self, patch: pytest.MonkeyPatch, *missing: str) -> None:
        """Put a modprobe first on PATH that loads all modules but those missing."""
        folder = self.root / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "modprobe"
        program.write_text(_MODPROBE.format(root=self.root, missing=" ".join(missing)))
        program.chmod(0o755)
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    @property
    def modprobed(self) -> list[str]:
        """The modules asked for, in order."""
        path = self.root / "modprobed"
        return path.read_text().split() if path.exists() else []

    def load(self, *modules: str) -> None:
        """Have these modules loaded."""
        for module in modules:
            (self.root / "module" / module.replace("-", "_")).mkdir(parents=True)

    def add(
        self,
        address: str,
        *,
        ids: tuple[int, int] = (0x1AF4, 0x10F0),
        group: int | None = 1,
        driver: str | None = None,
    ) -> Path:
        """Plug a function in; its directory."""
        path = self.root / "devices/pci0000:00" / address
        path.mkdir(parents=True)
        (self.root / "bus/pci/devices" / address).symlink_to(path)
        for name, value in zip(("vendor", "device"), ids, strict=True):
            (path / name).write_text(f"{value:#06x}\n")
        (path / "class").write_text("0x020000\n")
        (path / "driver_override").write_text("(null)\n")
        if group is not None:
            members = self.root / f"kernel/iommu_groups/{group}/devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(path)
            (path / "iommu_group").symlink_to(members.parent)
        if driver is not None:
            self.drivers.setdefault(driver, set()).add(ids)
            self._attach(path, driver)
        return path

    def add_interface(self, path: Path, name: str, flags: int) -> Path:
        """Give a function a network interface."""
        interface = path / "net" / name
        interface.mkdir(parents=True)
        (interface / "flags").write_text(f"{flags:#x}\n")
        return interface

    def open(self, path: str) -> int:
        """The nodes of VFIO groups: each can be open once."""
        if int(Path(path).name) in self.held:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def write_attribute(self, path: str, value: str) -> None:
        """As the kernel's store functions."""
        attribute = Path(path)
        if attribute.name in self.stubborn:
            raise _refusal(self.stubborn[attribute.name])
        if not attribute.parent.exists():
            raise _refusal(errno.ENOENT)
        text = value.removesuffix("\n")
        if attribute.name == "driver_override":
            attribute.write_text(f"{text or '(null)'}\n")
        elif attribute.name == "unbind":
            self._unbind(attribute.parent.resolve().name, text)
        else:
            assert attribute == self.root / "bus/pci/drivers_probe"
            self._probe(text)
        self.written.append(f"{attribute.name} {text}".rstrip())

    def _unbind(self, driver: str, address: str) -> None:
        link = self.root / "bus/pci/devices" / address / "driver"
        if not link.is_symlink() or link.resolve().name != driver:
            raise _refusal(errno.ENODEV)
        link.unlink()

    def _probe(self, address: str) -> None:
        path = self.root / "bus/pci/devices" / address
        if not path.exists():
            raise _refusal(errno.EINVAL)
        if (path / "driver").is_symlink() or address in self.adding:
            return
        ids = int((path / "vendor").read_text(), 16), int((path / "device").read_text(), 16)
        override = (path / "driver_override").read_text().strip()
        for name, known in self._registered().items():
            fits = name == override if override != "(null)" else ids in known
            if fits and name not in self.refusing:
                self._attach(path, name)
                return

    def _registered(self) -> dict[str, set[tuple[int, int]]]:
        loaded = (self.root / "module/vfio_pci").exists()
        return self.drivers | ({"vfio-pci": set()} if loaded else {})

    def _attach(self, path: Path, driver: str) -> None:
        folder = self.root / "bus/pci/drivers" / driver
        folder.mkdir(parents=True, exist_ok=True)
        (path / "driver").symlink_to(folder)


def _refusal(number: int) -> OSError:
    return OSError(number, os.strerror(number))
