"""VM1's memory as a back-end sees it: regions of files, read and written by bus address."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.words import store_word
from tools import vhost_user_abi as abi

if TYPE_CHECKING:
    from tools.vhost_user_wire import Message


@dataclass(frozen=True, slots=True)
class _Region:
    bus: int
    size: int
    user: int
    offset: int
    map: mmap.mmap


class GuestMemory:
    """The regions of one SET_MEM_TABLE; takes the message's descriptors."""

    def __init__(self, message: Message) -> None:
        self.regions: list[_Region] = []
        count, _ = abi.MEMORY_HEADER.unpack_from(message.payload)
        assert count == len(message.fds)
        for index, fd in enumerate(message.fds):
            at = abi.MEMORY_HEADER.size + index * abi.MEMORY_REGION.size
            bus, size, user, offset = abi.MEMORY_REGION.unpack_from(message.payload, at)
            self.regions.append(_Region(bus, size, user, offset, mmap.mmap(fd, offset + size)))
            os.close(fd)

    def bus_of_user(self, user: int) -> int:
        """The bus address of a front-end's address."""
        for region in self.regions:
            if region.user <= user < region.user + region.size:
                return region.bus + user - region.user
        raise AssertionError(f"user address {user:#x} is in no region")

    def _find(self, bus: int, size: int) -> tuple[mmap.mmap, int]:
        for region in self.regions:
            if region.bus <= bus and bus + size <= region.bus + region.size:
                return region.map, region.offset + bus - region.bus
        raise AssertionError(f"{size} bytes at {bus:#x} are in no region")

    def read(self, bus: int, size: int) -> bytes:
        """Bytes at a bus address, all in one region."""
        memory, at = self._find(bus, size)
        return memory[at : at + size]

    def write(self, bus: int, data: bytes) -> None:
        """Write bytes at a bus address, all in one region."""
        memory, at = self._find(bus, len(data))
        memory[at : at + len(data)] = data

    def read_u16(self, bus: int) -> int:
        """A little endian 16-bit word."""
        return int.from_bytes(self.read(bus, 2), "little")

    def write_u16(self, bus: int, value: int) -> None:
        """A little endian 16-bit word, modulo 2^16, in one store."""
        memory, at = self._find(bus, 2)
        with memoryview(memory) as whole, whole[at : at + 2] as word:
            store_word(word, value & 0xFFFF)

    def close(self) -> None:
        """Unmap."""
        for region in self.regions:
            region.map.close()
        self.regions = []
