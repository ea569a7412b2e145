"""Configuration space of the function: bytes and write masks (docs/device.md 2).

Sources: PCI Local Bus 3.0, 6.1 (header), 6.2.5 (base addresses), 6.8.1 (MSI); PCI Express Base
5.0, 7.5.3 (capability). The extended space holds nothing: 256 bytes on, everything reads zero.
"""

from __future__ import annotations

import struct

from driver.state_area import CLASS_CODE, DEVICE_ID, MSI_VECTORS, VENDOR_ID, VERSION_MAJOR

CONFIG_SIZE = 4096

COMMAND = 0x04
STATUS = 0x06
BAR = 0x10  # + 4 * index
CAPABILITY_POINTER = 0x34
EXPRESS = 0x40
MSI = 0x80
DEVICE_CONTROL = EXPRESS + 0x08
MSI_CONTROL = MSI + 0x02

COMMAND_BITS = 0x0146  # memory space, bus master, parity response, SERR; no I/O space
COMMAND_INTX_DISABLE = 0x0400
STATUS_CAPABILITIES = 0x0010
BAR_MEMORY_64 = 0x04
BAR_PREFETCHABLE = 0x08
DEVICE_CAPABILITIES_FLR = 1 << 28
DEVICE_CONTROL_FLR = 1 << 15
MSI_64BIT = 1 << 7


class PciConfig:
    """The 4096 bytes as the bus sees them.

    A write changes only the bits of its mask; the rest, the expansion ROM's register with it,
    stays as it is. Thread rule: one thread. Bounds are the caller's to check.
    """

    def __init__(self) -> None:
        self._bytes = bytearray(CONFIG_SIZE)
        self._masks = bytearray(CONFIG_SIZE)
        self._bar_sizes: dict[int, int] = {}
        self._fill_header()
        self._fill_express()
        self._fill_msi()
        self._initial = bytes(self._bytes)

    def _fill_header(self) -> None:
        # Vendor and device, revision and class, subsystem: offsets 0x00, 0x08 and 0x2c.
        struct.pack_into("<HH", self._bytes, 0x00, VENDOR_ID, DEVICE_ID)
        struct.pack_into("<I", self._bytes, 0x08, CLASS_CODE << 8 | VERSION_MAJOR)
        struct.pack_into("<HH", self._bytes, 0x2C, VENDOR_ID, DEVICE_ID)
        struct.pack_into("<H", self._bytes, STATUS, STATUS_CAPABILITIES)
        struct.pack_into("<H", self._masks, COMMAND, COMMAND_BITS | COMMAND_INTX_DISABLE)
        self._masks[0x0C] = 0xFF  # cache line size and interrupt line mean nothing to us
        self._masks[0x3C] = 0xFF
        self._bytes[CAPABILITY_POINTER] = EXPRESS

    def _fill_express(self) -> None:
        # Version 2, endpoint; function-level reset; 2.5 GT/s, one lane.
        link = 1 | 1 << 4
        struct.pack_into("<BBH", self._bytes, EXPRESS, 0x10, MSI, 0x0002)
        struct.pack_into("<I", self._bytes, EXPRESS + 0x04, DEVICE_CAPABILITIES_FLR | 1 << 15)
        struct.pack_into("<I", self._bytes, EXPRESS + 0x0C, link)
        struct.pack_into("<H", self._bytes, EXPRESS + 0x12, link)
        # Error reporting, relaxed ordering, payload and read request sizes; not the reset bit.
        struct.pack_into("<H", self._masks, DEVICE_CONTROL, 0x78FF)

    def _fill_msi(self) -> None:
        capable = MSI_VECTORS.bit_length() - 1 << 1
        struct.pack_into("<BBH", self._bytes, MSI, 0x05, 0x00, MSI_64BIT | capable)
        struct.pack_into("<HIIH", self._masks, MSI_CONTROL, 0x0071, 0xFFFFFFFC, 0xFFFFFFFF, 0xFFFF)

    def set_bar(self, index: int, size: int, *, prefetchable: bool) -> None:
        """Make BARs index and index + 1 one 64-bit memory BAR of size bytes; 0: it reads zero.

        size is a power of two of at least 16. An address it had is lost if the size changes.
        """
        if size and (size < 16 or size & (size - 1)):
            raise ValueError(f"BAR {index} of {size} bytes")
        if self._bar_sizes.get(index, 0) == size:
            return
        self._bar_sizes[index] = size
        kind = BAR_MEMORY_64 | (BAR_PREFETCHABLE if prefetchable else 0)
        mask = -size & 0xFFFFFFFFFFFFFFF0 if size else 0
        struct.pack_into("<Q", self._bytes, BAR + 4 * index, kind if size else 0)
        struct.pack_into("<Q", self._masks, BAR + 4 * index, mask)
        initial = bytearray(self._initial)
        struct.pack_into("<Q", initial, BAR + 4 * index, kind if size else 0)
        self._initial = bytes(initial)

    def read(self, offset: int, count: int) -> bytes:
        """The count bytes at offset."""
        return bytes(self._bytes[offset : offset + count])

    def write(self, offset: int, data: bytes) -> bool:
        """Write what may be written; True if it asked for a function-level reset (5.0, 6.6.2)."""
        for position, value in enumerate(data, offset):
            mask = self._masks[position]
            self._bytes[position] = self._bytes[position] & ~mask | value & mask
        flr_position = DEVICE_CONTROL + 1 - offset
        return 0 <= flr_position < len(data) and bool(data[flr_position] & DEVICE_CONTROL_FLR >> 8)

    def reset(self) -> None:
        """Back to the initial values: command, BARs and MSI with the rest."""
        self._bytes[:] = self._initial
