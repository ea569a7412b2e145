"""The words of `pmd bind` and `pmd unbind`, on a bus that a fake kernel plays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guest.binding import Binding
from guest.errors import VhostPciError
from pmd import bind as commands
from tests.guest.fake_sysfs import FakeSysfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ADDRESS = "0000:02:00.0"


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    sysfs = FakeSysfs(tmp_path)
    sysfs.install_modprobe(monkeypatch)
    monkeypatch.setattr(commands, "Binding", lambda name: Binding(name, sysfs.root, sysfs))
    return sysfs


def said(
    command: Callable[..., Iterator[str]], *, force: bool = False, dry_run: bool = False
) -> list[str]:
    return list(command("02:00.0", force=force, dry_run=dry_run))


def test_there_and_back(sysfs: FakeSysfs) -> None:
    sysfs.add(ADDRESS, driver="igb")
    assert said(commands.bind) == [
        "IOMMU group 1:",
        f"  {ADDRESS} 1af4:10f0 igb",
        f"{ADDRESS}: vfio-pci has it now, before: igb",
        f"to keep that when the machine restarts: driverctl set-override {ADDRESS} vfio-pci",
    ]
    assert said(commands.bind)[2] == f"{ADDRESS}: vfio-pci has it already"
    assert said(commands.unbind) == [
        "IOMMU group 1:",
        f"  {ADDRESS} 1af4:10f0 vfio-pci",
        f"{ADDRESS}: igb has it now, before: vfio-pci",
        f"if driverctl keeps it for vfio-pci: driverctl unset-override {ADDRESS}",
    ]
    already = f"{ADDRESS}: igb has it, which is the kernel's choice already"
    assert said(commands.unbind)[2:] == [already]


def test_viability_is_said_before_anything_is_done(sysfs: FakeSysfs) -> None:
    sysfs.add(ADDRESS)
    sysfs.add("0000:02:00.1", driver="igb", ids=(0x8086, 1))
    lines = commands.bind(ADDRESS, force=False, dry_run=False)
    assert [next(lines) for _ in range(4)] == [
        "IOMMU group 1:",
        f"  {ADDRESS} 1af4:10f0 no driver",
        "  0000:02:00.1 8086:0001 igb",
        "not viable: VFIO can use none of the group before 0000:02:00.1 (igb) is bound to it too",
    ]
    assert (sysfs.written, sysfs.modprobed) == ([], [])
    assert next(lines) == f"{ADDRESS}: vfio-pci has it now, before: none"


def test_a_dry_run_changes_nothing(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="igb")
    assert said(commands.bind, dry_run=True)[2:] == [
        "modprobe vfio-pci",
        "modprobe vfio_iommu_type1",
        f"echo vfio-pci > {path}/driver_override",
        f"echo {ADDRESS} > {path}/driver/unbind",
        f"echo {ADDRESS} > {sysfs.root}/bus/pci/drivers_probe",
    ]
    assert said(commands.unbind, dry_run=True)[2:] == ["nothing to do: vfio-pci does not have it"]
    assert (sysfs.written, sysfs.modprobed) == ([], [])
    said(commands.bind)
    written = list(sysfs.written)
    assert said(commands.bind, dry_run=True)[2:] == ["nothing to do: vfio-pci has it already"]
    assert said(commands.unbind, dry_run=True)[2:] == [
        f"echo > {path}/driver_override",
        f"echo {ADDRESS} > {path}/driver/unbind",
        f"echo {ADDRESS} > {sysfs.root}/bus/pci/drivers_probe",
    ]
    assert sysfs.written == written


def test_a_dry_run_refuses_what_the_command_refuses(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="igb")
    sysfs.add_interface(path, "eth7", 1)
    with pytest.raises(VhostPciError, match="network interface eth7 is up"):
        said(commands.bind, dry_run=True)
    assert len(said(commands.bind, dry_run=True, force=True)) == 7
