"""Files that look like a kernel's, below a directory of the test."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from guest.discovery import PciFunction

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ADDRESS = "0000:02:00.0"
CPU = "sys/devices/system/cpu"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"
MODULES = f"lib/modules/{os.uname().release}/modules.dep"
# A machine on which all is well for one function in group 4 and lcore 1.
GOOD = {
    "proc/cmdline": "ro quiet intel_iommu=on isolcpus=1 nohz_full=1\n",
    "proc/self/status": "Name:\tpmd\nCapEff:\t000001ffffffffff\n",
    "proc/sys/net/unix/max_dgram_qlen": "512\n",
    CLOCK: "tsc\n",
    f"{CPU}/isolated": "1,3-4\n",
    f"{CPU}/nohz_full": "1\n",
    f"{CPU}/cpu1/topology/thread_siblings_list": "1\n",
    "sys/class/iommu/dmar0/type": "",
    "sys/kernel/iommu_groups/4/type": "DMA-FQ\n",
    "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "8\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "5\n",
    "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "0\n",
    "sys/module/vfio_pci/parameters/ids": "",
    "sys/module/vfio_iommu_type1/parameters/dma_entry_limit": "65535\n",
    "dev/vfio/vfio": "",
    "dev/vfio/4": "",
}
# BAR 0 of 1 MiB, BAR 2 of 512 MiB at 64 GiB, as a kernel prints them in `resource`.
BARS = {0: (0xFE000000, 1 << 20, 0x140204), 2: (64 << 30, 512 << 20, 0x14220C)}


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write the files, below root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def config_space(registers: tuple[int, ...], *, command: int = 6, msi: bool = True) -> bytes:
    """A function's first 256 bytes: PCI Express at 0x40, then MSI at 0x60."""
    config = bytearray(256)
    struct.pack_into("<HHHH", config, 0, 0x1AF4, 0x10F0, command, 0x10)
    struct.pack_into("<6I", config, 0x10, *registers)
    config[0x34] = 0x40
    config[0x40:0x42] = 0x10, 0x60 if msi else 0
    config[0x60:0x62] = 0x05, 0
    return bytes(config)


def write_function(
    root: Path,
    config: bytes | None = None,
    bars: Mapping[int, tuple[int, int, int]] = BARS,
    driver: str | None = "vfio-pci",
) -> PciFunction:
    """A vhost-pci function below root; bars are (address, size, flags) by index."""
    path = root / "sys/devices/pci0000:00" / ADDRESS
    lines = []
    for index in range(13):
        begin, size, flags = bars.get(index, (0, 0, 0))
        lines.append(f"{begin:#018x} {begin + size - 1 if size else 0:#018x} {flags:#018x}\n")
    write_tree(path, {"resource": "".join(lines), "vendor": "0x1af4\n", "device": "0x10f0\n"})
    write_tree(path, {"class": "0x020000\n"})
    (path / "config").write_bytes(config or config_space((0xFE000004, 0, 0xC, 16, 0, 0)))
    return PciFunction(
        address=ADDRESS,
        vendor=0x1AF4,
        device=0x10F0,
        class_code=0x020000,
        driver=driver,
        iommu_group=4,
        numa_node=None,
        sys_path=str(path),
    )


def join_group(root: Path, path: Path, driver: str | None) -> None:
    """Put the function at path into IOMMU group 4, with a driver."""
    group = root / "sys/kernel/iommu_groups/4"
    (group / "devices").mkdir(parents=True, exist_ok=True)
    (group / "devices" / path.name).symlink_to(path)
    (path / "iommu_group").symlink_to(group)
    if driver is not None:
        (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (path / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)
