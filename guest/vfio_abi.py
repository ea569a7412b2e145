"""The kernel's VFIO interface (linux/vfio.h) as declarations, in the header's order.

Constants bear the header's names; a structure's name is the header's in capitals-first spelling
(`VfioGroupStatus` is `struct vfio_group_status`). tests/guest/test_vfio_abi.py compares every
constant, size and offset of this module with the header. Flexible array members have length 0.
"""

from __future__ import annotations

from ctypes import Structure, c_int32, c_uint8, c_uint16, c_uint32, c_uint64

VFIO_API_VERSION = 0

# Extensions and IOMMU models
VFIO_TYPE1_IOMMU = 1
VFIO_TYPE1v2_IOMMU = 3
VFIO_DMA_CC_IOMMU = 4
VFIO_NOIOMMU_IOMMU = 8
VFIO_UNMAP_ALL = 9
VFIO_UPDATE_VADDR = 10

VFIO_TYPE = ord(";")
VFIO_BASE = 100


def _io(number: int) -> int:
    """_IO(VFIO_TYPE, VFIO_BASE + number): no direction, no size (asm-generic/ioctl.h)."""
    return VFIO_TYPE << 8 | (VFIO_BASE + number)


class VfioInfoCapHeader(Structure):
    """Before every capability of an information reply; next counts from the reply's start."""

    _fields_ = (("id", c_uint16), ("version", c_uint16), ("next", c_uint32))


# ---- container (/dev/vfio/vfio) -----------------------------------------------------------------

VFIO_GET_API_VERSION = _io(0)
VFIO_CHECK_EXTENSION = _io(1)
VFIO_SET_IOMMU = _io(2)

# ---- group (/dev/vfio/N) ------------------------------------------------------------------------


class VfioGroupStatus(Structure):
    """VFIO_GROUP_GET_STATUS."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))


VFIO_GROUP_FLAGS_VIABLE = 1 << 0
VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1

VFIO_GROUP_GET_STATUS = _io(3)
VFIO_GROUP_SET_CONTAINER = _io(4)
VFIO_GROUP_UNSET_CONTAINER = _io(5)
VFIO_GROUP_GET_DEVICE_FD = _io(6)

# ---- device -------------------------------------------------------------------------------------


class VfioDeviceInfo(Structure):
    """VFIO_DEVICE_GET_INFO. Headers since 6.6 append padding, which argsz makes optional."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
        ("cap_offset", c_uint32),
    )


VFIO_DEVICE_FLAGS_RESET = 1 << 0
VFIO_DEVICE_FLAGS_PCI = 1 << 1
VFIO_DEVICE_FLAGS_CAPS = 1 << 7

VFIO_DEVICE_GET_INFO = _io(7)


class VfioRegionInfo(Structure):
    """VFIO_DEVICE_GET_REGION_INFO; offset is where the region begins in the device descriptor."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    )


VFIO_REGION_INFO_FLAG_READ = 1 << 0
VFIO_REGION_INFO_FLAG_WRITE = 1 << 1
VFIO_REGION_INFO_FLAG_MMAP = 1 << 2
VFIO_REGION_INFO_FLAG_CAPS = 1 << 3

VFIO_DEVICE_GET_REGION_INFO = _io(8)

VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1


class VfioRegionSparseMmapArea(Structure):
    """One area, relative to the region."""

    _fields_ = (("offset", c_uint64), ("size", c_uint64))


class VfioRegionInfoCapSparseMmap(Structure):
    """Only these areas of the region can be mapped."""

    _fields_ = (
        ("header", VfioInfoCapHeader),
        ("nr_areas", c_uint32),
        ("reserved", c_uint32),
        ("areas", VfioRegionSparseMmapArea * 0),
    )


VFIO_REGION_INFO_CAP_TYPE = 2


class VfioRegionInfoCapType(Structure):
    """What a device-specific region is."""

    _fields_ = (("header", VfioInfoCapHeader), ("type", c_uint32), ("subtype", c_uint32))


VFIO_REGION_TYPE_PCI_VENDOR_TYPE = 1 << 31
VFIO_REGION_TYPE_PCI_VENDOR_MASK = 0xFFFF

VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3


class VfioIrqInfo(Structure):
    """VFIO_DEVICE_GET_IRQ_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("count", c_uint32),
    )


VFIO_IRQ_INFO_EVENTFD = 1 << 0
VFIO_IRQ_INFO_MASKABLE = 1 << 1
VFIO_IRQ_INFO_AUTOMASKED = 1 << 2
VFIO_IRQ_INFO_NORESIZE = 1 << 3

VFIO_DEVICE_GET_IRQ_INFO = _io(9)


class VfioIrqSet(Structure):
    """VFIO_DEVICE_SET_IRQS; with DATA_EVENTFD, data is count int32 descriptors."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
        ("data", c_uint8 * 0),
    )


VFIO_IRQ_SET_DATA_NONE = 1 << 0
VFIO_IRQ_SET_DATA_BOOL = 1 << 1
VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2
VFIO_IRQ_SET_ACTION_MASK = 1 << 3
VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4
VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5

VFIO_DEVICE_SET_IRQS = _io(10)
VFIO_DEVICE_RESET = _io(11)


class VfioPciDependentDevice(Structure):
    """A function that a hot reset would reset too."""

    _fields_ = (
        ("group_id", c_uint32),
        ("segment", c_uint16),
        ("bus", c_uint8),
        ("devfn", c_uint8),
    )


class VfioPciHotResetInfo(Structure):
    """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("count", c_uint32),
        ("devices", VfioPciDependentDevice * 0),
    )


VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = _io(12)


class VfioPciHotReset(Structure):
    """VFIO_DEVICE_PCI_HOT_RESET; group_fds are those of all groups concerned."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("count", c_uint32),
        ("group_fds", c_int32 * 0),
    )


VFIO_DEVICE_PCI_HOT_RESET = _io(13)


class VfioDeviceIoeventfd(Structure):
    """VFIO_DEVICE_IOEVENTFD: the kernel writes data at offset when fd is signalled."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("offset", c_uint64),
        ("data", c_uint64),
        ("fd", c_int32),
    )


VFIO_DEVICE_IOEVENTFD_8 = 1 << 0
VFIO_DEVICE_IOEVENTFD_16 = 1 << 1
VFIO_DEVICE_IOEVENTFD_32 = 1 << 2
VFIO_DEVICE_IOEVENTFD_64 = 1 << 3
VFIO_DEVICE_IOEVENTFD_SIZE_MASK = 0xF

VFIO_DEVICE_IOEVENTFD = _io(16)


class VfioDeviceFeature(Structure):
    """VFIO_DEVICE_FEATURE: get, set or probe one feature; its structure is data."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("data", c_uint8 * 0))


VFIO_DEVICE_FEATURE_MASK = 0xFFFF
VFIO_DEVICE_FEATURE_GET = 1 << 16
VFIO_DEVICE_FEATURE_SET = 1 << 17
VFIO_DEVICE_FEATURE_PROBE = 1 << 18

VFIO_DEVICE_FEATURE = _io(17)
VFIO_DEVICE_FEATURE_PCI_VF_TOKEN = 0

# ---- type 1 IOMMU -------------------------------------------------------------------------------


class VfioIommuType1Info(Structure):
    """VFIO_IOMMU_GET_INFO; iova_pgsizes is a bit map of page sizes."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova_pgsizes", c_uint64),
        ("cap_offset", c_uint32),
    )


VFIO_IOMMU_INFO_PGSIZES = 1 << 0
VFIO_IOMMU_INFO_CAPS = 1 << 1

VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1


class VfioIovaRange(Structure):
    """start to end, both inclusive."""

    _fields_ = (("start", c_uint64), ("end", c_uint64))


class VfioIommuType1InfoCapIovaRange(Structure):
    """The I/O virtual addresses that can be mapped."""

    _fields_ = (
        ("header", VfioInfoCapHeader),
        ("nr_iovas", c_uint32),
        ("reserved", c_uint32),
        ("iova_ranges", VfioIovaRange * 0),
    )


VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2


class VfioIommuType1InfoCapMigration(Structure):
    """What dirty tracking there is."""

    _fields_ = (
        ("header", VfioInfoCapHeader),
        ("flags", c_uint32),
        ("pgsize_bitmap", c_uint64),
        ("max_dirty_bitmap_size", c_uint64),
    )


VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3


class VfioIommuType1InfoDmaAvail(Structure):
    """How many more mappings the container takes."""

    _fields_ = (("header", VfioInfoCapHeader), ("avail", c_uint32))


VFIO_IOMMU_GET_INFO = _io(12)


class VfioIommuType1DmaMap(Structure):
    """VFIO_IOMMU_MAP_DMA."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("vaddr", c_uint64),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


VFIO_DMA_MAP_FLAG_READ = 1 << 0
VFIO_DMA_MAP_FLAG_WRITE = 1 << 1
VFIO_DMA_MAP_FLAG_VADDR = 1 << 2

VFIO_IOMMU_MAP_DMA = _io(13)


class VfioIommuType1DmaUnmap(Structure):
    """VFIO_IOMMU_UNMAP_DMA; the kernel sets size to the bytes it unmapped."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova", c_uint64),
        ("size", c_uint64),
        ("data", c_uint8 * 0),
    )


VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0
VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1
VFIO_DMA_UNMAP_FLAG_VADDR = 1 << 2

VFIO_IOMMU_UNMAP_DMA = _io(14)
