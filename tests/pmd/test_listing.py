"""What `pmd list` says of a function."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from guest.discovery import PciFunction
from pmd import listing

FUNCTION = PciFunction(
    address="0000:00:05.0",
    vendor=0x1AF4,
    device=0x10F0,
    class_code=0x020000,
    driver=None,
    iommu_group=None,
    numa_node=None,
    sys_path="/sys/devices/pci0000:00/0000:00:05.0",
)
NO_GROUP = 999_999


@pytest.mark.parametrize(
    ("driver", "group", "obstacle"),
    [
        (None, None, "no IOMMU group: "),
        (None, 3, "not bound: driverctl set-override 0000:00:05.0 vfio-pci"),
        ("virtio-pci", 3, "bound to virtio-pci: driverctl set-override 0000:00:05.0 vfio-pci"),
        ("vfio-pci", NO_GROUP, f"no /dev/vfio/{NO_GROUP}: modprobe vfio-pci"),
    ],
)
def test_obstacles(driver: str | None, group: int | None, obstacle: str) -> None:
    function = dataclasses.replace(FUNCTION, driver=driver, iommu_group=group)
    described = listing.describe(function)
    assert described["obstacle"].startswith(obstacle)
    assert (described["driver"], described["iommu_group"]) == (driver, group)


def test_table_shows_all_of_it() -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(listing.table([listing.describe(FUNCTION)]))
    text = out.getvalue()
    assert "0000:00:05.0" in text
    assert "no IOMMU group: " in text


def test_functions_of_this_machine_are_vhost_pci() -> None:
    for function in listing.found():
        assert set(function) == {"address", "driver", "iommu_group", "numa_node", "obstacle"}
