"""The registers of a virtio network function: one declaration each, and access by name.

Source: virtio 1.3, 4.1.4.3 (common configuration structure layout) and 5.1.4 (network device
configuration layout). Each is accessed by its own width, 64-bit ones in two halves (4.1.3.1).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.errors import DeviceGoneError, VhostPciError

if TYPE_CHECKING:
    from driver.virtio_net.capabilities import Place
    from guest.function import Function


@dataclass(frozen=True, slots=True)
class Register:
    """One register of a structure: where it begins there, and its bytes."""

    name: str
    offset: int
    size: int
    meaning: str


# fmt: off
# 4.1.4.3
DEVICE_FEATURE_SELECT = Register("device_feature_select", 0x00, 4, "which 32 bits are shown below")
DEVICE_FEATURE        = Register("device_feature",        0x04, 4, "what the device offers")
DRIVER_FEATURE_SELECT = Register("driver_feature_select", 0x08, 4, "which 32 bits are set below")
DRIVER_FEATURE        = Register("driver_feature",        0x0C, 4, "what the driver accepts")
CONFIG_MSIX_VECTOR    = Register("config_msix_vector",    0x10, 2, "of configuration changes")
NUM_QUEUES            = Register("num_queues",            0x12, 2, "queues there are at most")
DEVICE_STATUS         = Register("device_status",         0x14, 1, "`Status`; 0 resets")
CONFIG_GENERATION     = Register("config_generation",     0x15, 1, "changes with the configuration")
QUEUE_SELECT          = Register("queue_select",          0x16, 2, "whose registers are below")
QUEUE_SIZE            = Register("queue_size",            0x18, 2, "0: there is no such queue")
QUEUE_MSIX_VECTOR     = Register("queue_msix_vector",     0x1A, 2, "of used buffers")
QUEUE_ENABLE          = Register("queue_enable",          0x1C, 2, "1: on, until the next reset")
QUEUE_NOTIFY_OFF      = Register("queue_notify_off",      0x1E, 2, "in units of the multiplier")
QUEUE_DESC            = Register("queue_desc",            0x20, 8, "I/O address: descriptor area")
QUEUE_DRIVER          = Register("queue_driver",          0x28, 8, "I/O address: driver area")
QUEUE_DEVICE          = Register("queue_device",          0x30, 8, "I/O address: device area")
QUEUE_RESET           = Register("queue_reset",           0x3A, 2, "1 resets it (RING_RESET)")
# 5.1.4
MAC                   = Register("mac",                   0x00, 6, "the device's; six registers")
NET_STATUS            = Register("status",                0x06, 2, "`NetStatus`")
MAX_QUEUE_PAIRS       = Register("max_virtqueue_pairs",   0x08, 2, "1..32768")
MTU                   = Register("mtu",                   0x0A, 2, "the longest packet")
# fmt: on


class Status(enum.IntFlag):
    """device_status (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class NetStatus(enum.IntFlag):
    """status of the network device (5.1.4)."""

    LINK_UP = 1


GONE = 0xFF  # of device_status: what a function that left the bus reads as


class Registers:
    """One structure's registers, by trapped access: control path only.

    Thread rule: as of the function.

    Args:
        function: Open.
        place: Where the structure is.
    """

    def __init__(self, function: Function, place: Place) -> None:
        self._function = function
        self._place = place

    def read(self, register: Register) -> int:
        """One read of up to 4 bytes; of more, one a byte, as a number all the same.

        Raises:
            VhostPciError: The structure does not reach that far.
        """
        self._check(register)
        if register.size in (1, 2, 4):
            return int.from_bytes(self._read(register.offset, register.size), "little")
        parts = [self._read(register.offset + at, 1) for at in range(register.size)]
        return int.from_bytes(b"".join(parts), "little")

    def _read(self, offset: int, size: int) -> bytes:
        return self._function.read(self._place.bar, self._place.offset + offset, size)

    def write(self, register: Register, value: int) -> None:
        """One write, done when it returns; of 8 bytes two."""
        self._check(register)
        data = value.to_bytes(register.size, "little")
        for at in range(0, register.size, 4):
            offset = self._place.offset + register.offset + at
            self._function.write(self._place.bar, offset, data[at : at + 4])

    def _check(self, register: Register) -> None:
        if register.offset + register.size > self._place.size:
            cause = f"its structure of {self._place.size} bytes has no {register.name}"
            raise VhostPciError("use", self._function.name, cause)

    def status(self) -> Status:
        """device_status of the common structure.

        Raises:
            DeviceGoneError: All ones.
        """
        value = self.read(DEVICE_STATUS)
        if value == GONE:
            cause = f"its {DEVICE_STATUS.name} reads all ones"
            raise DeviceGoneError("use", self._function.name, cause)
        return Status(value)
