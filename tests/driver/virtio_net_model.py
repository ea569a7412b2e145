"""A virtio network device in memory, which bites: it does what the specification says, or worse."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from driver.virtio_net.features import Feature
from tests.driver.virtio_function_model import (
    DRIVER_OK,
    MULTIPLIER,
    OFFER,
    UNWRITTEN,
    VirtioFunctionModel,
)

if TYPE_CHECKING:
    from tests.driver.virtio_ring_model import Chain

__all__ = ["OFFER", "VirtioNetModel"]
HEADER = "<BBHHHHH"


class VirtioNetModel(VirtioFunctionModel):
    """One function, as an open one.

    Attributes:
        refuses: Commands (class, number) that it refuses. commands: What came by the control queue.
        answers: Whether it answers there. completes: Whether frames that were sent are reported so.
        wire: Frames sent: (pair, header fields, frame).
    """

    def __init__(self, offer: int = OFFER) -> None:
        super().__init__(offer)
        self.refuses: set[tuple[int, int]] = set()
        self.answers = True
        self.completes = True
        self.commands: list[tuple[int, int, bytes]] = []
        self.wire: list[tuple[int, tuple[int, ...], bytes]] = []

    # ---- the control queue

    def control(self, number: int) -> None:
        if number != 2 * (self.pairs if self.accepted & Feature.MQ else 1) or not self.answers:
            return
        ring = self.rings[number]
        while (chain := ring.pop()) is not None:
            *readable, (answer, length, writes) = chain.parts
            if not writes or length != 1 or any(each[2] for each in readable):
                self.faults.append(f"a command of {chain.parts}")
            data = b"".join(bytes(self.memory(iova, size)) for iova, size, _ in readable)
            command = (data[0], data[1], data[2:])
            self.commands.append(command)
            obeys = command[:2] not in self.refuses
            if obeys and command[:2] == (1, 1):
                self.mac = command[2]
            if obeys and command[:2] == (4, 0):
                self.active_pairs = struct.unpack("<H", command[2])[0]
            self.memory(answer, 1)[:] = b"\0" if obeys else b"\1"
            ring.push(chain.id, 1)

    # ---- frames

    def notified(self, number: int) -> bool:
        """Whether a queue was notified since this was asked last."""
        at = MULTIPLIER * number
        (value,) = struct.unpack_from("<H", self._notify, at)
        struct.pack_into("<H", self._notify, at, UNWRITTEN)
        if value not in (number, UNWRITTEN):
            self.faults.append(f"queue {number} is notified by {value}")
        return bool(value == number)

    def take(self, pair: int = 0) -> Chain | None:
        """The next frame from the driver, put on the wire but not reported."""
        chain = self.rings[2 * pair + 1].pop() if self.status & DRIVER_OK else None
        if chain is None:
            return None
        if any(writes for *_, writes in chain.parts):
            self.faults.append("a frame to be sent that the device is to write")
        data = b"".join(bytes(self.memory(iova, length)) for iova, length, _ in chain.parts)
        if len(data) < 12 + 14:
            self.faults.append(f"a frame of {len(data)} bytes with its header")
        *header, buffers = struct.unpack_from(HEADER, data)
        if buffers:
            self.faults.append(f"num_buffers of {buffers} in a frame to be sent")
        self.wire.append((pair, tuple(header), data[12:]))
        return chain

    def run(self, limit: int = 1 << 30) -> None:
        """Send what the transmit queues hold, at most limit frames each."""
        for pair in range(self.pairs):
            for _ in range(limit):
                if 2 * pair + 1 not in self.rings or (chain := self.take(pair)) is None:
                    break
                if self.completes:
                    self.rings[2 * pair + 1].push(chain.id, 0)

    @property
    def sent(self) -> list[bytes]:
        """The frames on the wire."""
        return [frame for _, _, frame in self.wire]

    def fill(self, chain: Chain, data: bytes) -> None:
        """Write data to a chain, which it fits."""
        for iova, length, _ in chain.parts:
            part, data = data[:length], data[length:]
            if part:
                self.memory(iova, len(part))[:] = part
        assert not data

    def receive(self, frame: bytes, pair: int = 0, *, buffers: int | None = None) -> bool:
        """A frame from the wire; False if it was dropped for lack of buffers.

        Args:
            buffers: What num_buffers says, true or not.
        """
        ring = self.rings[2 * pair]
        rest = bytes(10) + b"\0\0" + frame
        used: list[tuple[Chain, int]] = []
        first: memoryview | None = None
        while rest:
            chain = ring.pop()
            if chain is None:
                if used:
                    self.faults.append("too few buffers: the test has to leave room")
                return False
            room = sum(length for _, length, _ in chain.parts)
            if room < 1526 or not all(writes for *_, writes in chain.parts):
                self.faults.append(f"a receive buffer of {chain.parts}")
            part, rest = rest[:room], rest[room:]
            self.fill(chain, part)
            first = first or self.memory(chain.parts[0][0], 12)
            used.append((chain, len(part)))
        assert first is not None
        first[10:12] = struct.pack("<H", len(used) if buffers is None else buffers)
        if len(used) > 1 and not self.accepted & Feature.MRG_RXBUF:
            self.faults.append("the test's frame needs mergeable buffers")
        for chain, length in used:
            ring.push(chain.id, length)
        self.interrupt(2 * pair)
        return True
