"""VM1's rings: where they and their buffers lie, and their eventfds."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text
from tools.vhost_user_abi import Feature
from tools.vm1.engine_abi import GUARD, HEADROOM, RingConfig, RingFlag, Slot
from tools.vm1.memory import Memory, Place
from tools.vm1.options import FRAME_MAX

if TYPE_CHECKING:
    from tools.vm1.options import Options, RingOptions

_DESC_BYTES = 16  # 2.7.5, 2.8.13
_FRAME_USUAL = 1536  # what a receive buffer holds at least, where it is not said


def header_bytes(features: Feature) -> int:
    """The virtio-net header's size (virtio 1.3, 5.1.6.1)."""
    return 12 if features & (Feature.VERSION_1 | Feature.NET_MRG_RXBUF) else 10


@dataclass(frozen=True, slots=True)
class RingShape:
    """What of a ring depends on options alone: bytes of its parts, number of its buffers."""

    size: int
    chain: int
    slot_count: int
    frame_capacity: int
    indirect: bool
    receive: bool
    packed: bool

    @property
    def area_bytes(self) -> int:
        """One buffer with its guards: an odd number of cache lines, so that sets are shared out."""
        lines = -(-(HEADROOM + self.frame_capacity + GUARD) // 64)
        return 64 * (lines | 1)

    @property
    def pieces(self) -> list[int]:
        """What it allocates, in bytes: descriptors, driver and device area, tables, buffers."""
        # 2.7: available and used ring; 2.8.10.1: two event suppression structures.
        areas = [4, 4] if self.packed else [6 + 2 * self.size, 6 + 8 * self.size]
        fixed = [_DESC_BYTES * self.size, *areas]
        tables = [_DESC_BYTES * self.chain * self.slot_count] if self.indirect else []
        return fixed + tables + [self.area_bytes] * self.slot_count


def shapes(options: Options) -> tuple[RingShape, ...]:
    """The 2 * pairs rings: receiveq n is 2n, transmitq n is 2n + 1 (5.1.2)."""
    rings = options.rings
    most = options.traffic.sizes.most
    receive = rings.buffer_bytes or max(most, _FRAME_USUAL)
    if rings.offloads:
        most = FRAME_MAX  # frames in pieces: csrc/offload.h
    pair = (
        _shape(rings, rings.receive_chain, receive, receive=True),
        _shape(rings, rings.chain, max(most, _FRAME_USUAL), receive=False),
    )
    return pair * rings.pairs


def _shape(rings: RingOptions, chain: int, frame_capacity: int, *, receive: bool) -> RingShape:
    slot_count = rings.size if rings.indirect else rings.size // chain
    return RingShape(
        size=rings.size,
        chain=chain,
        slot_count=slot_count,
        frame_capacity=frame_capacity,
        indirect=rings.indirect,
        receive=receive,
        packed=rings.packed,
    )


class Ring:
    """One ring in memory, with its kick, call and error eventfds; owns those three.

    Thread rule: one thread. Raises VhostPciError where the kernel refuses, UsageError where the
    memory is too small.
    """

    def __init__(self, shape: RingShape, memory: Memory) -> None:
        self.shape = shape
        pieces = shape.pieces
        fixed = len(pieces) - shape.slot_count
        parts = [memory.allocate(piece) for piece in pieces[:fixed]]
        self.desc, self.avail, self.used = parts[:3]
        self.indirect = parts[3] if shape.indirect else Place(0, 0)
        areas = [memory.allocate(piece) for piece in pieces[fixed:]]
        self.slots = (Slot * shape.slot_count)(*(Slot(area.host, area.bus) for area in areas))
        self._fds: list[int] = []
        try:
            for _ in range(3):
                self._fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError as error:
            self.close()
            raise VhostPciError("create", "an eventfd", errno_text(error)) from error
        self.kick_fd, self.call_fd, self.error_fd = self._fds

    def config(self, features: Feature) -> RingConfig:
        """For vm1_new; it points into this object."""
        flags = RingFlag(0)
        for feature, flag in (
            (Feature.EVENT_IDX, RingFlag.EVENT_IDX),
            (Feature.IN_ORDER, RingFlag.IN_ORDER),
        ):
            flags |= flag if features & feature else RingFlag(0)
        flags |= RingFlag.PACKED if self.shape.packed else RingFlag(0)
        flags |= RingFlag.INDIRECT if self.shape.indirect else RingFlag(0)
        flags |= RingFlag.RECEIVE if self.shape.receive else RingFlag(0)
        return RingConfig(
            desc=self.desc.host,
            avail=self.avail.host,
            used=self.used.host,
            indirect_host=self.indirect.host,
            indirect_bus=self.indirect.bus,
            slots=self.slots,
            slot_count=self.shape.slot_count,
            size=self.shape.size,
            chain=self.shape.chain,
            flags=flags,
            frame_capacity=self.shape.frame_capacity,
            kick_fd=self.kick_fd,
            call_fd=self.call_fd,
        )

    def error_count(self) -> int:
        """How often the back-end signalled an error on this ring since the last call."""
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self.error_fd)
        return 0

    def close(self) -> None:
        """Close the eventfds. Twice is fine."""
        while self._fds:
            os.close(self._fds.pop())


class Rings(Closing):
    """The memory and all rings in it; owns both. Raises as Memory and Ring do."""

    def __init__(self, options: Options) -> None:
        wanted = shapes(options)
        self.rings: list[Ring] = []
        pieces = [piece for shape in wanted for piece in shape.pieces]
        self.memory = Memory(options.memory, pieces)
        try:
            for shape in wanted:
                self.rings.append(Ring(shape, self.memory))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close rings and memory. Twice is fine."""
        for ring in self.rings:
            ring.close()
        self.memory.close()
