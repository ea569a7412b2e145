"""guest/write_combining.py on a directory that looks like a function's in sysfs. Refusals first."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from guest.discovery import PciFunction
from guest.errors import VhostPciError
from guest.function import Area
from guest.syscalls import Syscalls
from guest.vfio import VfioFunction
from guest.write_combining import combining_bars, map_combining
from tests.guest.fake_vfio import PAGE, FakeVfio

if TYPE_CHECKING:
    from pathlib import Path

FALL_BACK = "or use the mapping by VFIO"


@pytest.fixture
def pci(tmp_path: Path) -> PciFunction:
    """BAR 2 is prefetchable, BAR 0 is not."""
    (tmp_path / "resource0").write_bytes(b"\0" * 2 * PAGE)
    (tmp_path / "resource2_wc").write_bytes(b"".join(bytes([n]) * PAGE for n in range(8)))
    return PciFunction(
        address="0000:01:00.0",
        vendor=0x1AF4,
        device=0x10F0,
        class_code=0x020000,
        driver="vfio-pci",
        iommu_group=26,
        numa_node=None,
        sys_path=str(tmp_path),
    )


class Refusing(Syscalls):
    """A kernel that opens no file."""

    def __init__(self, number: int) -> None:
        self.number = number

    def open(self, path: str) -> int:
        raise OSError(self.number, os.strerror(self.number), path)


def test_a_bar_that_is_not_prefetchable(pci: PciFunction) -> None:
    with pytest.raises(VhostPciError) as caught:
        map_combining(pci, 0, Area(0, PAGE), writable=False)
    assert str(caught.value) == (
        "cannot map BAR 0 of 0000:01:00.0 write-combining: the kernel offers no write-combining "
        f"mapping of it; that takes a prefetchable BAR and a processor with PAT; {FALL_BACK}"
    )


def test_not_root(pci: PciFunction) -> None:
    with pytest.raises(VhostPciError, match=rf": that takes root; run as root, {FALL_BACK}$"):
        map_combining(pci, 2, Area(0, PAGE), writable=False, syscalls=Refusing(errno.EACCES))


@pytest.mark.parametrize(
    ("fd_of", "cause"),
    [
        ("eventfd", "no such device"),  # cannot be mapped at all: the kernel's own words
        ("sealed", "the kernel is locked down; turn secure boot's lockdown off, " + FALL_BACK),
    ],
)
def test_the_kernel_refuses_the_mapping(pci: PciFunction, fd_of: str, cause: str) -> None:
    """Descriptors that mmap() really refuses, with ENODEV and with lockdown's EPERM."""

    class Giving(Syscalls):
        def open(self, path: str) -> int:
            assert path.endswith("/resource2_wc")
            if fd_of == "eventfd":
                return os.eventfd(0)
            fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, PAGE)
            add_seals, seal_write = 1033, 8  # linux/fcntl.h
            fcntl.fcntl(fd, add_seals, seal_write)
            return fd

    with pytest.raises(VhostPciError) as caught:
        map_combining(pci, 2, Area(0, PAGE), writable=True, syscalls=Giving())
    assert str(caught.value) == f"cannot map BAR 2 of 0000:01:00.0 write-combining: {cause}"


def test_which_bars(pci: PciFunction) -> None:
    assert combining_bars(pci) == {2}


def test_an_area_is_mapped(pci: PciFunction) -> None:
    with map_combining(pci, 2, Area(3 * PAGE, 2 * PAGE), writable=False) as mapping:
        data = mapping.array("u1").tobytes()
    assert data == b"\3" * PAGE + b"\4" * PAGE


def test_a_function_combines_the_bars_it_is_told(pci: PciFunction) -> None:
    kernel = FakeVfio()
    kernel.device.areas[2] = [(0, 8 * PAGE)]
    with VfioFunction.attach(pci, kernel, combine=(2, 4)) as function:
        with function.map_area(2, Area(PAGE, PAGE), writable=True) as window:
            assert window.array("u1").tobytes() == b"\1" * PAGE
        with function.map_area(0, Area(PAGE, PAGE), writable=True) as state:
            assert state.array("u1").tobytes() == b"\0" * PAGE
        with pytest.raises(VhostPciError, match="cannot be mapped"):
            function.map_area(2, Area(PAGE, 8 * PAGE), writable=True)
    assert [line for line in kernel.log if line.endswith("_wc")] == [
        f"open {pci.sys_path}/resource2_wc"
    ]
