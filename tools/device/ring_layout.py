"""How a ring lies in memory, and where one can stand: split (virtio 1.3, 2.7) or packed (2.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tools.vhost_user_abi import RING_SIZE_MAX, Feature

if TYPE_CHECKING:
    from typing import TypeAlias

    from tools.device.iotlb import TranslatedTable, Translations
    from tools.device.memory_table import MemoryTable

    AddressTable: TypeAlias = MemoryTable | TranslatedTable | Translations

INDEX_MASK = 0x7FFF  # of a packed ring's position; above it is the wrap counter (2.8.1)
WRAP_SHIFT = 15
HALF_MASK = 0xFFFF


class Part(NamedTuple):
    """One of a ring's three areas: fixed + each * size bytes; written: by the device's side too."""

    name: str
    alignment: int
    fixed: int
    each: int
    written: bool


@dataclass(frozen=True, slots=True)
class RingLayout:
    """One of the two layouts. parts: of descriptors, of the driver, of the device."""

    packed: bool
    parts: tuple[Part, Part, Part]

    def size_fault(self, size: int) -> str:
        """What is wrong with a size, all 32 bits of it; "" for a ring's."""
        if self.packed:
            # A ring of one descriptor would be full and empty in the same state (2.8.1).
            return "" if 1 < size <= RING_SIZE_MAX else f"{size} descriptors, not 2 to 32768"
        if 0 < size <= RING_SIZE_MAX and not size & (size - 1):
            return ""
        return f"{size} descriptors, not a power of two to 32768"

    def base_fault(self, base: int, size: int) -> str:
        """What is wrong with what SET_VRING_BASE gave, all 32 bits of it; "" where it may begin.

        size: 0 while it is not known.
        """
        if not self.packed:
            return f"base {base:#x}, more than 16 bits" if base > HALF_MASK else ""
        indices = (base & INDEX_MASK, base >> 16 & INDEX_MASK)
        beyond = size and max(indices) >= size
        return f"base {base:#x}, which names descriptor {max(indices)}" if beyond else ""

    def resolve(
        self, addresses: tuple[int, int, int], table: AddressTable, size: int
    ) -> tuple[int, int, int] | None:
        """Bus addresses of the parts at these addresses; None if any is out of place.

        The addresses are VM1's VMM's, or I/O virtual where the table is of those.

        A region need not be aligned, so the bus address is judged too.
        """
        found = []
        for address, part in zip(addresses, self.parts, strict=True):
            length = part.fixed + part.each * size
            bus = table.bus_address(address, length, write=part.written)
            if bus is None or bus % part.alignment:
                return None
            found.append(bus)
        return found[0], found[1], found[2]


SPLIT = RingLayout(
    False,
    (
        Part("descriptor table", 16, 0, 16, written=False),
        Part("available ring", 2, 6, 2, written=False),
        Part("used ring", 4, 6, 8, written=True),
    ),
)
PACKED = RingLayout(
    True,
    (
        Part("descriptor ring", 16, 0, 16, written=True),
        Part("driver event suppression", 4, 4, 0, written=False),
        Part("device event suppression", 4, 4, 0, written=True),
    ),
)


def layout_of(features: int) -> RingLayout:
    """The layout that accepted features mean."""
    return PACKED if features & Feature.RING_PACKED else SPLIT


def both_halves(position: int) -> int:
    """A packed ring's base where nothing is in flight: used and available position are one."""
    return position << 16 | position
