"""guest/discovery.py on this machine, whatever PCI functions it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.discovery import is_pci_address, pci_function, pci_functions
from guest.errors import UsageError, VhostPciError

DEVICES = Path("/sys/bus/pci/devices")


@pytest.mark.parametrize("text", ["0000:01:00.0", "10000:e1:00.7", "0000:ff:1f.7"])
def test_addresses(text: str) -> None:
    assert is_pci_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "01:00.0",
        "0000:01:00.8",
        "0000:01:20.0",
        "0000:01:00",
        "0000:0G:00.0",
        "0000:01:00.0\n",
        "../0000:01:00.0",
        "vfio-user:/run/s",
        "0000:01:00.00",
    ],
)
def test_no_addresses(text: str) -> None:
    assert not is_pci_address(text)
    with pytest.raises(UsageError, match=r"this is no PCI address; give it in full"):
        pci_function(text)


def test_no_function_there() -> None:
    with pytest.raises(VhostPciError, match=r"cannot find 0000:ff:1f.7: no such PCI function"):
        pci_function("0000:ff:1f.7")


def test_ids_that_nobody_has() -> None:
    assert pci_functions(0xFFFF, 0xFFFF) == []


def test_all_functions_are_found_by_their_ids() -> None:
    """Against sysfs read here in another way (uevent files); a machine without PCI has none."""
    for path in sorted(DEVICES.iterdir()) if DEVICES.exists() else []:
        uevent = dict(line.split("=", 1) for line in (path / "uevent").read_text().splitlines())
        vendor, device = (int(part, 16) for part in uevent["PCI_ID"].split(":"))
        found = {each.address: each for each in pci_functions(vendor, device)}
        function = found[path.name]
        assert function == pci_function(path.name)
        assert function.class_code == int(uevent["PCI_CLASS"], 16)
        assert function.driver == uevent.get("DRIVER")
        assert Path(function.sys_path) == path.resolve()
        assert (function.iommu_group is None) == (not (path / "iommu_group").exists())
        assert all((each.vendor, each.device) == (vendor, device) for each in found.values())
        assert list(found) == sorted(found)
