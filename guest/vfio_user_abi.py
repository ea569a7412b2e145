"""The vfio-user protocol, version 0.0, as declarations: what client and server both know.

Source: vfio-user.rst (QEMU docs/interop/vfio-user.rst, libvfio-user docs/vfio-user.rst), which
takes the payloads from linux/vfio.h. Offsets there and here count from the end of the header.
All fields are little endian, unpadded.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from guest import vfio_abi

MAJOR = 0
MINOR = 0

# sun_path of sockaddr_un holds 108 bytes with its terminating NUL: unix(7).
SOCKET_PATH_MAX = 107
# SCM_MAX_FD: the kernel passes no more descriptors in one message, unix(7).
MESSAGE_FDS_MAX = 253


class WireError(ValueError):
    """Bytes of the other side that break the protocol; the text says how, lower case."""


class Command(enum.IntEnum):
    """Commands; DMA_READ and DMA_WRITE go from server to client, all others the other way."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class HeaderFlag(enum.IntFlag):
    """Header flags; the low four bits are the type: 0 a request, 1 a reply."""

    REPLY = 1 << 0
    NO_REPLY = 1 << 4
    ERROR = 1 << 5


TYPE_MASK = 0xF


class DmaFlag(enum.IntFlag):
    """Flags of DMA_MAP."""

    READ = vfio_abi.VFIO_DMA_MAP_FLAG_READ
    WRITE = vfio_abi.VFIO_DMA_MAP_FLAG_WRITE


class DmaUnmapFlag(enum.IntFlag):
    """Flags of DMA_UNMAP."""

    GET_DIRTY_BITMAP = vfio_abi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
    ALL = vfio_abi.VFIO_DMA_UNMAP_FLAG_ALL


class DeviceFlag(enum.IntFlag):
    """Flags of DEVICE_GET_INFO."""

    RESET = vfio_abi.VFIO_DEVICE_FLAGS_RESET
    PCI = vfio_abi.VFIO_DEVICE_FLAGS_PCI


class RegionFlag(enum.IntFlag):
    """Flags of DEVICE_GET_REGION_INFO."""

    READ = vfio_abi.VFIO_REGION_INFO_FLAG_READ
    WRITE = vfio_abi.VFIO_REGION_INFO_FLAG_WRITE
    MMAP = vfio_abi.VFIO_REGION_INFO_FLAG_MMAP
    CAPS = vfio_abi.VFIO_REGION_INFO_FLAG_CAPS


class RegionCapability(enum.IntEnum):
    """Capability ids in a region's information."""

    SPARSE_MMAP = vfio_abi.VFIO_REGION_INFO_CAP_SPARSE_MMAP
    TYPE = vfio_abi.VFIO_REGION_INFO_CAP_TYPE
    MSIX_MAPPABLE = vfio_abi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE


class IrqFlag(enum.IntFlag):
    """Flags of DEVICE_GET_IRQ_INFO."""

    EVENTFD = vfio_abi.VFIO_IRQ_INFO_EVENTFD
    MASKABLE = vfio_abi.VFIO_IRQ_INFO_MASKABLE
    AUTOMASKED = vfio_abi.VFIO_IRQ_INFO_AUTOMASKED
    NORESIZE = vfio_abi.VFIO_IRQ_INFO_NORESIZE


class IrqSetFlag(enum.IntFlag):
    """Flags of DEVICE_SET_IRQS: one DATA flag and one ACTION flag."""

    DATA_NONE = vfio_abi.VFIO_IRQ_SET_DATA_NONE
    DATA_BOOL = vfio_abi.VFIO_IRQ_SET_DATA_BOOL
    DATA_EVENTFD = vfio_abi.VFIO_IRQ_SET_DATA_EVENTFD
    ACTION_MASK = vfio_abi.VFIO_IRQ_SET_ACTION_MASK
    ACTION_UNMASK = vfio_abi.VFIO_IRQ_SET_ACTION_UNMASK
    ACTION_TRIGGER = vfio_abi.VFIO_IRQ_SET_ACTION_TRIGGER


class IoFdType(enum.IntEnum):
    """How a sub-region of DEVICE_GET_REGION_IO_FDS is signalled."""

    IOEVENTFD = 0
    IOREGIONFD = 1
    IOEVENTFD_SHADOW = 2


class IoEventFdFlag(enum.IntFlag):
    """Flags of an ioeventfd sub-region (linux/kvm.h KVM_IOEVENTFD_FLAG_*)."""

    DATAMATCH = 1 << 0
    PIO = 1 << 1


@dataclass(frozen=True, slots=True)
class Layout:
    """A fixed structure on the wire: the fields of a subclass, in the order of its LAYOUT."""

    LAYOUT: ClassVar[struct.Struct]

    def pack(self) -> bytes:
        """The structure's bytes; struct.error if a value does not fit its field (our bug)."""
        return self.LAYOUT.pack(*dataclasses.astuple(self))

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read it from data at offset; WireError if data is too short. More may follow."""
        if len(data) - offset < cls.LAYOUT.size:
            raise WireError(
                f"{max(len(data) - offset, 0)} bytes where {cls.__name__} has {cls.LAYOUT.size}"
            )
        return cls(*cls.LAYOUT.unpack_from(data, offset))


@dataclass(frozen=True, slots=True)
class Header(Layout):
    """Before every message. size includes this header; error is an errno of an ERROR reply."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHIII")

    message_id: int
    command: int
    size: int
    flags: int
    error: int = 0

    def is_reply(self) -> bool:
        """Whether the type bits say reply."""
        return self.flags & TYPE_MASK == HeaderFlag.REPLY


HEADER_SIZE = Header.LAYOUT.size


@dataclass(frozen=True, slots=True)
class Version(Layout):
    """VERSION, both ways; the capabilities' JSON follows, terminated by NUL."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HH")

    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class DmaMap(Layout):
    """DMA_MAP: size bytes at offset of the message's descriptor (or of none) are at address."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIQQQ")

    argsz: int
    flags: int
    offset: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class DmaUnmap(Layout):
    """DMA_UNMAP, and optionally in its reply."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIQQ")

    argsz: int
    flags: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class DeviceInfo(Layout):
    """DEVICE_GET_INFO, both ways."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")

    argsz: int
    flags: int = 0
    region_count: int = 0
    irq_count: int = 0


@dataclass(frozen=True, slots=True)
class RegionInfo(Layout):
    """DEVICE_GET_REGION_INFO, both ways; capabilities follow a reply.

    offset is where the region begins in the reply's descriptor. cap_offset counts from the
    payload's start.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIIIQQ")

    argsz: int
    flags: int
    index: int
    cap_offset: int = 0
    size: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class CapabilityHeader(Layout):
    """Of a region capability; next counts from the payload's start, 0 ends the chain."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHI")

    capability: int
    version: int
    next: int


@dataclass(frozen=True, slots=True)
class SparseMmap(Layout):
    """After the CapabilityHeader of SPARSE_MMAP, version 1; area_count SparseAreas follow."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<II")

    area_count: int
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class SparseArea(Layout):
    """A part of the region that can be mapped: at RegionInfo.offset + offset of the descriptor."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQ")

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class IoFds(Layout):
    """DEVICE_GET_REGION_IO_FDS, both ways; count sub-regions follow a reply.

    Two-step like the region's information: if the sub-regions pass the request's argsz, the reply
    has neither them nor descriptors, and argsz says what is needed.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")

    argsz: int
    flags: int
    index: int
    count: int = 0


@dataclass(frozen=True, slots=True)
class IoEventFd(Layout):
    """A sub-region of the specification's size, 40 bytes; fd_index is into the reply's descriptors.

    libvfio-user sends 48 (shadow fields before datamatch), so a client takes the stride from the
    reply: (argsz - 16) / count. All up to flags lies alike in both.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQIIIIQ")

    offset: int
    size: int
    fd_index: int
    type: int = IoFdType.IOEVENTFD
    flags: int = 0
    padding: int = 0
    datamatch: int = 0


@dataclass(frozen=True, slots=True)
class IrqInfo(Layout):
    """DEVICE_GET_IRQ_INFO, both ways."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")

    argsz: int
    flags: int
    index: int
    count: int = 0


@dataclass(frozen=True, slots=True)
class IrqSet(Layout):
    """DEVICE_SET_IRQS: vectors start .. start + count - 1; eventfds are the message's descriptors.

    DATA_EVENTFD without descriptors takes them away; DATA_NONE | ACTION_TRIGGER with count 0
    disables the index. There is no payload in the reply.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIIII")

    argsz: int
    flags: int
    index: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class RegionAccess(Layout):
    """REGION_READ and REGION_WRITE, both ways; count bytes follow a write and a read's reply."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QII")

    offset: int
    region: int
    count: int


@dataclass(frozen=True, slots=True)
class DmaAccess(Layout):
    """DMA_READ and DMA_WRITE, both ways; count bytes follow a write and a read's reply."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQ")

    address: int
    count: int


# Keys of the VERSION message's JSON.
CAPABILITIES = "capabilities"
# Ours (docs/device.md 3 and 4): {"vhost_pci": {"dynamic_windows": true, "events": true}}.
VHOST_PCI = "vhost_pci"
DYNAMIC_WINDOWS = "dynamic_windows"
EVENTS = "events"
