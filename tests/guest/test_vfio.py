"""guest/vfio.py and guest/vfio_container.py against a fake kernel. Refusals first."""

from __future__ import annotations

import errno
import os
import re
import select
from typing import TYPE_CHECKING

import pytest

from guest import vfio_abi as abi
from guest.discovery import PciFunction
from guest.errors import DeviceGoneError, VhostPciError
from guest.function import Area, Doorbell, Identity, Irq, Region, RegionInfo
from guest.vfio import VfioFunction
from guest.vfio_container import Container, IommuInfo
from tests.guest.fake_vfio import PAGE, FakeDevice, FakeGroup, FakeVfio

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS = "0000:01:00.0"
PCI = PciFunction(
    address=ADDRESS,
    vendor=0x1AF4,
    device=0x10F0,
    class_code=0x020000,
    driver="vfio-pci",
    iommu_group=26,
    numa_node=None,
    sys_path=f"/sys/devices/pci0000:00/{ADDRESS}",
)


@pytest.fixture
def kernel() -> FakeVfio:
    return FakeVfio()


@pytest.fixture
def function(kernel: FakeVfio) -> Iterator[VfioFunction]:
    with VfioFunction.attach(PCI, kernel) as function:
        yield function


# ---- what stands in the way of opening --------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("/dev/vfio/vfio", errno.ENOENT, "cannot open /dev/vfio/vfio: the kernel has no VFIO; lo"),
        ("/dev/vfio/vfio", errno.EACCES, "cannot open /dev/vfio/vfio: permission denied; run as"),
        ("/dev/vfio/26", errno.ENOENT, "cannot open IOMMU group 26: none of its functions is bo"),
        ("/dev/vfio/26", errno.EBUSY, "cannot open IOMMU group 26: in use by another process; s"),
        ("/dev/vfio/26", errno.EACCES, "cannot open IOMMU group 26: permission denied; run as ro"),
        ("/dev/vfio/26", errno.EPERM, "cannot open IOMMU group 26: operation not permitted; run"),
    ],
)
def test_nodes_refused(kernel: FakeVfio, path: str, error: int, text: str) -> None:
    kernel.open_errors[path] = error
    with pytest.raises(VhostPciError, match=f"^{re.escape(text)}"):
        VfioFunction.attach(PCI, kernel)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"iommu_group": None}, "no IOMMU holds it; enable one"),
        (
            {"driver": "e1000e"},
            "it is bound to e1000e; bind it to vfio-pci (driverctl set-override",
        ),
        ({"driver": None}, "no driver is bound to it; bind it to vfio-pci"),
        ({"address": "0000:09:00.0"}, "cannot open 0000:09:00.0: vfio-pci does not hold it; bind"),
    ],
)
def test_functions_refused(kernel: FakeVfio, change: dict[str, object], text: str) -> None:
    pci = PCI._replace(**change)  # type: ignore[arg-type]
    with pytest.raises(VhostPciError, match=re.escape(text)):
        VfioFunction.attach(pci, kernel)


def test_group_not_viable(kernel: FakeVfio) -> None:
    kernel.groups[26].viable = False
    text = "it is not viable: another driver holds one of its functions; bind all of /sys/kernel/"
    with pytest.raises(VhostPciError, match=re.escape(text)):
        VfioFunction.attach(PCI, kernel)
    assert "VFIO_GROUP_SET_CONTAINER" not in kernel.log


def test_type1_not_loaded(kernel: FakeVfio) -> None:
    kernel.type1_loaded = False
    text = "vfio_iommu_type1 is not loaded; modprobe vfio_iommu_type1"
    with pytest.raises(VhostPciError, match=text):
        VfioFunction.attach(PCI, kernel)
    assert kernel.log[-2:] == ["close group", "close container"]


def test_interrupts_not_remapped(kernel: FakeVfio) -> None:
    kernel.remaps_interrupts = False
    with pytest.raises(VhostPciError, match=r"does not remap interrupts; .*allow_unsafe"):
        VfioFunction.attach(PCI, kernel)


def test_not_a_pci_function(kernel: FakeVfio) -> None:
    kernel.device.flags = 1 << 2  # VFIO_DEVICE_FLAGS_PLATFORM
    with pytest.raises(VhostPciError, match="it is no PCI function"):
        VfioFunction.attach(PCI, kernel)


def test_a_vfio_driver_of_the_functions_own(kernel: FakeVfio) -> None:
    VfioFunction.attach(PCI._replace(driver="mlx5_vfio_pci"), kernel).close()


# ---- the ladder -------------------------------------------------------------------------------


def test_order_of_opening_and_closing(kernel: FakeVfio) -> None:
    function = VfioFunction.attach(PCI, kernel)
    ladder = [entry for entry in kernel.log if not entry.startswith("VFIO_DEVICE")]
    assert ladder == [
        "open /dev/vfio/vfio",
        "VFIO_GET_API_VERSION",
        "open /dev/vfio/26",
        "VFIO_GROUP_GET_STATUS",
        "VFIO_GROUP_SET_CONTAINER",
        "VFIO_SET_IOMMU",
        "VFIO_GROUP_GET_DEVICE_FD",
    ]
    kernel.log.clear()
    function.close()
    function.close()
    assert kernel.log == ["close device", "close group", "close container"]


def test_two_functions_share_a_container(kernel: FakeVfio) -> None:
    other = "0000:02:00.0"
    kernel.groups[26].devices[other] = FakeDevice()
    kernel.groups[27] = FakeGroup({"0000:03:00.0": FakeDevice()})
    with Container(kernel) as container:
        first = VfioFunction(container, PCI)
        second = VfioFunction(container, PCI._replace(address=other))
        third = VfioFunction(container, PCI._replace(address="0000:03:00.0", iommu_group=27))
        assert kernel.log.count("VFIO_SET_IOMMU") == 1
        assert kernel.log.count("open /dev/vfio/26") == 1
        first.dma_map(0x7F0000000000, PAGE, 0, writable=True)
        with pytest.raises(VhostPciError, match="overlaps an earlier mapping"):
            third.dma_map(0x7F0000000000, PAGE, 0, writable=True)
        first.close()
        assert kernel.groups[26].fd >= 0
        second.close()
        assert kernel.groups[26].fd == -1
        third.close()
        VfioFunction(container, PCI).close()  # the container is empty: the model is chosen anew
        assert kernel.log.count("VFIO_SET_IOMMU") == 2


def test_enabled_for_memory_and_bus_mastering(function: VfioFunction) -> None:
    assert function.read(Region.CONFIG, 4, 2) == b"\x06\x00"


# ---- regions ----------------------------------------------------------------------------------


def test_identity_and_regions(function: VfioFunction, kernel: FakeVfio) -> None:
    assert function.name == ADDRESS
    assert function.identity() == Identity(0x1AF4, 0x10F0, 0x020000, 1, 0x1AF4, 0x10F1)
    assert function.region_count() == 9
    areas = (Area(PAGE, PAGE),)
    assert function.region(0) == RegionInfo(0, 2 * PAGE, readable=True, writable=True, areas=areas)
    assert function.region(2).areas == (Area(0, 8 * PAGE),)
    assert function.region(Region.CONFIG).areas == ()
    assert function.region(4) == RegionInfo(4, 0, readable=False, writable=False, areas=())
    kernel.device.areas[2] = [(0, PAGE), (4 * PAGE, PAGE)]
    assert function.region(2).areas == (Area(0, PAGE), Area(4 * PAGE, PAGE))
    with pytest.raises(VhostPciError, match=r"cannot ask for region 9 of .*: invalid argument"):
        function.region(9)


def test_trapped_access(function: VfioFunction) -> None:
    function.write(0, 0x10, b"\x01\0\0\0")
    assert function.read(0, 0x10, 4) == b"\x01\0\0\0"
    assert function.read(2, 0x10, 4) == bytes(4)
    with pytest.raises(VhostPciError, match="cannot read 8 bytes at 0x1ffc of region 0 of 0000:01"):
        function.read(0, 2 * PAGE - 4, 8)
    with pytest.raises(VhostPciError, match="cannot write 4 bytes at 0x0 of region 4 of"):
        function.write(4, 0, b"1234")


def test_map_area(function: VfioFunction) -> None:
    with function.map_area(0, Area(PAGE, PAGE), writable=True) as mapping:
        mapping.array("u1", 8, 4)[:] = [1, 2, 3, 4]
    assert function.read(0, PAGE + 8, 4) == b"\1\2\3\4"
    with pytest.raises(VhostPciError, match="4096 bytes at 0x0 cannot be mapped"):
        function.map_area(0, Area(0, PAGE), writable=True)


def test_doorbells(function: VfioFunction) -> None:
    doorbell = function.doorbells(0, [0x800, 0x804])[0x804]
    assert isinstance(doorbell, Doorbell)
    assert doorbell.offset == 0x804
    os.pwrite(doorbell.fd, b"ring", doorbell.offset)
    assert function.read(0, 0x804, 4) == b"ring"
    for index, offset in ((0, 0x802), (0, 2 * PAGE), (4, 0)):
        with pytest.raises(VhostPciError, match="there is no register at"):
            function.doorbells(index, [offset])


# ---- interrupts, unplug, reset, DMA -------------------------------------------------------------


def test_irqs(function: VfioFunction, kernel: FakeVfio) -> None:
    assert [function.irq_count(index) for index in range(6)] == [0, 8, 0, 1, 1, 0]
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(9)]
    try:
        function.set_irqs(Irq.MSI, eventfds[:3])
        os.eventfd_write(kernel.device.armed[Irq.MSI][2], 1)
        assert os.eventfd_read(eventfds[2]) == 1
        function.set_irqs(Irq.MSI, eventfds[:8])
        assert len(kernel.device.armed[Irq.MSI]) == 8
        function.set_irqs(Irq.MSI, [])
        function.set_irqs(Irq.MSI, [])
        assert Irq.MSI not in kernel.device.armed
        with pytest.raises(VhostPciError, match=r"cannot set interrupt 1 of .*: invalid argument"):
            function.set_irqs(Irq.MSI, eventfds)
        with pytest.raises(VhostPciError, match="cannot set interrupt REQ of"):
            function.set_irqs(Irq.REQ, eventfds[:1])
    finally:
        for fd in eventfds:
            os.close(fd)


def test_unplug_is_seen(function: VfioFunction, kernel: FakeVfio) -> None:
    assert select.select([function], [], [], 0)[0] == []
    os.eventfd_write(kernel.device.armed[Irq.REQ][0], 1)
    assert select.select([function], [], [], 0)[0] == [function]
    kernel.device.gone = True
    for ask in (
        lambda: function.region(0),
        lambda: function.read(0, 0, 4),
        lambda: function.write(0, 0, b"1234"),
        lambda: function.irq_count(Irq.MSI),
        function.reset,
    ):
        with pytest.raises(DeviceGoneError, match="the function was unplugged or unbound"):
            ask()


def test_a_function_without_request_interrupt(kernel: FakeVfio) -> None:
    del kernel.device.vectors[Irq.REQ]
    with VfioFunction.attach(PCI, kernel) as function:
        assert function.irq_count(Irq.REQ) == 0
        assert select.select([function], [], [], 0)[0] == []


def test_reset(function: VfioFunction, kernel: FakeVfio) -> None:
    function.reset()
    assert kernel.device.resets == 1


def test_no_reset(kernel: FakeVfio) -> None:
    kernel.device.flags = abi.VFIO_DEVICE_FLAGS_PCI
    with (
        VfioFunction.attach(PCI, kernel) as function,
        pytest.raises(VhostPciError, match="no reset of its own"),
    ):
        function.reset()


def test_dma(function: VfioFunction, kernel: FakeVfio) -> None:
    function.dma_map(0x7F0000000000, 2 * PAGE, 0x100000, writable=True)
    function.dma_map(0x7F0000000000, PAGE, 0x200000, writable=False)
    with pytest.raises(VhostPciError, match="overlaps an earlier mapping"):
        function.dma_map(0x7F0000000000, PAGE, 0x101000, writable=True)
    with pytest.raises(VhostPciError, match="100 bytes at 0x300000: the IOMMU does not tr"):
        function.dma_map(0x7F0000000000, 100, 0x300000, writable=True)
    with pytest.raises(VhostPciError, match="may not lock that much memory; raise the limit: ulim"):
        function.dma_map(0x7F0000000000, kernel.lockable, 0x400000, writable=True)
    with pytest.raises(VhostPciError, match="cannot unmap from DMA 4096 bytes at 0x100000: inval"):
        function.dma_unmap(0x100000, PAGE)
    function.dma_unmap(0x100000, 2 * PAGE)
    with pytest.raises(VhostPciError, match="0 bytes were mapped there"):
        function.dma_unmap(0x100000, 2 * PAGE)
    function.dma_unmap(0x200000, PAGE)


def test_dma_that_the_kernel_refuses(function: VfioFunction, kernel: FakeVfio) -> None:
    """Beside a limit of locked memory: each with what it is, and what to do."""
    room = "the IOMMU does not translate such addresses or pages; see its address bits"
    for hole in (0xFEE00000, 1 << 48):
        with pytest.raises(VhostPciError, match=rf"at {hole:#x}: {room}"):
            function.dma_map(0x7F0000000000, PAGE, hole, writable=True)
    kernel.entries = 0
    with pytest.raises(VhostPciError, match=r"full of mappings; raise /sys/.*/dma_entry_limit"):
        function.dma_map(0x7F0000000000, PAGE, 0, writable=True)
    kernel.entries = 1
    for number, line in (
        (errno.EPERM, "the kernel lets this process map nothing for DMA; run as root, or with"),
        (
            errno.EFAULT,
            "the kernel does not map such memory for DMA, as a device's; use VFIO's own",
        ),
    ):
        kernel.refuses_dma = number
        with pytest.raises(VhostPciError, match=line):
            function.dma_map(0x7F0000000000, PAGE, 0, writable=True)
    kernel.refuses_dma = 0
    function.dma_map(0x7F0000000000, PAGE, 0, writable=True)
    function.dma_unmap(0, PAGE)


def test_iommu_info(kernel: FakeVfio) -> None:
    with Container(kernel) as container, VfioFunction(container, PCI):
        assert container.iommu_info() == IommuInfo(
            page_sizes=0x40201000,
            iova_ranges=((0, 0xFEDFFFFF), (0xFEF00000, (1 << 48) - 1)),
            mappings_left=65535,
        )


def test_iommu_info_needs_a_group(kernel: FakeVfio) -> None:
    with Container(kernel) as container, pytest.raises(VhostPciError, match="invalid argument"):
        container.iommu_info()


@pytest.mark.parametrize("answers", [True, False])
def test_closing_what_does_not_answer_takes_no_reset(kernel: FakeVfio, *, answers: bool) -> None:
    """The kernel would wait a minute for it; one that answers keeps its reset."""
    function = VfioFunction.attach(PCI, kernel)
    kernel.device.answers = answers
    assert function.identity().vendor == (0x1AF4 if answers else 0xFFFF)
    assert function.read(Region.CONFIG, 0, 2) == b"\xf4\x1a"
    function.close()
    assert (kernel.device.resettable, kernel.device.stalls) == (answers, 0)
    assert kernel.log[-3:] == ["close device", "close group", "close container"]
