"""What stands in the way of a VF driven by VFIO, in the user's words.

Whatever it is, nothing stays open: the fake kernel's descriptors are real ones.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction, open_by_vfio
from driver.virtio_net.vf import VirtioNetVf
from guest.errors import VhostPciError
from tests.driver.vf_kinds import MODELS, vf_for
from tests.guest.fake_sysfs import FakeSysfs
from tests.guest.fake_vfio import FakeVfio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


ADDRESS = "0000:01:00.0"  # as the fake kernel's function
GROUP = 26
BIND = f"bind it to vfio-pci (driverctl set-override {ADDRESS} vfio-pci)"
NOT_VIABLE = (
    "it is not viable: another driver holds one of its functions; "
    f"bind all of /sys/kernel/iommu_groups/{GROUP}/devices to vfio-pci"
)


class Machine:
    """One with a VF that pmd may use, but for what a test changes."""

    def __init__(self, root: Path) -> None:
        self.sysfs = FakeSysfs(root)
        self.kernel = FakeVfio()
        self.driver: str | None = "vfio-pci"
        self.group: int | None = GROUP
        self.there = True

    def opener(self) -> Callable[[str], OpenFunction]:
        if self.there:
            self.sysfs.add(ADDRESS, driver=self.driver, group=self.group)
        return functools.partial(open_by_vfio, syscalls=self.kernel, root=self.sysfs.root)


def not_there(machine: Machine) -> None:
    machine.there = False


def in_use_by_its_kernel_driver(machine: Machine) -> None:
    machine.driver = "igbvf"


def bound_to_nothing(machine: Machine) -> None:
    machine.driver = None


def without_an_iommu(machine: Machine) -> None:
    machine.group = None


def beside_one_of_another_driver(machine: Machine) -> None:
    machine.kernel.groups[GROUP].viable = False


def in_use_by_another_process(machine: Machine) -> None:
    machine.kernel.groups[GROUP].fd = 0


def without_vfio(machine: Machine) -> None:
    machine.kernel.open_errors["/dev/vfio/vfio"] = 2


OBSTACLES = [
    (not_there, f"cannot find {ADDRESS}: no such PCI function; look at lspci -D"),
    (in_use_by_its_kernel_driver, f"cannot open {ADDRESS}: it is bound to igbvf; {BIND}"),
    (bound_to_nothing, f"cannot open {ADDRESS}: no driver is bound to it; {BIND}"),
    (
        without_an_iommu,
        f"cannot open {ADDRESS}: no IOMMU holds it; enable one; in a VM, e.g. intel-iommu",
    ),
    (beside_one_of_another_driver, f"cannot use IOMMU group {GROUP}: {NOT_VIABLE}"),
    (
        in_use_by_another_process,
        "cannot open IOMMU group 26: in use by another process; stop that one first",
    ),
    (
        without_vfio,
        "cannot open /dev/vfio/vfio: the kernel has no VFIO; load it: modprobe vfio-pci",
    ),
]


@pytest.mark.parametrize(("obstacle", "line"), OBSTACLES)
def test_it_cannot_be_opened(
    tmp_path: Path, obstacle: Callable[[Machine], None], line: str
) -> None:
    machine = Machine(tmp_path)
    obstacle(machine)
    opener = machine.opener()
    for make in (IgbVf, VirtioNetVf):
        vf = make("a VF", ADDRESS, None, opener)
        for _ in range(2):  # as one that went is tried again and again
            with pytest.raises(VhostPciError) as refusal:
                vf.open(1)
            assert (str(refusal.value), refusal.value.exit_status) == (line, 1)
            assert not vf.look()
        vf.close()


@pytest.mark.parametrize("kind", MODELS)
def test_its_own_memory_cannot_be_locked(kind: str) -> None:
    model = MODELS[kind]()
    model.dma_limit = 1 << 20
    with pytest.raises(VhostPciError) as refusal:
        vf_for(model, lambda _: OpenFunction(model, model.iova_ranges)).open(1)
    assert str(refusal.value) == (
        "cannot map for DMA 2097152 bytes at 0x200000: the process may not lock that much memory; "
        "raise the limit: ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit"
    )
    assert (model.closed, model.dma, model.faults) == (True, {}, [])
    model.dispose()
