"""PCI configuration space: the few registers that a user of a function reads or writes itself."""

from __future__ import annotations

import struct

from guest.function import Identity

# Type 0 header (PCI Local Bus Specification 3.0, section 6.1)
HEADER_SIZE = 64
COMMAND = 0x04
COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
REVISION = 0x08  # one byte, and the class code in the three above it


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
