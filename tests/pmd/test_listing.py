"""What `pmd list` says of a function, on buses with different faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from guest.discovery import pci_function
from pmd import listing
from tests.guest.fake_sysfs import FakeSysfs

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = "0000:00:05.0"
BIND = f"pmd run binds it, or: pmd bind {ADDRESS}"
NO_GROUP = 999_999


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


def described(sysfs: FakeSysfs) -> dict[str, Any]:
    return listing.describe(pci_function(ADDRESS, sysfs.root), sysfs.root)


@pytest.mark.parametrize(
    ("driver", "group", "obstacle"),
    [
        (None, None, "no IOMMU group: give this machine an IOMMU (intel_iommu=on, or a virtual"),
        (None, NO_GROUP, f"not bound: {BIND}"),
        ("virtio-pci", NO_GROUP, f"bound to virtio-pci: {BIND}"),
        ("vfio-pci", NO_GROUP, f"no /dev/vfio/{NO_GROUP}: modprobe vfio-pci"),
    ],
)
def test_obstacles(sysfs: FakeSysfs, driver: str | None, group: int | None, obstacle: str) -> None:
    sysfs.add(ADDRESS, driver=driver, group=group)
    found = described(sysfs)
    assert found["obstacle"].startswith(obstacle)
    assert (found["address"], found["driver"], found["iommu_group"]) == (ADDRESS, driver, group)
    own = {"address": ADDRESS, "driver": driver}
    assert found["members"] == ([] if group is None else [own])


def test_a_group_that_is_not_viable(sysfs: FakeSysfs) -> None:
    sysfs.add(ADDRESS, driver="vfio-pci")
    sysfs.add("0000:00:05.1", driver="igb", ids=(0x8086, 1))
    sysfs.add("0000:00:05.2", driver="pcieport", ids=(0x8086, 2))
    found = described(sysfs)
    assert found["obstacle"] == "IOMMU group 1 is not viable: pmd bind 0000:00:05.1 (igb)"
    assert [member["driver"] for member in found["members"]] == ["vfio-pci", "igb", "pcieport"]


def test_table_shows_all_of_it(sysfs: FakeSysfs) -> None:
    sysfs.add(ADDRESS, driver="igb", group=7)
    sysfs.add("0000:00:05.1", ids=(0x8086, 1), group=7)
    assert listing.table([described(sysfs)]).splitlines() == [
        f"{'ADDRESS':12}  DRIVER  NUMA  GROUP  {'IN THE GROUP':16}  USABLE",
        f"{ADDRESS}  {'igb':6}  {'-':4}  {'7':5}  0000:00:05.1 (-)  bound to igb: {BIND}",
    ]


def test_functions_of_this_machine_are_vhost_pci() -> None:
    keys = {"address", "driver", "iommu_group", "members", "numa_node", "obstacle"}
    for function in listing.found():
        assert set(function) == keys
