"""Layout of BAR 0 of the vhost-pci function: docs/device.md, version 1.4, as declarations.

Shared by the driver (driver/vhost_pci.py) and the device (tools/device): constants, records.
"""

from __future__ import annotations

import enum

from driver.record import Record

VENDOR_ID = 0x1AF4
DEVICE_ID = 0x10F0
CLASS_CODE = 0x020000
MAGIC = 0x49435056  # "VPCI"
VERSION_MAJOR = 1
VERSION_MINOR = 4

WINDOW_RW = 2  # BAR 2
COMMIT_REGION = 4  # BAR 4
FIRST_EXTENSION_WINDOW = 9
MSI_VECTORS = 8
PAGE_SIZE = 4096
QUEUE_COUNT_MAX = 512


class Register(enum.IntEnum):
    """Offsets in BAR 0, page 0 (docs/device.md 4)."""

    MAGIC = 0x00
    VERSION = 0x04
    STATE_OFFSET = 0x08
    STATE_SIZE = 0x0C
    DRIVER_STATUS = 0x10
    ACK = 0x14
    QUEUE_ERROR = 0x18
    QUEUE_COUNT = 0x1C
    KICK_ARM = 0x20
    DRIVER_FEATURES = 0x24
    MISS = 0x28
    KICK = 0x400  # + 4 * ring: names VM1's kick eventfd, see docs/device.md 4
    DOORBELL = 0x800  # + 4 * ring


class DriverStatus(enum.IntEnum):
    """Values of DRIVER_STATUS."""

    DETACHED = 0
    ACTIVE = 1


class DriverFeature(enum.IntFlag):
    """Bits of DRIVER_FEATURES."""

    MARKS = 1 << 0  # the dirty map: docs/device.md 5.7
    TRANSLATES = 1 << 1  # I/O virtual addresses: docs/device.md 5.8


class Status(enum.IntFlag):
    """Status bits of the header (docs/device.md 5.1)."""

    CONNECTED = 1 << 0
    RUNNING = 1 << 1
    REPLUG = 1 << 2
    UNTRANSLATED = 1 << 3


class RingFlag(enum.IntFlag):
    """Flags of a ring table entry (docs/device.md 5.3)."""

    STARTED = 1 << 0
    ENABLED = 1 << 1
    PACKED = 1 << 2
    KICKABLE = 1 << 3
    CALLABLE = 1 << 4


class Permission(enum.IntFlag):
    """What the driver may do with a memory table entry (docs/device.md 5.4)."""

    READ = 1 << 0
    WRITE = 1 << 1


HEADER = Record(
    (
        ("magic", 0x00, 4),
        ("minor", 0x04, 2),
        ("major", 0x06, 2),
        ("generation", 0x08, 4),
        ("status", 0x0C, 4),
        ("features", 0x10, 8),
        ("ring_offset", 0x18, 4),
        ("ring_stride", 0x1C, 4),
        ("ring_count", 0x20, 4),
        ("memory_offset", 0x24, 4),
        ("memory_stride", 0x28, 4),
        ("memory_count", 0x2C, 4),
        ("memory_capacity", 0x30, 4),
        ("driver_offset", 0x34, 4),
        ("driver_size", 0x38, 4),
        ("dirty_offset", 0x3C, 4),
        ("dirty_size", 0x40, 8),
        ("commit_size", 0x48, 4),
        ("mtu", 0x4C, 4),
        ("dirty_shift", 0x50, 4),
        ("miss_offset", 0x54, 4),
        ("miss_capacity", 0x58, 4),
        ("refused_offset", 0x5C, 4),
        ("refused_count", 0x60, 4),
        ("window_serial", 0x64, 4),
        ("announced_address", 0x68, 8),
        ("announcement", 0x70, 4),
    ),
    itemsize=256,
)
GENERATION_OFFSET = 0x08

RING = Record(
    (
        ("size", 0x00, 4),
        ("flags", 0x04, 4),
        ("desc", 0x08, 8),
        ("driver", 0x10, 8),
        ("device", 0x18, 8),
        ("base", 0x20, 4),
        ("call_serial", 0x24, 4),
    ),
    itemsize=64,
)

MEMORY = Record(
    (
        ("bus", 0x00, 8),
        ("length", 0x08, 8),
        ("offset", 0x10, 8),
        ("window", 0x18, 2),
        ("permission", 0x1A, 2),
    ),
    itemsize=32,
)

DRIVER = Record((("heartbeat", 0, 8), ("pid", 8, 4)), itemsize=4096)
PID_OFFSET = 8

# A mark of the dirty map is of so many bytes at least: those that one byte of a vhost log is of.
DIRTY_SHIFT_MIN = 15

COMMIT = Record((("committed", 0, 4), ("intended", 4, 4)), itemsize=8)

# What a driver lacks a translation of, and what VM1's IOMMU refused (docs/device.md 5.8).
MISS = Record((("address", 0x00, 8), ("length", 0x08, 8), ("permission", 0x10, 4)), itemsize=32)
MISS_CAPACITY = 64
