"""guest/vfio_abi.py against <linux/vfio.h>: every constant, size and offset, by a C probe."""

from __future__ import annotations

import ctypes
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from guest import vfio_abi, vfio_user_abi
from guest.function import Irq, Region

if TYPE_CHECKING:
    from pathlib import Path

STRUCTURES = {
    name: value
    for name, value in vars(vfio_abi).items()
    if isinstance(value, type) and issubclass(value, ctypes.Structure) and name != "Structure"
}
CONSTANTS = {name: value for name, value in vars(vfio_abi).items() if name.startswith("VFIO_")}
INDICES = {f"VFIO_PCI_{region.name}_REGION_INDEX": int(region) for region in Region} | {
    f"VFIO_PCI_{irq.name}_IRQ_INDEX": int(irq) for irq in Irq
}


def header_name(structure: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", structure).lower()


def expectations() -> dict[str, int]:
    """C expression -> what our declarations say."""
    expected = CONSTANTS | INDICES
    for name, structure in STRUCTURES.items():
        c_name = f"struct {header_name(name)}"
        expected[f"sizeof({c_name})"] = ctypes.sizeof(structure)
        for field, *_ in structure._fields_:
            expected[f"offsetof({c_name}, {field})"] = getattr(structure, field).offset
            size = getattr(structure, field).size
            if size:  # a flexible array member has no size in C
                expected[f"sizeof((({c_name} *)0)->{field})"] = size
    return expected


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """C expression -> what the compiler says."""
    directory: Path = tmp_path_factory.mktemp("probe")
    lines = "\n".join(
        f'\tprintf("%llu %s\\n", (unsigned long long)(__u64)({expression}) & mask, "{expression}");'
        for expression in expectations()
    )
    source = directory / "probe.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/vfio.h>\n"
        f"int main(void)\n{{\n\tconst __u64 mask = 0xffffffffu;\n{lines}\n\treturn 0;\n}}\n"
    )
    probe = directory / "probe"
    subprocess.run(["gcc", "-std=gnu11", "-Wall", "-o", probe, source], check=True)
    output = subprocess.run([probe], check=True, capture_output=True, text=True).stdout
    return {
        expression: int(value)
        for value, expression in (line.split(" ", 1) for line in output.splitlines())
    }


def test_the_module_is_driven_whole() -> None:
    assert len(STRUCTURES) >= 20
    assert {"VfioRegionInfo", "VfioIrqSet", "VfioIommuType1DmaMap"} <= STRUCTURES.keys()
    assert all(isinstance(value, int) for value in CONSTANTS.values())


def test_every_declaration_is_the_headers(header: dict[str, int]) -> None:
    # Headers since 6.6 append a pad word; the fixed part that argsz counts stays 20 bytes.
    assert header["sizeof(struct vfio_device_info)"] in {20, 24}
    padded = {"sizeof(struct vfio_device_info)": header["sizeof(struct vfio_device_info)"]}
    assert expectations() | padded == header
    assert len(header) > 200


def test_ioctl_numbers_as_literals() -> None:
    assert vfio_abi.VFIO_GET_API_VERSION == 0x3B64
    assert vfio_abi.VFIO_GROUP_GET_DEVICE_FD == 0x3B6A
    assert vfio_abi.VFIO_DEVICE_GET_REGION_INFO == 0x3B6C
    assert vfio_abi.VFIO_IOMMU_MAP_DMA == 0x3B71


def test_vfio_user_takes_the_kernels_payloads() -> None:
    for ours, kernel in (
        (vfio_user_abi.RegionInfo, vfio_abi.VfioRegionInfo),
        (vfio_user_abi.IrqInfo, vfio_abi.VfioIrqInfo),
        (vfio_user_abi.IrqSet, vfio_abi.VfioIrqSet),
        (vfio_user_abi.CapabilityHeader, vfio_abi.VfioInfoCapHeader),
        (vfio_user_abi.SparseArea, vfio_abi.VfioRegionSparseMmapArea),
        (vfio_user_abi.DmaMap, vfio_abi.VfioIommuType1DmaMap),
    ):
        assert ours.LAYOUT.size == ctypes.sizeof(kernel)
