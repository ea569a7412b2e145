"""guest/vfio_user.py against a server on a raw socket. Refusals first."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.errors import VhostPciError
from guest.function import Area, Doorbell, Identity, Irq, RegionInfo
from guest.vfio_user import VfioUserFunction
from guest.vfio_user_abi import (
    Command,
    DeviceFlag,
    DeviceInfo,
    Header,
    IoEventFd,
    IoEventFdFlag,
    IoFds,
    IoFdType,
    IrqFlag,
    IrqInfo,
    IrqSet,
    SparseArea,
)
from guest.vfio_user_abi import RegionInfo as WireRegionInfo
from guest.vfio_user_wire import pack_reply, pack_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guest.vfio_user_server import Device, Server


# ---- negotiation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (pack_version({}, major=1), r"its version is 1\.0, ours is 0\.0"),
        (pack_version({}, minor=1), r"its version is 0\.1, ours is 0\.0"),
        (b"\0\0", "2 bytes where Version has 4"),
        (b"\0\0\0\0{}", "does not end with NUL"),
        (b"\0\0\0\0{\0", "is not JSON"),
        (b"\0\0\0\0\xff\0", "is not JSON"),
        (b"\0\0\0\0" + b"[" * 60000 + b"\0", "is not JSON"),
        (b"\0\0\0\0[]\0", "holds no capabilities object"),
        (b'\0\0\0\0{"capabilities":3}\0', "holds no capabilities object"),
        (pack_version({"max_msg_fds": 0}), "max_msg_fds is 0, not a positive integer"),
        (pack_version({"max_msg_fds": True}), "max_msg_fds is True"),
        (pack_version({"max_data_xfer_size": "1"}), "max_data_xfer_size is '1'"),
        (pack_version({"max_data_xfer_size": -1}), "max_data_xfer_size is -1"),
    ],
)
def test_version_refused(server: Server, device: Device, payload: bytes, cause: str) -> None:
    device.answers[Command.VERSION] = lambda header, _: (pack_reply(header, payload), [])
    with pytest.raises(VhostPciError, match=cause):
        VfioUserFunction(server.path)


@pytest.mark.parametrize(
    ("info", "cause"),
    [
        (DeviceInfo(16, 0, 9, 5), "this is not a PCI function"),
        (DeviceInfo(16, DeviceFlag.PCI, 8, 5), "with 8 regions"),
        (DeviceInfo(16, DeviceFlag.PCI, 1 << 31, 5), "with 2147483648 regions"),
        (DeviceInfo(16, DeviceFlag.PCI, 9, 1 << 31), "with 2147483648 interrupt indices"),
    ],
)
def test_device_refused(server: Server, device: Device, info: DeviceInfo, cause: str) -> None:
    device.answers[Command.DEVICE_GET_INFO] = lambda header, _: (
        pack_reply(header, info.pack()),
        [],
    )
    with pytest.raises(VhostPciError, match=cause):
        VfioUserFunction(server.path)


def test_limits_that_are_absent_are_the_specifications(server: Server, device: Device) -> None:
    device.answers[Command.VERSION] = lambda header, _: (pack_reply(header, b"\0\0\0\0"), [])
    eventfd = os.eventfd(0)
    with VfioUserFunction(server.path) as function:
        function.set_irqs(Irq.MSI, [eventfd] * 3)
    os.close(eventfd)
    assert [fds for command, _, fds in device.log if command == Command.DEVICE_SET_IRQS] == [1] * 3


# ---- regions and windows -----------------------------------------------------------------------


def test_identity(function: VfioUserFunction) -> None:
    assert function.identity() == Identity(0x1AF4, 0x10F0, 0x020000, 1, 0x1AF4, 0x10F1)
    assert function.region_count() == 10


def test_region_without_descriptor_is_trapped_only(
    function: VfioUserFunction, device: Device
) -> None:
    info = WireRegionInfo(32, 7, 2, 0, 8192, 0).pack()
    device.answers[Command.DEVICE_GET_REGION_INFO] = lambda header, _: (
        pack_reply(header, info),
        [],
    )
    assert function.region(2) == RegionInfo(2, 8192, readable=True, writable=True, areas=())


def test_region_is_asked_anew_and_in_two_steps(function: VfioUserFunction, device: Device) -> None:
    assert function.region(2).areas == (Area(0, 4096), Area(8192, 4096))
    device.window_areas = [SparseArea(4096 * i, 4096) for i in range(0, 4096, 2)]
    device.window_size = 1 << 24
    info = function.region(2)
    assert info.size == 1 << 24
    assert info.areas == tuple(Area(4096 * i, 4096) for i in range(0, 4096, 2))
    device.window_areas = []
    assert function.region(2).areas == ()
    assert function.region(9) == RegionInfo(9, 0, readable=True, writable=False, areas=())
    with pytest.raises(VhostPciError, match=r"ask for region 11 of .*refuses"):
        function.region(11)


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (WireRegionInfo(32, 0, 3), "information of region 3 in answer to 2"),
        (WireRegionInfo(1 << 31, 0, 2), "the answer needs 2147483648 bytes, too many"),
    ],
)
def test_region_refused(
    function: VfioUserFunction, device: Device, reply: WireRegionInfo, cause: str
) -> None:
    device.answers[Command.DEVICE_GET_REGION_INFO] = lambda header, _: (
        pack_reply(header, reply.pack()),
        [device.file],
    )
    with pytest.raises(VhostPciError, match=cause):
        function.region(2)


def test_region_that_grows_for_ever(function: VfioUserFunction, device: Device) -> None:
    def grow(header: Header, payload: bytes) -> tuple[bytes, list[int]]:
        argsz = WireRegionInfo.unpack(payload).argsz + 16
        return pack_reply(header, WireRegionInfo(argsz, 0xF, 2, 32, 8192).pack()), [device.file]

    device.answers[Command.DEVICE_GET_REGION_INFO] = grow
    with pytest.raises(VhostPciError, match="the answer needs 96 bytes, too many"):
        function.region(2)


def test_map_area(function: VfioUserFunction, device: Device) -> None:
    os.pwrite(device.file, b"from VM1", 4096 + 8192)
    with function.map_area(2, Area(8192, 4096), writable=True) as mapping:
        view = mapping.array("u1", count=8)
        assert bytes(view) == b"from VM1"
        view[:] = list(b"from VM2")
        del view
    assert os.pread(device.file, 8, 4096 + 8192) == b"from VM2"


def test_mapping_outlives_the_function(server: Server, device: Device) -> None:
    with VfioUserFunction(server.path) as function:
        mapping = function.map_area(2, Area(0, 4096), writable=False)
    os.pwrite(device.file, b"later", 4096)
    assert bytes(mapping.array("u1", count=5)) == b"later"
    mapping.close()


def test_map_area_refused(function: VfioUserFunction, device: Device) -> None:
    for area in (Area(4096, 4096), Area(0, 8192), Area(1 << 40, 4096)):
        with pytest.raises(VhostPciError, match=r"cannot be mapped .any more.; ask for the region"):
            function.map_area(2, area, writable=True)
    device.window_offset = 65536 - 4096
    with pytest.raises(VhostPciError, match="its file ends at 65536, the area at 73728"):
        function.map_area(2, Area(8192, 4096), writable=True)
    device.window_offset = 1 << 63
    with pytest.raises(VhostPciError, match="its file ends at 65536"):
        function.map_area(2, Area(0, 4096), writable=True)


def test_read_only_descriptor_is_not_mapped_for_writing(
    function: VfioUserFunction, device: Device
) -> None:
    writable, device.file = device.file, os.open(f"/proc/self/fd/{device.file}", os.O_RDONLY)
    os.close(writable)
    with pytest.raises(VhostPciError, match=r"cannot map 4096 bytes of .* region 2: permission"):
        function.map_area(2, Area(0, 4096), writable=True)
    function.map_area(2, Area(0, 4096), writable=False).close()


def test_access_is_cut_to_the_servers_limit(function: VfioUserFunction, device: Device) -> None:
    data = bytes(range(150))
    function.write(0, 8, data)
    assert function.read(0, 8, 150) == data
    assert bytes(device.regions[0][8:158]) == data
    sizes = [
        struct.unpack_from("<QII", payload)
        for command, payload, _ in device.log
        if command == Command.REGION_WRITE
    ]
    assert sizes == [(8, 0, 64), (72, 0, 64), (136, 0, 22)]
    assert function.read(0, 0, 0) == b""
    with pytest.raises(VhostPciError, match="cannot read 8 bytes at 0x1ffc of region 0 of vfio-us"):
        function.read(0, 8188, 8)


def test_capabilities_told_to_the_server(function: VfioUserFunction, device: Device) -> None:
    assert function.name.startswith("vfio-user:/")
    assert device.client_capabilities == {
        "max_msg_fds": 253,
        "max_data_xfer_size": 1 << 20,
        "vhost_pci": {"dynamic_windows": True, "events": True},
    }


# ---- doorbells ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b"", bytes(8)], ids=["40 bytes", "48 bytes, libvfio-user"])
def test_doorbells(function: VfioUserFunction, device: Device, tail: bytes) -> None:
    device.doorbell_tail = tail
    doorbells = function.doorbells(0, [0x800, 0x808])
    assert doorbells.keys() == {0x800, 0x808}
    assert all(doorbell.offset is None for doorbell in doorbells.values())
    os.eventfd_write(doorbells[0x800].fd, 1)
    os.eventfd_write(doorbells[0x808].fd, 2)
    assert os.eventfd_read(device.call) == 3
    again = function.doorbells(0, [0x808])
    assert isinstance(again[0x808], Doorbell)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(doorbells[0x800].fd)


def test_doorbells_that_are_not_there(function: VfioUserFunction, device: Device) -> None:
    earlier = function.doorbells(0, [0x800])
    with pytest.raises(VhostPciError, match="the server gives no eventfd for 0x804"):
        function.doorbells(0, [0x800, 0x804])
    os.eventfd_write(earlier[0x800].fd, 1)  # the earlier ones stay
    with pytest.raises(VhostPciError, match=r"get doorbells in region 2 of .*the server refuses"):
        function.doorbells(2, [0x800])
    assert function.doorbells(0, []) == {}
    assert device.log[-1][0] == Command.DEVICE_GET_REGION_IO_FDS


@pytest.mark.parametrize(
    "part",
    [
        IoEventFd(0x800, 4, 0, IoFdType.IOREGIONFD),
        IoEventFd(0x800, 4, 0, IoFdType.IOEVENTFD_SHADOW),
        IoEventFd(0x800, 4, 0, IoFdType.IOEVENTFD, IoEventFdFlag.DATAMATCH),
        IoEventFd(0x800, 8, 0),
    ],
)
def test_doorbells_that_cannot_be_rung(
    function: VfioUserFunction, device: Device, part: IoEventFd
) -> None:
    device.doorbells = [part]
    with pytest.raises(VhostPciError, match="gives no eventfd for 0x800"):
        function.doorbells(0, [0x800])


def test_doorbells_refused(function: VfioUserFunction, device: Device) -> None:
    device.doorbells = [IoEventFd(0x800, 4, 1)]
    with pytest.raises(VhostPciError, match="descriptor 1 of 1"):
        function.doorbells(0, [0x800])
    device.doorbells = [IoEventFd(0x800, 4, 0)]
    honest, device.call = device.call, device.file
    with pytest.raises(VhostPciError, match="a descriptor that is not an eventfd"):
        function.doorbells(0, [0x800])
    device.call = honest
    for answer in (IoFds(16, 0, 1), IoFds(16, 0, 0, 1 << 31), IoFds(16, 0, 0, 1)):
        device.answers[Command.DEVICE_GET_REGION_IO_FDS] = lambda header, _, answer=answer: (  # type: ignore[misc]
            pack_reply(header, answer.pack()),
            [device.call],
        )
        with pytest.raises(VhostPciError, match="the server's answer is wrong"):
            function.doorbells(0, [0x800])


# ---- interrupts, reset, DMA --------------------------------------------------------------------


def test_irq_counts(function: VfioUserFunction, device: Device) -> None:
    assert [function.irq_count(index) for index in range(6)] == [0, 4, 0, 0, 0, 0]
    device.answers[Command.DEVICE_GET_IRQ_INFO] = lambda header, _: (
        pack_reply(header, IrqInfo(16, IrqFlag.EVENTFD, 2, 4).pack()),
        [],
    )
    with pytest.raises(VhostPciError, match="information of interrupt 2 in answer to 1"):
        function.irq_count(Irq.MSI)


def test_set_irqs(function: VfioUserFunction, device: Device) -> None:
    with contextlib.ExitStack() as stack:
        eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(5)]
        for fd in eventfds:
            stack.callback(os.close, fd)
        function.set_irqs(Irq.MSI, eventfds[:3])
        for vector in range(3):
            os.eventfd_write(device.eventfds[Irq.MSI, vector], vector + 1)
        assert [os.eventfd_read(fd) for fd in eventfds[:3]] == [1, 2, 3]
        function.set_irqs(Irq.MSI, eventfds[3:4])
        assert device.eventfds.keys() == {(Irq.MSI, 0)}
        function.set_irqs(Irq.MSI, [])
        function.set_irqs(Irq.MSI, [])
        assert device.eventfds == {}
        with pytest.raises(VhostPciError, match=r"set interrupt 1 of .*refuses \(Invalid argument"):
            function.set_irqs(Irq.MSI, eventfds)
        assert device.eventfds == {}
        with pytest.raises(VhostPciError, match="bad file descriptor"):
            function.set_irqs(Irq.MSI, [-1])
    sets = [
        (IrqSet.unpack(payload), fds)
        for command, payload, fds in device.log
        if command == Command.DEVICE_SET_IRQS
    ]
    assert sets == [
        (IrqSet(20, 0x24, 1, 0, 2), 2),
        (IrqSet(20, 0x24, 1, 2, 1), 1),
        (IrqSet(20, 0x21, 1, 0, 0), 0),
        (IrqSet(20, 0x24, 1, 0, 1), 1),
        (IrqSet(20, 0x21, 1, 0, 0), 0),
        (IrqSet(20, 0x24, 1, 0, 2), 2),
        (IrqSet(20, 0x24, 1, 2, 2), 2),
        (IrqSet(20, 0x24, 1, 4, 1), 1),
        (IrqSet(20, 0x21, 1, 0, 0), 0),
    ]
    assert function.region_count() == 10  # a descriptor that is none has not hurt the stream


def test_reset_and_dma(function: VfioUserFunction, device: Device) -> None:
    function.reset()
    function.dma_map(0x7F0000000000, 4096, 0x10000, writable=True)
    function.dma_map(0x7F0000000000, 4096, 0x20000, writable=False)
    function.dma_unmap(0x10000, 4096)
    assert device.log[-4:] == [
        (Command.DEVICE_RESET, b"", 0),
        (Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x10000, 4096), 0),
        (Command.DMA_MAP, struct.pack("<IIQQQ", 32, 1, 0, 0x20000, 4096), 0),
        (Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x10000, 4096), 0),
    ]


# ---- anything at all ---------------------------------------------------------------------------


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(payload=st.binary(max_size=200), fds=st.integers(0, 3), data=st.data())
def test_any_answer_is_judged(
    server: Server, device: Device, payload: bytes, fds: int, data: st.DataObject
) -> None:
    """Whatever bytes and descriptors an answer has: a result, or one clear error, and no leak."""
    command = data.draw(st.sampled_from(sorted(device_answers())))
    ask = device_answers()[command]
    device.answers = {
        command: lambda header, _: (pack_reply(header, payload), [device.file] * fds),
    }
    with contextlib.suppress(VhostPciError), VfioUserFunction(server.path) as function:
        ask(function)


def device_answers() -> dict[Command, Callable[[VfioUserFunction], object]]:
    return {
        Command.VERSION: lambda function: function.name,
        Command.DEVICE_GET_INFO: lambda function: function.region_count(),
        Command.DEVICE_GET_REGION_INFO: lambda function: function.region(2),
        Command.DEVICE_GET_REGION_IO_FDS: lambda function: function.doorbells(0, [0x800]),
        Command.DEVICE_GET_IRQ_INFO: lambda function: function.irq_count(1),
        Command.REGION_READ: lambda function: function.read(0, 0, 4),
        Command.REGION_WRITE: lambda function: function.write(0, 0, b"1234"),
        Command.DMA_UNMAP: lambda function: function.dma_unmap(0, 4096),
    }
