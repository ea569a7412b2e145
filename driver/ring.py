"""A ring's geometry and its checks (virtio 1.3, 2.7 and 2.8), and what features change."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Self

from driver.memory_map import BusAddress, TranslationError
from driver.state_area import RingFlag
from guest.errors import VhostPciError
from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from driver.memory_map import MemoryMap

SIZE_MAX = 32768  # 2.7: Queue Size; 2.8.10.1
DESC_BYTES = 16  # 2.7.5, 2.8.13
EVENT_BYTES = 4  # 2.8.14: an event suppression structure
USED_ELEMENT_BYTES = 8  # 2.7.8
ETHERNET_HEADER_BYTES = 14


class Feature(enum.IntFlag):
    """Virtio feature bits the driver knows (section 6; 5.1.3 for network devices)."""

    NET_CSUM = 1 << 0
    NET_GUEST_CSUM = 1 << 1
    NET_MTU = 1 << 3
    NET_MAC = 1 << 5
    NET_GSO = 1 << 6
    NET_GUEST_TSO4 = 1 << 7
    NET_GUEST_TSO6 = 1 << 8
    NET_GUEST_ECN = 1 << 9
    NET_GUEST_UFO = 1 << 10
    NET_HOST_TSO4 = 1 << 11
    NET_HOST_TSO6 = 1 << 12
    NET_HOST_ECN = 1 << 13
    NET_HOST_UFO = 1 << 14
    NET_MRG_RXBUF = 1 << 15
    NET_STATUS = 1 << 16
    NET_CTRL_VQ = 1 << 17
    NET_MQ = 1 << 22
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    NET_GUEST_USO4 = 1 << 54
    NET_GUEST_USO6 = 1 << 55
    NET_HOST_USO = 1 << 56


def header_bytes(features: int) -> int:
    """Length of struct virtio_net_hdr before each frame (5.1.6.1): the only place that knows it."""
    with_num_buffers = Feature.VERSION_1 | Feature.NET_MRG_RXBUF
    return 12 if features & with_num_buffers else 10


class Part(NamedTuple):
    """One of a ring's three areas."""

    name: str
    bus: BusAddress
    length: int
    alignment: int
    written: bool


class Ring(NamedTuple):
    """One entry of the ring table (docs/device.md 5.3), as the device gave it: not yet checked.

    avail, used: of a packed ring the driver's and the device's event suppression structure.
    """

    index: int  # type: ignore[assignment] # and not tuple.index
    size: int
    flags: RingFlag
    desc: BusAddress
    avail: BusAddress
    used: BusAddress
    base: int
    call_serial: int

    @classmethod
    def of_row(cls, index: int, row: tuple[int, ...]) -> Self:
        """An entry of the ring table, a row of `state_area.RING`."""
        size, flags, desc, driver, device, base, call_serial = row
        addresses = BusAddress(desc), BusAddress(driver), BusAddress(device)
        return cls(index, size, RingFlag(flags), *addresses, base, call_serial)

    @property
    def transmits(self) -> bool:
        """Whether VM1 transmits on it: ring 2n+1 is transmitq n (5.1.2)."""
        return self.index % 2 == 1

    @property
    def pair(self) -> int:
        """The queue pair it belongs to."""
        return self.index // 2

    @property
    def started(self) -> bool:
        """Whether it may be touched at all."""
        return RingFlag.STARTED in self.flags

    @property
    def enabled(self) -> bool:
        """Whether frames go through it."""
        return RingFlag.ENABLED in self.flags

    @property
    def packed(self) -> bool:
        """Whether it is a packed ring (2.8)."""
        return RingFlag.PACKED in self.flags

    def parts(self, features: int) -> tuple[Part, Part, Part]:
        """Its areas; a split ring's end with event fields where EVENT_IDX is negotiated (2.7)."""
        if self.packed:
            return (
                Part("descriptor ring", self.desc, DESC_BYTES * self.size, 16, written=True),
                Part("driver event", self.avail, EVENT_BYTES, 4, written=False),
                Part("device event", self.used, EVENT_BYTES, 4, written=True),
            )
        event = 2 if features & Feature.EVENT_IDX else 0
        return (
            Part("descriptor table", self.desc, DESC_BYTES * self.size, 16, written=False),
            Part("available ring", self.avail, 4 + 2 * self.size + event, 2, written=False),
            Part(
                "used ring", self.used, 4 + USED_ELEMENT_BYTES * self.size + event, 4, written=True
            ),
        )

    def _has_legal_size(self) -> bool:
        if self.packed:
            return 1 < self.size <= SIZE_MAX
        return 0 < self.size <= SIZE_MAX and not self.size & (self.size - 1)

    def check(self, memory: MemoryMap, features: int, commit: int = 0) -> None:
        """Refuse a ring the kernel must not touch.

        Args:
            memory: VM1's.
            features: Accepted ones.
            commit: Address of its commit words, 0 for none (`VhostPci.commit_address`).

        Raises:
            VhostPciError: Its size is not 2 to 32768 (packed), or not a power of two up to 32768;
                a part is not aligned (2.7: 16, 2, 4; packed: 16, 4, 4), not in one run of memory,
                or lacks a permission (all are read; what the device writes is written too); or it
                is packed and has no commit words.
        """
        subject = f"ring {self.index} of {memory.name}"
        if self.packed and not commit:
            remedy = "use a device of version 1.1"
            raise VhostPciError(
                "run", subject, "it is packed, and the device has no commit area", remedy
            )
        if not self._has_legal_size():
            raise VhostPciError("run", subject, f"its size is {self.size}")
        for part in self.parts(features):
            where = f"its {part.name} at {part.bus:#x}"
            if part.bus % part.alignment:
                cause = f"{where} is not aligned to {part.alignment} bytes"
                raise VhostPciError("run", subject, cause)
            for write in (False, True) if part.written else (False,):
                try:
                    run = memory.translate(part.bus, part.length, write=write)
                except TranslationError as error:
                    raise VhostPciError("run", subject, f"{where}: {error.cause}") from error
                if run.length < part.length:
                    cause = f"{where}: only {run.length} of {part.length} bytes are contiguous"
                    raise VhostPciError("run", subject, cause)
