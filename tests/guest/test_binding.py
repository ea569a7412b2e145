"""Giving functions to vfio-pci and back, on a bus whose kernel says no where Linux does."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

import pytest

from guest.binding import Binding, obstructing
from guest.errors import UsageError, VhostPciError
from tests.guest.fake_sysfs import FakeSysfs

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = "0000:02:00.0"
IFF_UP = 0x1043


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    sysfs = FakeSysfs(tmp_path)
    sysfs.install_modprobe(monkeypatch)
    return sysfs


def binding(sysfs: FakeSysfs, address: str = ADDRESS) -> Binding:
    return Binding(address, sysfs.root, sysfs)


def state(sysfs: FakeSysfs) -> tuple[str | None, str | None]:
    """Driver and override, seen anew."""
    seen = binding(sysfs)
    return seen.driver, seen.override


def refusal(sysfs: FakeSysfs, operation: str = "bind", *, force: bool = False) -> str:
    """What bind or unbind says when it refuses."""
    with pytest.raises(VhostPciError) as refused:
        getattr(binding(sysfs), operation)(force=force)
    assert refused.value.exit_status == 1
    return str(refused.value)


# Refusals that touch nothing.


def test_no_address(sysfs: FakeSysfs) -> None:
    with pytest.raises(UsageError, match="this is no PCI address"):
        binding(sysfs, "02:00.0")


def test_no_function(sysfs: FakeSysfs) -> None:
    with pytest.raises(VhostPciError, match=r"cannot find 0000:02:00.0: no such PCI function"):
        binding(sysfs)


def test_no_bus(tmp_path: Path) -> None:
    with pytest.raises(VhostPciError, match=r"cannot find 0000:02:00.0: this .* has no PCI bus$"):
        Binding(ADDRESS, tmp_path / "nothing")


def test_no_iommu(sysfs: FakeSysfs) -> None:
    sysfs.add(ADDRESS, group=None)
    assert "cannot bind 0000:02:00.0: no IOMMU holds it; enable one" in refusal(sysfs)
    assert sysfs.written == []


def test_an_interface_that_is_up(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="igb")
    sysfs.add_interface(path, "eth7", IFF_UP)
    assert "it is in use: network interface eth7 is up; end that" in refusal(sysfs)
    assert (sysfs.written, sysfs.modprobed, state(sysfs)) == ([], [], ("igb", None))
    binding(sysfs).bind(force=True)
    assert state(sysfs) == ("vfio-pci", "vfio-pci")


def test_an_interface_of_a_virtio_device_below_the_function(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="virtio-pci")
    sysfs.add_interface(path / "virtio3", "eth7", IFF_UP)
    assert "network interface eth7 is up" in refusal(sysfs)


def test_an_interface_that_is_down_but_has_an_address(sysfs: FakeSysfs) -> None:
    """lo, whose addresses this machine's kernel tells."""
    path = sysfs.add(ADDRESS, driver="igb")
    sysfs.add_interface(path, "lo", 0)
    assert "network interface lo has an address" in refusal(sysfs)


def test_an_interface_in_a_bridge(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="igb")
    interface = sysfs.add_interface(path, "none7", 0)
    (sysfs.root / "br5").mkdir()
    (interface / "master").symlink_to(sysfs.root / "br5")
    assert "network interface none7 belongs to br5" in refusal(sysfs)


def test_an_interface_that_nobody_uses(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="igb")
    sysfs.add_interface(path, "none7", 0)
    binding(sysfs).bind()
    assert state(sysfs) == ("vfio-pci", "vfio-pci")


def test_a_disk_with_the_root_file_system(sysfs: FakeSysfs, tmp_path: Path) -> None:
    path = sysfs.add(ADDRESS, driver="nvme")
    partition = path / "nvme/nvme9/block/nvme9n1/nvme9n1p2"
    partition.mkdir(parents=True)
    (partition / "dev").write_text("259:4000\n")
    binding(sysfs).check_bind()
    number = tmp_path.stat().st_dev
    (partition / "dev").write_text(f"{number >> 8 & 0xFFF}:{number & 0xFF | number >> 12 & ~0xFF}")
    assert "disk nvme9n1p2 is mounted" in refusal(sysfs)


def test_virtual_functions(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="igb")
    (path / "sriov_numvfs").write_text("2\n")
    assert "it has 2 virtual functions" in refusal(sysfs)


def test_kept_for_another_driver(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="igb")
    (path / "driver_override").write_text("igb\n")
    said = refusal(sysfs)
    assert "its driver_override keeps it for igb; driverctl set-override 0000:02:00.0" in said
    assert sysfs.written == []
    binding(sysfs).bind(force=True)
    assert state(sysfs) == ("vfio-pci", "vfio-pci")


# What is done.


def test_bind_and_unbind(sysfs: FakeSysfs) -> None:
    sysfs.add(ADDRESS, driver="igb")
    binding(sysfs).bind()
    assert sysfs.modprobed == ["vfio-pci", "vfio_iommu_type1"]
    assert state(sysfs) == ("vfio-pci", "vfio-pci")
    assert sysfs.written == [
        "driver_override vfio-pci",
        f"unbind {ADDRESS}",
        f"drivers_probe {ADDRESS}",
    ]
    binding(sysfs).unbind()
    assert state(sysfs) == ("igb", None)


def test_a_function_that_no_driver_knows(sysfs: FakeSysfs) -> None:
    sysfs.add(ADDRESS)
    binding(sysfs).bind()
    assert sysfs.written == ["driver_override vfio-pci", f"drivers_probe {ADDRESS}"]
    binding(sysfs).unbind()
    assert state(sysfs) == (None, None)


def test_an_override_that_driverctl_set(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS)
    (path / "driver_override").write_text("vfio-pci\n")
    binding(sysfs).bind()
    assert state(sysfs) == ("vfio-pci", "vfio-pci")


@pytest.mark.parametrize("driver", ["vfio-pci", "mlx5-vfio-pci"])
def test_bound_already(sysfs: FakeSysfs, driver: str) -> None:
    sysfs.load("vfio-pci", "vfio_iommu_type1")
    sysfs.add(ADDRESS, driver=driver)
    sysfs.held.add(1)
    assert binding(sysfs).bind_steps() == []
    binding(sysfs).bind()
    assert (sysfs.written, sysfs.modprobed, state(sysfs)) == ([], [], (driver, None))


def test_bound_already_but_the_iommu_model_is_missing(sysfs: FakeSysfs) -> None:
    sysfs.load("vfio-pci")
    sysfs.add(ADDRESS, driver="vfio-pci")
    binding(sysfs).bind()
    assert sysfs.modprobed == ["vfio_iommu_type1"]


def test_unbind_of_what_vfio_does_not_have(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="igb")
    sysfs.add_interface(path, "eth7", IFF_UP)
    assert binding(sysfs).unbind_steps() == []
    binding(sysfs).unbind()
    assert (sysfs.written, state(sysfs)) == ([], ("igb", None))


def test_unbind_while_a_process_holds_the_group(sysfs: FakeSysfs) -> None:
    sysfs.load("vfio-pci")
    sysfs.add(ADDRESS, driver="vfio-pci", group=17)
    sysfs.held.add(17)
    said = refusal(sysfs, "unbind")
    assert "it is in use: another process holds its IOMMU group 17; end that" in said
    assert sysfs.written == []
    binding(sysfs).unbind(force=True)
    assert sysfs.written[:2] == ["driver_override", f"unbind {ADDRESS}"]


def test_what_would_be_done(sysfs: FakeSysfs) -> None:
    path = sysfs.add(ADDRESS, driver="igb")
    sysfs.load("vfio-pci")
    assert [str(step) for step in binding(sysfs).bind_steps()] == [
        "modprobe vfio_iommu_type1",
        f"echo vfio-pci > {path}/driver_override",
        f"echo {ADDRESS} > {path}/driver/unbind",
        f"echo {ADDRESS} > {sysfs.root}/bus/pci/drivers_probe",
    ]
    assert (sysfs.written, sysfs.modprobed) == ([], [])


def test_the_group(sysfs: FakeSysfs) -> None:
    sysfs.add("0000:00:1c.0", driver="pcieport", ids=(0x8086, 1))
    sysfs.add("0000:02:00.1", driver="igb", ids=(0x8086, 2))
    sysfs.add("0000:02:00.2", driver="vfio-pci", ids=(0x8086, 3))
    sysfs.add("0000:03:00.0", driver="igb", ids=(0x8086, 2), group=2)
    sysfs.add(ADDRESS)
    members = binding(sysfs).members
    expected = ["0000:00:1c.0", ADDRESS, "0000:02:00.1", "0000:02:00.2"]
    assert [member.address for member in members] == expected
    assert [member.address for member in obstructing(members)] == ["0000:02:00.1"]


# What the kernel refuses.


@pytest.mark.parametrize("module", ["vfio-pci", "vfio_iommu_type1"])
def test_a_missing_module(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    sysfs.install_modprobe(monkeypatch, module)
    sysfs.add(ADDRESS, driver="igb")
    said = refusal(sysfs)
    assert said.startswith(f"cannot load the kernel module {module}: modprobe: FATAL: Module ")
    assert f"try as root: modprobe {module}" in said
    assert (sysfs.written, state(sysfs)) == ([], ("igb", None))


def test_no_modprobe(sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sysfs.add(ADDRESS)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no modprobe; install kmod" in refusal(sysfs)


@pytest.mark.parametrize("kept", ["(null)", "igb"])
@pytest.mark.parametrize("driver", ["igb", None])
def test_a_probe_that_fails(sysfs: FakeSysfs, driver: str | None, kept: str) -> None:
    path = sysfs.add(ADDRESS, driver=driver)
    (path / "driver_override").write_text(f"{kept}\n")
    sysfs.refusing.add("vfio-pci")
    before = state(sysfs)
    said = refusal(sysfs, force=True)
    held = f"it has {driver or 'no driver'} again"
    assert f"the kernel did not take vfio-pci: no driver has it ({held}); dmesg" in said
    assert state(sysfs) == before


@pytest.mark.parametrize("attribute", ["driver_override", "unbind", "drivers_probe"])
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EACCES, errno.ENODEV])
def test_a_write_that_fails(sysfs: FakeSysfs, attribute: str, number: int) -> None:
    sysfs.add(ADDRESS, driver="igb")
    sysfs.stubborn[attribute] = number
    said = refusal(sysfs)
    assert ("run as root" in said) == (number == errno.EACCES)
    if attribute == "drivers_probe":
        # The function lost its driver, and nothing gives it back: that is said.
        assert ", and igb could not be restored; " in said
    else:
        assert "(it has igb again); " in said
        assert state(sysfs) == ("igb", None)


def test_a_function_that_the_kernel_is_still_adding(sysfs: FakeSysfs) -> None:
    sysfs.add(ADDRESS)
    sysfs.adding.add(ADDRESS)
    assert "no driver has it (it has no driver again)" in refusal(sysfs)
    assert state(sysfs) == (None, None)
    sysfs.adding.clear()
    binding(sysfs).bind()
    assert state(sysfs) == ("vfio-pci", "vfio-pci")


def test_a_driver_that_does_not_take_its_function_back(sysfs: FakeSysfs) -> None:
    sysfs.add(ADDRESS, driver="igb")
    sysfs.refusing |= {"vfio-pci", "igb"}
    assert re.search("the kernel did not .*, and igb could not be restored", refusal(sysfs))
    assert state(sysfs) == (None, None)
