"""A PCI function of this machine, by the kernel's VFIO: `guest.function.Function`.

The ladder: container, group (guest/vfio_container.py), device, memory and bus mastering enabled,
the unplug request's eventfd. Down in reverse.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING

from guest import vfio_abi as abi
from guest.closing import Closing
from guest.errors import DeviceGoneError, VhostPciError, errno_text
from guest.function import Doorbell, Irq, Region
from guest.info_chain import InfoError, region_info
from guest.mapping import Mapping
from guest.pci_config import (
    COMMAND,
    COMMAND_BUS_MASTER,
    COMMAND_MEMORY,
    HEADER_SIZE,
    REVISION,
    parse_identity,
)
from guest.syscalls import KERNEL
from guest.vfio_container import Container, ask_info, failure
from guest.write_combining import map_combining

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from guest.discovery import PciFunction
    from guest.function import Area, Identity, RegionInfo
    from guest.syscalls import Syscalls


class VfioFunction(Closing):
    """An open function, in a container that others may share.

    Thread rule: one thread at a time, for all functions of a container.

    Args:
        container: Stays the caller's, unless owned.
        pci: The function, bound to vfio-pci.
        owns_container: Close it with the function (or its failure to open).
        combine: BARs to map write-combining, by sysfs (guest/write_combining.py).

    Raises:
        VhostPciError: The function or its group cannot be used; the remedy says what to do.
    """

    def __init__(
        self,
        container: Container,
        pci: PciFunction,
        *,
        owns_container: bool = False,
        combine: Collection[int] = (),
    ) -> None:
        self.name = pci.address
        self._pci = pci
        self._combine = frozenset(combine)
        self._container = container
        self._syscalls = container.syscalls
        self._owns_container = owns_container
        self._group: int | None = None
        self._fd = -1
        self._request_fd = -1
        self._offsets: dict[int, int] = {}
        self._armed_irqs: set[int] = set()
        try:
            self._open(pci)
            self._enable()
            self._watch_unplug()
        except BaseException:
            self.close()
            raise

    @classmethod
    def attach(
        cls, pci: PciFunction, syscalls: Syscalls = KERNEL, *, combine: Collection[int] = ()
    ) -> VfioFunction:
        """Open a function in a container of its own."""
        return cls(Container(syscalls), pci, owns_container=True, combine=combine)

    def _open(self, pci: PciFunction) -> None:
        bind = f"bind it to vfio-pci (driverctl set-override {pci.address} vfio-pci)"
        if pci.iommu_group is None:
            raise VhostPciError(
                "open", self.name, "no IOMMU holds it", "enable one; in a VM, e.g. intel-iommu"
            )
        if "vfio" not in (pci.driver or ""):  # some VFs have a vfio driver of their own
            holder = f"it is bound to {pci.driver}" if pci.driver else "no driver is bound to it"
            raise VhostPciError("open", self.name, holder, bind)
        group_fd = self._container.acquire_group(pci.iommu_group)
        self._group = pci.iommu_group
        try:
            path = bytearray(pci.address.encode() + b"\0")
            self._fd = self._syscalls.ioctl(group_fd, abi.VFIO_GROUP_GET_DEVICE_FD, path)
            answer = ask_info(
                self._syscalls, self._fd, abi.VFIO_DEVICE_GET_INFO, abi.VfioDeviceInfo()
            )
        except OSError as error:
            remedies = {
                errno.ENODEV: ("vfio-pci does not hold it", bind),
                errno.EBUSY: ("in use by another process", "stop that one first"),
            }
            raise failure("open", self.name, error, remedies) from error
        info = abi.VfioDeviceInfo.from_buffer_copy(answer)
        if not info.flags & abi.VFIO_DEVICE_FLAGS_PCI or info.num_regions < len(Region):
            raise VhostPciError("open", self.name, "the kernel says that it is no PCI function")
        self._region_count = int(info.num_regions)
        self._irq_count = int(info.num_irqs)
        self._resets = bool(info.flags & abi.VFIO_DEVICE_FLAGS_RESET)

    def _enable(self) -> None:
        """The kernel opens a function without bus mastering, which MSI and DMA need."""
        command = int.from_bytes(self.read(Region.CONFIG, COMMAND, 2), "little")
        command |= COMMAND_MEMORY | COMMAND_BUS_MASTER
        self.write(Region.CONFIG, COMMAND, command.to_bytes(2, "little"))

    def _watch_unplug(self) -> None:
        """The kernel signals REQ when it wants the function back (unplug, unbind)."""
        self._request_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if self.irq_count(Irq.REQ):
            self._set_irqs(Irq.REQ, abi.VFIO_IRQ_SET_DATA_EVENTFD, [self._request_fd])

    def fileno(self) -> int:
        """Readable when the kernel wants the function back: close it then."""
        return self._request_fd

    def identity(self) -> Identity:
        """From configuration space."""
        return parse_identity(self.read(Region.CONFIG, 0, HEADER_SIZE))

    def region_count(self) -> int:
        """As many as the kernel says; fixed while the function is open."""
        return self._region_count

    def region(self, index: int) -> RegionInfo:
        """Ask the kernel."""
        return self._region(index)[0]

    def _region(self, index: int) -> tuple[RegionInfo, int]:
        """The region, and its offset in the device descriptor."""
        operation = f"ask for region {index} of"
        try:
            answer = ask_info(
                self._syscalls,
                self._fd,
                abi.VFIO_DEVICE_GET_REGION_INFO,
                abi.VfioRegionInfo(index=index),
            )
            return region_info(answer, index)
        except OSError as error:
            raise self._failure(operation, error) from error
        except InfoError as error:
            raise VhostPciError(operation, self.name, str(error)) from error

    def _offset(self, index: int) -> int:
        """Where a region begins in the device descriptor; never changes."""
        if index not in self._offsets:
            self._offsets[index] = self._region(index)[1]
        return self._offsets[index]

    def read(self, index: int, offset: int, size: int) -> bytes:
        """By pread(2) of the device; 1, 2 and 4 aligned bytes are one access."""
        operation = f"read {size} bytes at {offset:#x} of region {index} of"
        begin = self._offset(index) + offset
        data = b""
        while len(data) < size:
            try:
                part = self._syscalls.pread(self._fd, size - len(data), begin + len(data))
            except OSError as error:
                raise self._failure(operation, error) from error
            if not part:
                raise VhostPciError(operation, self.name, "the region ends before")
            data += part
        return data

    def write(self, index: int, offset: int, data: bytes) -> None:
        """By pwrite(2) of the device; 1, 2 and 4 aligned bytes are one access."""
        operation = f"write {len(data)} bytes at {offset:#x} of region {index} of"
        begin = self._offset(index) + offset
        done = 0
        while done < len(data):
            try:
                part = self._syscalls.pwrite(self._fd, data[done:], begin + done)
            except OSError as error:
                raise self._failure(operation, error) from error
            if not part:
                raise VhostPciError(operation, self.name, "the region ends before")
            done += part

    def map_area(self, index: int, area: Area, *, writable: bool) -> Mapping:
        """Map an area, or a part of one.

        The mapping keeps the device open until its close, unless the BAR is one to combine.
        """
        info, begin = self._region(index)
        end = area.offset + area.size
        if not any(a.offset <= area.offset and end <= a.offset + a.size for a in info.areas):
            cause = f"{area.size} bytes at {area.offset:#x} cannot be mapped"
            raise VhostPciError(f"map region {index} of", self.name, cause)
        if index in self._combine:
            syscalls = self._syscalls
            return map_combining(self._pci, index, area, writable=writable, syscalls=syscalls)
        name = f"{self.name} region {index}"
        return Mapping(self._fd, area.size, begin + area.offset, writable=writable, name=name)

    def doorbells(self, index: int, offsets: Sequence[int]) -> dict[int, Doorbell]:
        """The device descriptor and each register's offset in it; valid until close."""
        info, begin = self._region(index)
        for offset in offsets:
            if offset % 4 or offset + 4 > info.size or not info.writable:
                cause = f"there is no register at {offset:#x} to write"
                raise VhostPciError(f"get doorbells in region {index} of", self.name, cause)
        return {offset: Doorbell(self._fd, begin + offset) for offset in offsets}

    def events(self, index: int, offsets: Sequence[int]) -> dict[int, int]:
        """None: the kernel passes events as interrupts."""
        del index, offsets
        return {}

    def irq_count(self, index: int) -> int:
        """VFIO_DEVICE_GET_IRQ_INFO; an index that the function does not have has no vectors."""
        if index >= self._irq_count:
            return 0
        try:
            answer = ask_info(
                self._syscalls,
                self._fd,
                abi.VFIO_DEVICE_GET_IRQ_INFO,
                abi.VfioIrqInfo(index=index),
            )
        except OSError as error:
            # vfio-pci has no ERR for a function without PCI Express
            if error.errno == errno.EINVAL:
                return 0
            raise self._failure(f"ask for interrupt {index} of", error) from error
        info = abi.VfioIrqInfo.from_buffer_copy(answer)
        return int(info.count) if info.flags & abi.VFIO_IRQ_INFO_EVENTFD else 0

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        """VFIO_DEVICE_SET_IRQS. REQ is refused: it is what fileno() shows."""
        if index == Irq.REQ:
            raise VhostPciError("set interrupt REQ of", self.name, "fileno() has it")
        if index in self._armed_irqs:  # the kernel does not change the number of vectors
            self._set_irqs(index, abi.VFIO_IRQ_SET_DATA_NONE, ())
            self._armed_irqs.discard(index)
        if eventfds:
            self._set_irqs(index, abi.VFIO_IRQ_SET_DATA_EVENTFD, eventfds)
            self._armed_irqs.add(index)

    def _set_irqs(self, index: int, data: int, eventfds: Sequence[int]) -> None:
        argsz = ctypes.sizeof(abi.VfioIrqSet) + 4 * len(eventfds)
        flags = data | abi.VFIO_IRQ_SET_ACTION_TRIGGER
        header = abi.VfioIrqSet(argsz, flags, index, 0, len(eventfds))
        argument = bytearray(bytes(header) + struct.pack(f"<{len(eventfds)}i", *eventfds))
        try:
            self._syscalls.ioctl(self._fd, abi.VFIO_DEVICE_SET_IRQS, argument)
        except OSError as error:
            raise self._failure(f"set interrupt {index} of", error) from error

    def reset(self) -> None:
        """VFIO_DEVICE_RESET: the kernel resets the function and restores its configuration."""
        if not self._resets:
            raise VhostPciError("reset", self.name, "the function has no reset of its own")
        try:
            self._syscalls.ioctl(self._fd, abi.VFIO_DEVICE_RESET, 0)
        except OSError as error:
            raise self._failure("reset", error) from error

    def dma_map(self, address: int, size: int, iova: int, *, writable: bool) -> None:
        """For all functions of the container; address, size and iova are page aligned."""
        self._container.dma_map(address, size, iova, writable=writable)

    def dma_unmap(self, iova: int, size: int) -> None:
        """For all functions of the container."""
        self._container.dma_unmap(iova, size)

    def _failure(self, operation: str, error: OSError) -> VhostPciError:
        if error.errno == errno.ENODEV:
            return DeviceGoneError(operation, self.name, "the function was unplugged or unbound")
        return VhostPciError(operation, self.name, errno_text(error))

    def _spare_reset(self) -> None:
        """Have the kernel close a function that does not answer without a reset.

        It would wait a minute for the function to come out of that (drivers/pci/pci.c,
        pci_dev_wait), and nobody could unplug it meanwhile. The choice goes with the function.
        """
        try:
            answers = self.read(Region.CONFIG, REVISION, 4) != b"\xff\xff\xff\xff"
        except VhostPciError:
            answers = False
        if not answers:
            with contextlib.suppress(OSError):
                self._syscalls.write_attribute(f"{self._pci.sys_path}/reset_method", "\n")

    def close(self) -> None:
        """Let go: the device, which disables its interrupts, then the group. Twice is fine."""
        if self._fd >= 0:
            self._spare_reset()
            self._syscalls.close(self._fd)
        self._fd = -1
        if self._request_fd >= 0:
            os.close(self._request_fd)
        self._request_fd = -1
        if self._group is not None:
            self._container.release_group(self._group)
        self._group = None
        if self._owns_container:
            self._container.close()
