"""A VM1 of several queue pairs whose frames are sent and taken by hand."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from typing import TYPE_CHECKING

from guest.closing import Closing
from tools.vhost_user_abi import Request
from tools.vm1.frontend import FrontEnd
from tools.vm1.options import MemoryOptions, Mode, Options, RingOptions, Socket, TrafficOptions
from tools.vm1.rings import Rings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.vm1.rings import Ring

HEADER = bytes(12)
_PAGE = 4096
_INDEX, _ENTRIES = 2, 4  # in avail and used areas (virtio 1.3, 2.7.6, 2.7.8)


def _index(area: int) -> int:
    return ctypes.c_uint16.from_address(area + _INDEX).value


class Pair:
    """One queue pair, driven by hand. Sends numbered frames and takes what comes back."""

    def __init__(self, receive: Ring, transmit: Ring) -> None:
        self._rx, self._tx = receive, transmit
        self._sent = self._taken = 0
        for head in range(receive.shape.size):
            self._post(receive, head, head, bytes(64), flags=2)
        ctypes.c_uint16.from_address(receive.avail.host + _INDEX).value = receive.shape.size

    def _post(self, ring: Ring, place: int, head: int, data: bytes, flags: int = 0) -> None:
        slot = ring.slots[head]
        ctypes.memmove(slot.host, data, len(data))
        descriptor = struct.pack("<QIHH", slot.bus, 256 if flags else len(data), flags, 0)
        ctypes.memmove(ring.desc.host + 16 * head, descriptor, 16)
        entry = ring.avail.host + _ENTRIES + 2 * (place % ring.shape.size)
        ctypes.c_uint16.from_address(entry).value = head

    def send(self, count: int) -> None:
        """Frames with the next numbers."""
        for _ in range(count):
            self._put(struct.pack("<60xI", self._sent))
        self._show()

    def send_frames(self, *frames: bytes) -> None:
        """These, of at most 244 bytes."""
        for frame in frames:
            self._put(frame)
        self._show()

    def _put(self, frame: bytes) -> None:
        self._post(self._tx, self._sent, self._sent % self._tx.shape.size, HEADER + frame)
        self._sent += 1

    def _show(self) -> None:
        address = self._tx.avail.host + _INDEX
        ctypes.c_uint16.from_address(address).value = self._sent & 0xFFFF

    def all_sent(self) -> bool:
        """Whether every buffer came back to us."""
        return _index(self._tx.used.host) == self._sent & 0xFFFF

    def take(self) -> list[int]:
        """The numbers of the frames that came since the last call, each behind 60 bytes."""
        return [struct.unpack("<60xI", frame)[0] for frame in self.take_frames()]

    def take_frames(self) -> list[bytes]:
        """The frames that came since the last call; their buffers are posted anew."""
        found = []
        ring = self._rx
        while self._taken & 0xFFFF != _index(ring.used.host):
            entry = ring.used.host + _ENTRIES + 8 * (self._taken % ring.shape.size)
            head, length = struct.unpack("<II", ctypes.string_at(entry, 8))
            whole = ctypes.string_at(ring.slots[head].host, length)
            found.append(whole[len(HEADER) :])
            self._post(ring, self._taken + ring.shape.size, head, bytes(256), flags=2)
            self._taken += 1
            address = ring.avail.host + _INDEX
            posted = self._taken + ring.shape.size
            ctypes.c_uint16.from_address(address).value = posted & 0xFFFF
        return found


class Vm1(Closing):
    """Queue pairs, all started and enabled, with rings of 128."""

    def __init__(self, path: Path, pairs: int) -> None:
        options = Options(
            mode=Mode.IDLE,
            socket=Socket(path, listen=False),
            memory=MemoryOptions(),
            rings=RingOptions(pairs=pairs, size=128, event_idx=False, in_order=False),
            traffic=TrafficOptions(),
        )
        self._rings = Rings(options)
        rings = self._rings.rings
        self.pairs = [Pair(*rings[2 * n : 2 * n + 2]) for n in range(pairs)]
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        self._front_end = FrontEnd(connection, str(path))
        self._front_end.negotiate(options.rings)
        self._front_end.share_memory(self._rings.memory)
        self._front_end.start(rings, [0] * len(rings))

    def enable(self, pair: int, value: int) -> None:
        """VIRTIO_NET_CTRL_MQ's way to the device, both rings."""
        for index in (2 * pair, 2 * pair + 1):
            self.enable_ring(index, value)

    def enable_ring(self, index: int, value: int) -> None:
        self._front_end._set_state(Request.SET_VRING_ENABLE, index, value)

    def stop(self, pair: int) -> None:
        """Both rings of it, by GET_VRING_BASE; answered."""
        for index in (2 * pair, 2 * pair + 1):
            payload = struct.pack("<II", index, 0)
            self._front_end._ask(Request.GET_VRING_BASE, payload, len(payload))

    def kick(self, pair: int) -> None:
        """Both rings, whatever is in them."""
        for ring in self._of(pair):
            os.eventfd_write(ring.kick_fd, 1)

    def take_calls(self, pair: int) -> int:
        """How often it was called since the last time."""
        count = 0
        for ring in self._of(pair):
            with contextlib.suppress(BlockingIOError):
                count += os.eventfd_read(ring.call_fd)
        return count

    def _of(self, pair: int) -> Sequence[Ring]:
        return self._rings.rings[2 * pair : 2 * pair + 2]

    @property
    def memory_fd(self) -> int:
        return self._rings.memory.fd

    def pages_of(self, pair: int) -> list[int]:
        """Numbers of the memory's pages that only this pair has parts or buffers in."""
        mine: set[int] = set()
        others: set[int] = set()
        for index, ring in enumerate(self._rings.rings):
            fixed = len(ring.shape.pieces) - len(ring.slots)
            hosts = [ring.desc.host, ring.avail.host, ring.used.host, ring.indirect.host]
            hosts[fixed:] = [slot.host for slot in ring.slots]
            pages = mine if index // 2 == pair else others
            for host, size_bytes in zip(hosts, ring.shape.pieces, strict=True):
                first, last = self._offset(host), self._offset(host + size_bytes - 1)
                pages.update(range(first // _PAGE, last // _PAGE + 1))
        return sorted(mine - others)

    def address_of(self, page: int) -> int:
        """Where a page of the memory is in this process."""
        regions = self._rings.memory.regions
        region = next(r for r in reversed(regions) if r.offset <= page * _PAGE)
        return region.user + page * _PAGE - region.offset

    def _offset(self, host: int) -> int:
        for region in self._rings.memory.regions:
            if region.user <= host < region.user + region.size_bytes:
                return host - region.user + region.offset
        raise AssertionError(hex(host))

    def close(self) -> None:
        self._front_end.close()
        self._rings.close()
