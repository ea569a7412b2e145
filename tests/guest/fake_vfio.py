"""A kernel's VFIO behind guest.syscalls, for machines without one: it refuses what the kernel does.

Source: drivers/vfio of Linux 6.1, by behaviour. Descriptors are real ones (memory files), so that
leaks show and areas can really be mapped; a device's regions lie at index << 40, as vfio-pci has
them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from guest import vfio_abi as abi
from guest.function import Irq, Region
from guest.syscalls import Syscalls

PAGE = 4096
IOVA_RANGES = ((0, 0xFEDFFFFF), (0xFEF00000, (1 << 48) - 1))
CONFIG = struct.pack("<HHHHI32xHH", 0x1AF4, 0x10F0, 0, 0, 0x02000001, 0x1AF4, 0x10F1)


@dataclass
class FakeDevice:
    """One function; sizes and areas by region index."""

    sizes: dict[int, int] = field(
        default_factory=lambda: {0: 2 * PAGE, 2: 8 * PAGE, Region.CONFIG: PAGE}
    )
    areas: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: {0: [(PAGE, PAGE)]})
    vectors: dict[int, int] = field(default_factory=lambda: {Irq.MSI: 8, Irq.ERR: 1, Irq.REQ: 1})
    flags: int = abi.VFIO_DEVICE_FLAGS_PCI | abi.VFIO_DEVICE_FLAGS_RESET
    gone: bool = False
    answers: bool = True
    resettable: bool = True
    stalls: int = 0  # minutes spent on resetting a function that does not answer
    resets: int = 0
    armed: dict[int, list[int]] = field(default_factory=dict)


@dataclass
class FakeGroup:
    devices: dict[str, FakeDevice]
    viable: bool = True
    container: int = -1
    fd: int = -1


@dataclass
class FakeContainer:
    model: int = -1
    mappings: dict[int, tuple[int, int, int]] = field(default_factory=dict)


class FakeVfio(Syscalls):
    """The kernel's side. Attributes are the machine's state; log is what was asked, in order."""

    def __init__(self) -> None:
        self.device = FakeDevice()
        self.groups = {26: FakeGroup({"0000:01:00.0": self.device})}
        self.type1_loaded = True
        self.remaps_interrupts = True
        self.lockable = 1 << 20
        self.entries = 65535  # dma_entry_limit
        self.refuses_dma = 0  # the error of a kernel that maps nothing of this process's
        self.open_errors: dict[str, int] = {}
        self.log: list[str] = []
        self._containers: dict[int, FakeContainer] = {}
        self._group_fds: dict[int, FakeGroup] = {}
        self._device_fds: dict[int, FakeDevice] = {}

    def open(self, path: str) -> int:
        self.log.append(f"open {path}")
        if path in self.open_errors:
            raise _error(self.open_errors[path])
        if path == "/dev/vfio/vfio":
            fd = os.memfd_create(path)
            self._containers[fd] = FakeContainer()
            return fd
        if not path.startswith("/dev/vfio/"):
            return super().open(path)
        group = self.groups.get(int(path.removeprefix("/dev/vfio/")))
        if group is None:
            raise _error(errno.ENOENT)
        if group.fd >= 0:
            raise _error(errno.EBUSY)
        group.fd = os.memfd_create(path)
        self._group_fds[group.fd] = group
        return group.fd

    def close(self, fd: int) -> None:
        if fd in self._containers:
            self.log.append("close container")
            assert not any(group.container == fd for group in self._group_fds.values())
            del self._containers[fd]
        elif fd in self._group_fds:
            self.log.append("close group")
            group = self._group_fds.pop(fd)
            assert not any(device in group.devices.values() for device in self._device_fds.values())
            self._leave(group)
        elif fd in self._device_fds:
            self.log.append("close device")
            device = self._device_fds.pop(fd)
            device.stalls += device.resettable and not device.answers
            for index in list(device.armed):
                _disarm(device, index)
        super().close(fd)

    def _leave(self, group: FakeGroup) -> None:
        """The last group takes the IOMMU model and its mappings along."""
        fd, group.container, group.fd = group.container, -1, -1
        if fd >= 0 and not any(other.container == fd for other in self._group_fds.values()):
            self._containers[fd] = FakeContainer()

    def ioctl(self, fd: int, request: int, argument: int | bytearray) -> int:
        name = next(
            name
            for name, value in vars(abi).items()
            if name.startswith("VFIO_") and value == request and _belongs(name, fd, self)
        )
        self.log.append(name)
        handler = getattr(self, "_" + name.removeprefix("VFIO_").lower())
        result = handler(fd, argument)
        return 0 if result is None else int(result)

    def kind(self, fd: int) -> str:
        if fd in self._containers:
            return "container"
        return "group" if fd in self._group_fds else "device"

    # ---- container

    def _get_api_version(self, _fd: int, argument: int) -> int:
        assert argument == 0
        return 0

    def _set_iommu(self, fd: int, model: int) -> None:
        container = self._containers[fd]
        if not any(group.container == fd for group in self._group_fds.values()):
            raise _error(errno.EINVAL)
        if container.model >= 0:
            raise _error(errno.EINVAL)
        if not self.type1_loaded or model not in {abi.VFIO_TYPE1_IOMMU, abi.VFIO_TYPE1v2_IOMMU}:
            raise _error(errno.ENODEV)
        if not self.remaps_interrupts:
            raise _error(errno.EPERM)
        container.model = model

    def _model(self, fd: int) -> FakeContainer:
        container = self._containers[fd]
        if container.model < 0:
            raise _error(errno.EINVAL)
        return container

    def _iommu_get_info(self, fd: int, argument: bytearray) -> None:
        self._model(fd)
        room = _argsz(argument, 16)
        chain = bytes(abi.VfioIommuType1InfoCapIovaRange((1, 1, 24 + 48), 2))
        chain += b"".join(struct.pack("<2Q", *each) for each in IOVA_RANGES)
        left = self.entries - len(self._model(fd).mappings)
        chain += bytes(abi.VfioIommuType1InfoDmaAvail((3, 1, 0), left))
        flags = abi.VFIO_IOMMU_INFO_PGSIZES | abi.VFIO_IOMMU_INFO_CAPS
        fits = room >= 24 + len(chain)
        info = abi.VfioIommuType1Info(24 + len(chain), flags, 0x40201000, 24 if fits else 0)
        argument[:24] = bytes(info)
        if fits:
            argument[24:] = chain

    def _iommu_map_dma(self, fd: int, argument: bytearray) -> None:
        container = self._model(fd)
        raw = abi.VfioIommuType1DmaMap.from_buffer_copy(argument)
        rights = abi.VFIO_DMA_MAP_FLAG_READ | abi.VFIO_DMA_MAP_FLAG_WRITE
        if raw.argsz < 32 or not raw.flags & rights or raw.flags & ~rights:
            raise _error(errno.EINVAL)
        if not raw.size or (raw.vaddr | raw.iova | raw.size) % PAGE:
            raise _error(errno.EINVAL)
        for iova, (size, _, _) in container.mappings.items():
            if iova < raw.iova + raw.size and raw.iova < iova + size:
                raise _error(errno.EEXIST)
        if sum(size for size, _, _ in container.mappings.values()) + raw.size > self.lockable:
            raise _error(errno.ENOMEM)
        last = raw.iova + raw.size - 1
        if not any(begin <= raw.iova and last <= end for begin, end in IOVA_RANGES):
            raise _error(errno.EINVAL)
        if len(container.mappings) == self.entries:
            raise _error(errno.ENOSPC)
        if self.refuses_dma:
            raise _error(self.refuses_dma)
        container.mappings[raw.iova] = (raw.size, raw.vaddr, raw.flags)

    def _iommu_unmap_dma(self, fd: int, argument: bytearray) -> None:
        container = self._model(fd)
        raw = abi.VfioIommuType1DmaUnmap.from_buffer_copy(argument)
        if raw.argsz < 24 or not raw.size or (raw.iova | raw.size) % PAGE:
            raise _error(errno.EINVAL)
        inside = {
            iova: size
            for iova, (size, _, _) in container.mappings.items()
            if iova < raw.iova + raw.size and raw.iova < iova + size
        }
        for iova, size in inside.items():  # type1v2 never cuts a mapping
            if iova < raw.iova or iova + size > raw.iova + raw.size:
                raise _error(errno.EINVAL)
        for iova in inside:
            del container.mappings[iova]
        argument[16:24] = struct.pack("<Q", sum(inside.values()))

    # ---- group

    def _group_get_status(self, fd: int, argument: bytearray) -> None:
        group = self._group_fds[fd]
        _argsz(argument, 8)
        viable = abi.VFIO_GROUP_FLAGS_VIABLE if group.viable else 0
        joined = abi.VFIO_GROUP_FLAGS_CONTAINER_SET if group.container >= 0 else 0
        argument[4:8] = struct.pack("<I", viable | joined)

    def _group_set_container(self, fd: int, argument: bytearray) -> None:
        group = self._group_fds[fd]
        (container,) = struct.unpack("<i", argument)
        if group.container >= 0 or container not in self._containers:
            raise _error(errno.EINVAL)
        if not group.viable:
            raise _error(errno.EPERM)
        group.container = container

    def _group_get_device_fd(self, fd: int, argument: bytearray) -> int:
        group = self._group_fds[fd]
        assert argument.endswith(b"\0")
        if group.container < 0 or self._containers[group.container].model < 0:
            raise _error(errno.EINVAL)
        device = group.devices.get(argument[:-1].decode())
        if device is None:
            raise _error(errno.ENODEV)
        device_fd = os.memfd_create("vfio-device")
        os.ftruncate(device_fd, 10 << 40)
        os.pwrite(device_fd, CONFIG, Region.CONFIG << 40)
        self._device_fds[device_fd] = device
        return device_fd

    # ---- device

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._check_access(fd, size, offset)
        data = super().pread(fd, size, offset)
        at = offset & ((1 << 40) - 1)
        if self._device(fd).answers or (offset >> 40 == Region.CONFIG and at + size <= 4):
            return data  # the ids are the kernel's own copy
        return b"\xff" * len(data)

    def write_attribute(self, path: str, value: str) -> None:
        assert (Path(path).name, value) == ("reset_method", "\n")
        group = next(g for g in self.groups.values() if Path(path).parent.name in g.devices)
        group.devices[Path(path).parent.name].resettable = False

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self._check_access(fd, len(data), offset)
        return super().pwrite(fd, data, offset)

    def _check_access(self, fd: int, size: int, offset: int) -> None:
        device = self._device(fd)
        index, at = offset >> 40, offset & ((1 << 40) - 1)
        if at + size > device.sizes.get(index, 0):
            raise _error(errno.EINVAL)

    def _device(self, fd: int) -> FakeDevice:
        device = self._device_fds[fd]
        if device.gone:
            raise _error(errno.ENODEV)
        return device

    def _device_get_info(self, fd: int, argument: bytearray) -> None:
        device = self._device(fd)
        _argsz(argument, 16)
        argument[4:16] = struct.pack("<III", device.flags, 9, 5)

    def _device_get_region_info(self, fd: int, argument: bytearray) -> None:
        device = self._device(fd)
        room = _argsz(argument, 32)
        index = abi.VfioRegionInfo.from_buffer_copy(argument).index
        if index >= len(Region):
            raise _error(errno.EINVAL)
        size = device.sizes.get(index, 0)
        info = abi.VfioRegionInfo(32, 3 if size else 0, index, 0, size, index << 40)
        chain = b""
        if size and index <= Region.BAR5:
            info.flags |= abi.VFIO_REGION_INFO_FLAG_MMAP
        if index in device.areas:
            areas = device.areas[index]
            chain = bytes(abi.VfioRegionInfoCapSparseMmap((1, 1, 0), len(areas)))
            chain += b"".join(struct.pack("<QQ", *area) for area in areas)
            info.flags |= abi.VFIO_REGION_INFO_FLAG_CAPS
            info.argsz = 32 + len(chain)
            info.cap_offset = 32 if room >= info.argsz else 0
        argument[:32] = bytes(info)
        if chain and room >= info.argsz:
            argument[32:] = chain

    def _device_get_irq_info(self, fd: int, argument: bytearray) -> None:
        device = self._device(fd)
        _argsz(argument, 16)
        index = abi.VfioIrqInfo.from_buffer_copy(argument).index
        if index >= len(Irq) or (index in {Irq.ERR, Irq.REQ} and index not in device.vectors):
            raise _error(errno.EINVAL)
        flags = abi.VFIO_IRQ_INFO_EVENTFD | abi.VFIO_IRQ_INFO_NORESIZE
        argument[4:16] = struct.pack("<III", flags, index, device.vectors.get(index, 0))

    def _device_set_irqs(self, fd: int, argument: bytearray) -> None:
        device = self._device(fd)
        header = ctypes.sizeof(abi.VfioIrqSet)
        raw = abi.VfioIrqSet.from_buffer_copy(argument)
        trigger = abi.VFIO_IRQ_SET_ACTION_TRIGGER
        vectors = device.vectors.get(raw.index, 0)
        if raw.argsz != len(argument) or raw.start + raw.count > vectors:
            raise _error(errno.EINVAL)
        if raw.flags == trigger | abi.VFIO_IRQ_SET_DATA_NONE and raw.count == 0:
            if raw.index not in device.armed:
                raise _error(errno.EINVAL)
            _disarm(device, raw.index)
        elif raw.flags == trigger | abi.VFIO_IRQ_SET_DATA_EVENTFD and raw.count:
            if raw.argsz != header + 4 * raw.count or raw.index in device.armed:
                raise _error(errno.EINVAL)
            fds = struct.unpack_from(f"<{raw.count}i", argument, header)
            device.armed[raw.index] = [os.dup(each) for each in fds]
        else:
            raise _error(errno.EINVAL)

    def _device_reset(self, fd: int, argument: int) -> None:
        assert argument == 0
        self._device(fd).resets += 1


def _belongs(name: str, fd: int, kernel: FakeVfio) -> bool:
    """Whether an ioctl's name is one of this descriptor's kind: numbers are used twice."""
    kind = {"GROUP": "group", "DEVICE": "device"}.get(name.split("_")[1], "container")
    return kind == kernel.kind(fd)


def _argsz(argument: bytearray, least: int) -> int:
    room = int.from_bytes(argument[:4], "little")
    if room < least or room != len(argument):
        raise _error(errno.EINVAL)
    return room


def _disarm(device: FakeDevice, index: int) -> None:
    for fd in device.armed.pop(index):
        os.close(fd)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
