"""The registers of the VF's BAR 0: one declaration each, and access by name.

Source: Intel 82576EB Gigabit Ethernet Controller Datasheet, section 8.26 (virtual function device
registers), which gives each VF the PF's registers of its own queues; the I350's VF has the same.
The chapter named with each describes its fields. All are 32 bits wide.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.errors import DeviceGoneError
from guest.function import Region

if TYPE_CHECKING:
    from guest.function import Function

ALL_ONES = 0xFFFFFFFF
BAR_SIZE = 0x4000


class Access(enum.Enum):
    """What reading and writing do."""

    READ_ONLY = "RO"
    READ_WRITE = "RW"
    CLEARS = "RW, some bits clear on read"
    COUNTER = "RO, counts on modulo its width"


@dataclass(frozen=True, slots=True)
class Register:
    """One register, or an array of equal ones `stride` bytes apart."""

    name: str
    offset: int
    access: Access
    section: str
    meaning: str
    count: int = 1
    stride: int = 0

    def at(self, index: int = 0) -> int:
        """The offset in BAR 0 of one register of the array."""
        if not 0 <= index < self.count:
            raise IndexError(f"{self.name}[{index}]")
        return self.offset + index * self.stride


_RO, _RW = Access.READ_ONLY, Access.READ_WRITE
_COUNTER, _CLEARS = Access.COUNTER, Access.CLEARS


def _queue(name: str, offset: int, section: str, meaning: str) -> Register:
    """One of each of the VF's two queues."""
    return Register(name, offset, _RW, section, meaning, count=2, stride=0x100)


# fmt: off
CTRL    = Register("CTRL",    0x0000, _RW,      "8.2",  "device control")
STATUS  = Register("STATUS",  0x0008, _RO,      "8.2",  "device status")
MAILBOX_MEMORY = \
          Register("VMBMEM",  0x0800, _RW,      "8.14", "mailbox memory", count=16, stride=4)
MAILBOX = Register("VFMailbox", 0x0C40, _CLEARS, "8.14", "mailbox control")
VTEIMS  = Register("VTEIMS",  0x1524, _RW,      "8.8",  "turns interrupts on: bit n vector n")
VTEIMC  = Register("VTEIMC",  0x1528, _RW,      "8.8",  "the same, off")
VTEIAC  = Register("VTEIAC",  0x152C, _RW,      "8.8",  "causes that end as they are sent")
VTEIAM  = Register("VTEIAM",  0x1530, _RW,      "8.8",  "and vectors that then go off")
VTIVAR  = Register("VTIVAR",  0x1700, _RW,      "8.8",  "vectors of queues, a byte each")
VFGPRC  = Register("VFGPRC",  0x0F10, _COUNTER, "8.26", "good packets received")
VFGPTC  = Register("VFGPTC",  0x0F14, _COUNTER, "8.26", "good packets transmitted")
VFGORC  = Register("VFGORC",  0x0F18, _COUNTER, "8.26", "good octets received")
VFGOTC  = Register("VFGOTC",  0x0F34, _COUNTER, "8.26", "good octets transmitted")
VFMPRC  = Register("VFMPRC",  0x0F3C, _COUNTER, "8.26", "multicast packets received")
RDBAL   = _queue("RDBAL",  0x2800, "8.10",  "receive ring's bus address, low; 128-byte aligned")
RDBAH   = _queue("RDBAH",  0x2804, "8.10",  "the same, high")
RDLEN   = _queue("RDLEN",  0x2808, "8.10",  "receive ring's bytes, a multiple of 128")
SRRCTL  = _queue("SRRCTL", 0x280C, "8.10",  "receive buffers and descriptor type")
RDH     = _queue("RDH",    0x2810, "8.10",  "receive head: the VF's next descriptor")
RDT     = _queue("RDT",    0x2818, "8.10",  "receive tail: the first that is not the VF's")
RXDCTL  = _queue("RXDCTL", 0x2828, "8.10", "receive queue control")
TDBAL   = _queue("TDBAL",  0x3800, "8.12",  "transmit ring's bus address, low; 128-byte aligned")
TDBAH   = _queue("TDBAH",  0x3804, "8.12",  "the same, high")
TDLEN   = _queue("TDLEN",  0x3808, "8.12",  "transmit ring's bytes, a multiple of 128")
TDH     = _queue("TDH",    0x3810, "8.12",  "transmit head: the VF's next descriptor")
TDT     = _queue("TDT",    0x3818, "8.12",  "transmit tail: the first that is not the VF's")
TXDCTL  = _queue("TXDCTL", 0x3828, "8.12", "transmit queue control")
# fmt: on


class Ctrl(enum.IntFlag):
    """CTRL."""

    RESET = 1 << 26


class DeviceStatus(enum.IntFlag):
    """STATUS."""

    LINK_UP = 1 << 1


class MailboxBit(enum.IntFlag):
    """VFMailbox; OURS and PF_HAS_IT say who owns the memory."""

    REQUEST = 1 << 0
    ACKNOWLEDGE = 1 << 1
    OURS = 1 << 2
    PF_HAS_IT = 1 << 3
    PF_WROTE = 1 << 4  # clears on read
    PF_ACKNOWLEDGED = 1 << 5  # clears on read
    PF_IN_RESET = 1 << 6
    PF_RESET_DONE = 1 << 7  # clears on read


class QueueControl(enum.IntFlag):
    """RXDCTL and TXDCTL; the thresholds below stay 0: fetch and write back at once."""

    ENABLE = 1 << 25


class Srrctl(enum.IntFlag):
    """SRRCTL; the low 7 bits are the buffers' size in KiB."""

    ADVANCED_ONE_BUFFER = 1 << 25
    DROP_ENABLE = 1 << 31


class Ivar(enum.IntFlag):
    """A byte of VTIVAR; the low bits are the vector."""

    VALID = 1 << 7


class Registers:
    """The registers of one open function, by trapped access: control path only.

    Thread rule: as of the function.
    """

    def __init__(self, function: Function) -> None:
        self._function = function

    def read(self, register: Register, index: int = 0) -> int:
        """One 32-bit read.

        Raises:
            DeviceGoneError: All ones, which no register of ours can be: the VF left the bus.
        """
        raw = self._function.read(Region.BAR0, register.at(index), 4)
        value = int(struct.unpack("<I", raw)[0])
        if value == ALL_ONES and register.access is not Access.COUNTER:
            cause = f"its {register.name} reads all ones"
            raise DeviceGoneError("use", self._function.name, cause)
        return value

    def write(self, register: Register, value: int, index: int = 0) -> None:
        """One 32-bit write, done when it returns."""
        self._function.write(Region.BAR0, register.at(index), struct.pack("<I", value))
