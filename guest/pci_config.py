"""PCI configuration space: the few registers that a user of a function reads or writes itself."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from guest.function import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

# Type 0 header (PCI Local Bus Specification 3.0, section 6.1)
HEADER_SIZE = 64
COMMAND = 0x04
COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
STATUS = 0x06
STATUS_CAPABILITIES = 1 << 4
REVISION = 0x08  # one byte, and the class code in the three above it
CAPABILITIES = 0x34
CONFIG_SIZE = 256  # without PCI Express's extension


def parse_identity(header: bytes) -> Identity:
    """Identity from the first HEADER_SIZE bytes of configuration space."""
    vendor, device = struct.unpack_from("<HH", header, 0x00)
    revision_and_class = struct.unpack_from("<I", header, 0x08)[0]
    subsystem_vendor, subsystem_device = struct.unpack_from("<HH", header, 0x2C)
    return Identity(
        vendor=vendor,
        device=device,
        class_code=revision_and_class >> 8,
        revision=revision_and_class & 0xFF,
        subsystem_vendor=subsystem_vendor,
        subsystem_device=subsystem_device,
    )


def capabilities(config: bytes) -> Iterator[tuple[int, int]]:
    """(id, offset) of each entry of the capability list, which may be broken, or closed to a ring.

    Args:
        config: Configuration space from 0 on, HEADER_SIZE bytes or more.
    """
    if not struct.unpack_from("<H", config, STATUS)[0] & STATUS_CAPABILITIES:
        return
    end = min(len(config), CONFIG_SIZE)
    offset, left = config[CAPABILITIES] & ~3, (CONFIG_SIZE - HEADER_SIZE) // 4
    while HEADER_SIZE <= offset < end and left:
        yield config[offset], offset
        offset, left = config[offset + 1] & ~3, left - 1
