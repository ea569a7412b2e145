"""Layout of BAR 0 of the vhost-pci function: docs/device.md, version 1.2, as declarations.

Shared by the driver (driver/vhost_pci.py) and the device (tools/device). Constants and dtypes only.
"""

from __future__ import annotations

import enum

import numpy as np

VENDOR_ID = 0x1AF4
DEVICE_ID = 0x10F0
CLASS_CODE = 0x020000
MAGIC = 0x49435056  # "VPCI"
VERSION_MAJOR = 1
VERSION_MINOR = 2

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
    KICK = 0x400  # + 4 * ring: names VM1's kick eventfd, see docs/device.md 4
    DOORBELL = 0x800  # + 4 * ring


class DriverStatus(enum.IntEnum):
    """Values of DRIVER_STATUS."""

    DETACHED = 0
    ACTIVE = 1


class Status(enum.IntFlag):
    """Status bits of the header (docs/device.md 5.1)."""

    CONNECTED = 1 << 0
    RUNNING = 1 << 1
    REPLUG = 1 << 2


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


HEADER = np.dtype(
    {
        "names": [
            "magic", "minor", "major", "generation", "status", "features",
            "ring_offset", "ring_stride", "ring_count",
            "memory_offset", "memory_stride", "memory_count", "memory_capacity",
            "driver_offset", "driver_size", "dirty_offset", "dirty_size",
            "commit_size", "mtu",
        ],
        "formats": [
            "<u4", "<u2", "<u2", "<u4", "<u4", "<u8",
            "<u4", "<u4", "<u4",
            "<u4", "<u4", "<u4", "<u4",
            "<u4", "<u4", "<u4", "<u8",
            "<u4", "<u4",
        ],
        "offsets": [
            0x00, 0x04, 0x06, 0x08, 0x0C, 0x10,
            0x18, 0x1C, 0x20,
            0x24, 0x28, 0x2C, 0x30,
            0x34, 0x38, 0x3C, 0x40,
            0x48, 0x4C,
        ],
        "itemsize": 256,
    }
)  # fmt: skip
GENERATION_OFFSET = 0x08

RING = np.dtype(
    {
        "names": ["size", "flags", "desc", "driver", "device", "base", "call_serial"],
        "formats": ["<u4", "<u4", "<u8", "<u8", "<u8", "<u4", "<u4"],
        "offsets": [0x00, 0x04, 0x08, 0x10, 0x18, 0x20, 0x24],
        "itemsize": 64,
    }
)

MEMORY = np.dtype(
    {
        "names": ["bus", "length", "offset", "window", "permission"],
        "formats": ["<u8", "<u8", "<u8", "<u2", "<u2"],
        "offsets": [0x00, 0x08, 0x10, 0x18, 0x1A],
        "itemsize": 32,
    }
)

DRIVER = np.dtype(
    {"names": ["heartbeat", "pid"], "formats": ["<u8", "<u4"], "offsets": [0, 8], "itemsize": 4096}
)

COMMIT = np.dtype(
    {"names": ["committed", "intended"], "formats": ["<u4", "<u4"], "offsets": [0, 4]}
)
