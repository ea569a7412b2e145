"""VFIO containers and groups: which functions share one I/O address space.

The ladder (Documentation/driver-api/vfio.rst): open the container, check its API; open a group,
check that it is viable, set its container; with the first group choose the IOMMU model. Down in
reverse: functions (guest/vfio.py), groups, container.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from typing import TYPE_CHECKING

from guest import vfio_abi as abi
from guest.closing import Closing
from guest.errors import VhostPciError, errno_text
from guest.info_chain import InfoError, capabilities
from guest.named_tuple import NamedTuple
from guest.syscalls import KERNEL

if TYPE_CHECKING:
    from guest.syscalls import Syscalls

CONTAINER_PATH = "/dev/vfio/vfio"
GROUP_PATH = "/dev/vfio/{}"
_INFO_MAX = 1 << 20
_PERMISSION = "run as root, or as a user who may open it"
# Of VFIO_IOMMU_MAP_DMA (linux/vfio.h; drivers/vfio/vfio_iommu_type1.c).
_MAP_REFUSALS = {
    errno.ENOMEM: (
        "the process may not lock that much memory",
        "raise the limit: ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit",
    ),
    errno.EEXIST: ("the address overlaps an earlier mapping", ""),
    errno.ENOSPC: (
        "the container is full of mappings",
        "raise /sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
    ),
    errno.EINVAL: (
        "the IOMMU does not translate such addresses or pages",
        "see its address bits (in a VM: intel-iommu,aw-bits=48), and its group's reserved_regions",
    ),
    errno.EPERM: (
        "the kernel lets this process map nothing for DMA",
        "run as root, or with CAP_SYS_RAWIO where VFIO has no IOMMU",
    ),
    errno.EFAULT: (
        "the kernel does not map such memory for DMA, as a device's",
        "use VFIO's own container (CONFIG_VFIO_CONTAINER), not iommufd's",
    ),
}


def failure(
    operation: str, subject: str, error: OSError, remedies: dict[int, tuple[str, str]]
) -> VhostPciError:
    """The error for a refused call: cause and remedy by errno, else the system's words."""
    cause, remedy = remedies.get(error.errno or 0, (errno_text(error), ""))
    return VhostPciError(operation, subject, cause, remedy)


def ask_info(syscalls: Syscalls, fd: int, request: int, structure: ctypes.Structure) -> bytes:
    """An information ioctl, with as much room as its capability chain needs (linux/vfio.h).

    structure holds what the call takes; its first word, argsz, is set here. Raises OSError.
    """
    size = ctypes.sizeof(structure)
    while True:
        buffer = bytearray(bytes(structure).ljust(size, b"\0"))
        buffer[:4] = size.to_bytes(4, "little")
        syscalls.ioctl(fd, request, buffer)
        needed = int.from_bytes(buffer[:4], "little")
        if needed <= size:
            return bytes(buffer)
        if needed > _INFO_MAX:
            raise OSError(errno.EMSGSIZE, "The kernel's answer is too long")
        size = needed


class IommuInfo(NamedTuple):
    """What the container's IOMMU takes.

    page_sizes is their bit map; iova_ranges are (first, last), both inclusive, empty where the
    kernel does not tell; mappings_left is how many more dma_map it takes, None likewise.
    """

    page_sizes: int
    iova_ranges: tuple[tuple[int, int], ...]
    mappings_left: int | None


class _Group:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0


class Container(Closing):
    """An I/O address space, and the groups in it. Thread rule: one thread at a time.

    Args:
        syscalls: The kernel.

    Raises:
        VhostPciError: No VFIO here, or no permission.
    """

    def __init__(self, syscalls: Syscalls = KERNEL) -> None:
        self.syscalls = syscalls
        self._groups: dict[int, _Group] = {}
        self._fd = -1
        try:
            self._fd = syscalls.open(CONTAINER_PATH)
            version = syscalls.ioctl(self._fd, abi.VFIO_GET_API_VERSION, 0)
        except OSError as error:
            self.close()
            no_vfio = ("the kernel has no VFIO", "load it: modprobe vfio-pci")
            denied = (errno_text(error), _PERMISSION)
            remedies = {errno.ENOENT: no_vfio, errno.ENODEV: no_vfio, errno.EACCES: denied}
            raise failure("open", CONTAINER_PATH, error, remedies) from error
        if version != abi.VFIO_API_VERSION:
            self.close()
            raise VhostPciError("use", CONTAINER_PATH, f"its API version is {version}, not 0")

    def acquire_group(self, number: int) -> int:
        """The descriptor of a group, which belongs to the container until its last release.

        Raises:
            VhostPciError: The group cannot be used; the cause says why, the remedy what to bind.
        """
        if number not in self._groups:
            self._groups[number] = _Group(self._open_group(number))
        group = self._groups[number]
        group.users += 1
        return group.fd

    def release_group(self, number: int) -> None:
        """Undo one acquire_group."""
        group = self._groups[number]
        group.users -= 1
        if group.users == 0:
            # The kernel takes the group off the container (VFIO_GROUP_UNSET_CONTAINER) by itself.
            self.syscalls.close(self._groups.pop(number).fd)

    def _open_group(self, number: int) -> int:
        name = f"IOMMU group {number}"
        try:
            fd = self.syscalls.open(GROUP_PATH.format(number))
        except OSError as error:
            remedies = {
                errno.ENOENT: ("none of its functions is bound to vfio-pci", "bind them to it"),
                errno.EBUSY: ("in use by another process", "stop that one first"),
                errno.EACCES: (errno_text(error), _PERMISSION),
                errno.EPERM: (errno_text(error), _PERMISSION),
            }
            raise failure("open", name, error, remedies) from error
        with contextlib.ExitStack() as undo:
            undo.callback(self.syscalls.close, fd)
            self._check_viable(fd, number)
            self._join(fd, name)
            undo.pop_all()
        return fd

    def _check_viable(self, fd: int, number: int) -> None:
        name = f"IOMMU group {number}"
        try:
            answer = ask_info(self.syscalls, fd, abi.VFIO_GROUP_GET_STATUS, abi.VfioGroupStatus())
        except OSError as error:
            raise failure("ask for the status of", name, error, {}) from error
        flags = abi.VfioGroupStatus.from_buffer_copy(answer).flags
        if not flags & abi.VFIO_GROUP_FLAGS_VIABLE:
            raise VhostPciError(
                "use",
                name,
                "it is not viable: another driver holds one of its functions",
                f"bind all of /sys/kernel/iommu_groups/{number}/devices to vfio-pci",
            )
        if flags & abi.VFIO_GROUP_FLAGS_CONTAINER_SET:
            raise VhostPciError("use", name, "it belongs to another container already")

    def _join(self, fd: int, name: str) -> None:
        """Put the group into the container; the first one brings the IOMMU model."""
        try:
            argument = bytearray(self._fd.to_bytes(4, "little"))
            self.syscalls.ioctl(fd, abi.VFIO_GROUP_SET_CONTAINER, argument)
        except OSError as error:
            mixed = ("its IOMMU and the container's differ", "use a container of its own")
            remedies = {errno.EINVAL: mixed}
            raise failure("put into a container", name, error, remedies) from error
        if self._groups:
            return
        try:
            self.syscalls.ioctl(self._fd, abi.VFIO_SET_IOMMU, abi.VFIO_TYPE1v2_IOMMU)
        except OSError as error:
            trust = "modprobe vfio_iommu_type1 allow_unsafe_interrupts=1, where all functions are"
            remedies = {
                errno.ENODEV: ("vfio_iommu_type1 is not loaded", "modprobe vfio_iommu_type1"),
                errno.EPERM: (
                    "the IOMMU does not remap interrupts",
                    f"enable that (in a VM: intel-iommu,intremap=on), or {trust} trusted",
                ),
            }
            raise failure("choose an IOMMU model for", name, error, remedies) from error

    def iommu_info(self) -> IommuInfo:
        """VFIO_IOMMU_GET_INFO; a group must be there."""
        try:
            info = ask_info(
                self.syscalls, self._fd, abi.VFIO_IOMMU_GET_INFO, abi.VfioIommuType1Info()
            )
            raw = abi.VfioIommuType1Info.from_buffer_copy(info)
            first = raw.cap_offset if raw.flags & abi.VFIO_IOMMU_INFO_CAPS else 0
            ranges: tuple[tuple[int, int], ...] = ()
            left = None
            for capability, offset in capabilities(info, first):
                if capability == abi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
                    ranges = _iova_ranges(info, offset)
                elif capability == abi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
                    left = abi.VfioIommuType1InfoDmaAvail.from_buffer_copy(info, offset).avail
        except OSError as error:
            raise failure("ask for the IOMMU of", CONTAINER_PATH, error, {}) from error
        except InfoError as error:
            raise VhostPciError("read the IOMMU of", CONTAINER_PATH, str(error)) from error
        sizes = raw.iova_pgsizes if raw.flags & abi.VFIO_IOMMU_INFO_PGSIZES else 0
        return IommuInfo(sizes, ranges, left)

    def dma_map(self, address: int, size: int, iova: int, *, writable: bool) -> None:
        """Let every function of the container reach this process's memory; page aligned.

        Raises:
            VhostPciError: The kernel refuses it; the cause says why, the remedy what to do.
        """
        flags = abi.VFIO_DMA_MAP_FLAG_READ | (abi.VFIO_DMA_MAP_FLAG_WRITE if writable else 0)
        argsz = ctypes.sizeof(abi.VfioIommuType1DmaMap)
        argument = bytearray(abi.VfioIommuType1DmaMap(argsz, flags, address, iova, size))
        try:
            self.syscalls.ioctl(self._fd, abi.VFIO_IOMMU_MAP_DMA, argument)
        except OSError as error:
            subject = f"{size} bytes at {iova:#x}"
            raise failure("map for DMA", subject, error, _MAP_REFUSALS) from error

    def dma_unmap(self, iova: int, size: int) -> None:
        """Take back exactly one earlier dma_map."""
        argsz = ctypes.sizeof(abi.VfioIommuType1DmaUnmap)
        argument = bytearray(abi.VfioIommuType1DmaUnmap(argsz, 0, iova, size))
        subject = f"{size} bytes at {iova:#x}"
        try:
            self.syscalls.ioctl(self._fd, abi.VFIO_IOMMU_UNMAP_DMA, argument)
        except OSError as error:
            raise failure("unmap from DMA", subject, error, {}) from error
        done = abi.VfioIommuType1DmaUnmap.from_buffer_copy(argument).size
        if done != size:
            raise VhostPciError("unmap from DMA", subject, f"{done} bytes were mapped there")

    def close(self) -> None:
        """Let the groups and the container go; functions must be closed. Twice is fine."""
        for group in reversed(self._groups.values()):
            self.syscalls.close(group.fd)
        self._groups.clear()
        if self._fd >= 0:
            self.syscalls.close(self._fd)
        self._fd = -1


def _iova_ranges(info: bytes, offset: int) -> tuple[tuple[int, int], ...]:
    begin = offset + ctypes.sizeof(abi.VfioIommuType1InfoCapIovaRange)
    if begin > len(info):
        raise InfoError("the I/O address ranges are cut short")
    count = abi.VfioIommuType1InfoCapIovaRange.from_buffer_copy(info, offset).nr_iovas
    item = ctypes.sizeof(abi.VfioIovaRange)
    if begin + count * item > len(info):
        raise InfoError(f"{count} I/O address ranges in {len(info)} bytes")
    raw = [abi.VfioIovaRange.from_buffer_copy(info, begin + i * item) for i in range(count)]
    return tuple((part.start, part.end) for part in raw)
