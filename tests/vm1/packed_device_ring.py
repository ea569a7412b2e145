"""The device's side of a packed ring, word for word from virtio 1.3, section 2.8, and slow."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.vm1.device_ring import INDIRECT, NEXT, WRITE, Chain, DeviceRing, fence

if TYPE_CHECKING:
    from tests.vm1.guest_memory import GuestMemory

DESC = struct.Struct("<QIHH")  # 2.8.13: address, length, id, flags
EVENT = struct.Struct("<HH")  # 2.8.14: offset and wrap counter, flags
AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, DESCRIPTOR = 0, 1, 2
WRAP = 1 << 15


@dataclass(slots=True)
class Place:
    """A descriptor's index, and the wrap counter of the lap (2.8.1)."""

    index: int = 0
    wrap: bool = True

    def ahead(self, count: int, size: int) -> Place:
        """The place so many descriptors on, or back; less than a lap."""
        laps, index = divmod(self.index + count, size)
        return Place(index, self.wrap ^ bool(laps))

    def pack(self) -> int:
        """As events and base have it."""
        return self.index | (WRAP if self.wrap else 0)

    @classmethod
    def unpack(cls, value: int) -> Place:
        """The reverse of pack."""
        return cls(value & (WRAP - 1), bool(value & WRAP))


@dataclass(slots=True)
class PackedDeviceRing(DeviceRing):
    """desc is the descriptor ring, avail the driver's event structure, used the device's."""

    next_avail: Place = field(default_factory=Place)
    next_used: Place = field(default_factory=Place)
    _put: list[tuple[int, int, int]] = field(default_factory=list)
    _chain_count: int = 1  # descriptors of a chain; VM1's all have as many

    def _at(self, place: Place) -> int:
        return self.desc + DESC.size * place.index

    def take(self, memory: GuestMemory) -> Chain | None:
        """The next available chain (2.8.6)."""
        place, count, chain_id, at = self.next_avail, 0, 0, 0
        buffers: list[tuple[int, int, int]] = []
        while True:
            at = self._at(place)
            address, length, chain_id, flags = DESC.unpack(memory.read(at, DESC.size))
            if bool(flags & AVAIL) != place.wrap or bool(flags & USED) == place.wrap:
                assert count == 0, "2.8.21.1: a chain becomes available as a whole"
                return None
            count += 1
            assert count <= self.size, "2.8.17: a list longer than the ring"
            place = place.ahead(1, self.size)
            if flags & INDIRECT:
                assert not flags & (NEXT | WRITE), "2.8.7"
                buffers, at = self._table(memory, address, length)
                break
            buffers.append((address, length, flags & WRITE))
            if not flags & NEXT:
                break
        self.next_avail, self._chain_count = place, count
        return Chain(chain_id, buffers, count, at)

    def _table(
        self, memory: GuestMemory, address: int, length: int
    ) -> tuple[list[tuple[int, int, int]], int]:
        """2.8.7: descriptors one behind the other, of which address, length and WRITE count."""
        assert length > 0, "2.8.7"
        assert length % DESC.size == 0, "2.8.7"
        buffers = []
        for at in range(address, address + length, DESC.size):
            bus, size, _, flags = DESC.unpack(memory.read(at, DESC.size))
            buffers.append((bus, size, flags & WRITE))
        return buffers, address + length - DESC.size

    def give_back(self, chain: Chain) -> None:
        self.next_avail = self.next_avail.ahead(-chain.count, self.size)

    def set_base(self, base: int) -> None:
        self.next_avail, self.next_used = Place.unpack(base), Place.unpack(base >> 16)

    def base(self) -> int:
        return self.next_avail.pack() | self.next_used.pack() << 16

    def put_used(self, memory: GuestMemory, head: int, length: int, ahead: int = 0) -> None:  # noqa: ARG002
        self._put.append((head, length, ahead))

    def publish(self, memory: GuestMemory, count: int) -> None:
        """Write what was put, the first descriptor's flags last, and go on behind count chains."""
        old = self.next_used
        for head, length, ahead in reversed(self._put):
            place = old.ahead(ahead * self._chain_count, self.size)
            self._write_used(memory, place, head, length)
        self._put = []
        self.next_used = old.ahead(count * self._chain_count, self.size)
        fence()
        if self._call_is_wanted(memory, old, count * self._chain_count):
            self.call()

    def _write_used(self, memory: GuestMemory, place: Place, head: int, length: int) -> None:
        flags = (AVAIL | USED if place.wrap else 0) | (WRITE if length else 0)
        memory.write(self._at(place) + 8, struct.pack("<IH", length, head))
        memory.write_u16(self._at(place) + 14, flags)

    def _call_is_wanted(self, memory: GuestMemory, old: Place, count: int) -> bool:
        offset, flags = EVENT.unpack(memory.read(self.avail, EVENT.size))
        if flags == DESCRIPTOR:
            assert self.event_idx, "2.8.14: only with EVENT_IDX"
            return any(old.ahead(n, self.size).pack() == offset for n in range(count))
        return bool(flags == ENABLE)

    def jump(self, memory: GuestMemory, head: int) -> None:
        """Use, behind the last chain there is, one that nobody made available."""
        self._write_used(memory, self.next_avail, head, 0)
        self.use(memory, head, 0)

    def suppress_kicks(self, memory: GuestMemory) -> None:
        memory.write(self.used, EVENT.pack(0, DISABLE))

    def want_kick(self, memory: GuestMemory, after: int) -> None:
        """Ask for a kick by the chain that follows so many more (2.8.14, with EVENT_IDX)."""
        assert self.event_idx
        event = self.next_avail.ahead(after * self._chain_count, self.size).pack()
        memory.write(self.used, EVENT.pack(event, DESCRIPTOR))
