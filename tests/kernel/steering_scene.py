"""Several queue pairs of VM1's at one port, each with rings in memory of its own."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from driver.offload import PLAIN
from driver.offloads import NO_OFFLOADS
from pmd.kernel import DirectionStats, Queue, Work, drop_names
from pmd.steering import Steering
from tests.kernel.offload_port import OffloadPort
from tests.kernel.rig import BIG, WRITE, Rig

if TYPE_CHECKING:
    from collections.abc import Sequence

POOL = 64
SLOT = 1024
RING = 64


class PoolPort(OffloadPort):
    """Shows as many frames as a tap's port has buffers for."""

    def __init__(self) -> None:
        super().__init__(NO_OFFLOADS)

    def _rx(self, port: object, frames: Any, count: int) -> int:  # noqa: ANN401 - a ctypes pointer
        return super()._rx(port, frames, min(count, POOL))

    def arrive(self, *frames: bytes) -> None:
        self.give((frame, PLAIN) for frame in frames)


class Pair:
    """A queue pair of VM1's, each ring in memory of its own."""

    def __init__(self, stack: ExitStack, kind: type[Rig] = Rig) -> None:
        self._rx = stack.enter_context(kind(RING))
        self._tx = stack.enter_context(kind(RING))
        self.stats = DirectionStats()
        self.rx: Queue = self._rx.queue(self.stats)
        self.tx: Queue = self._tx.queue(DirectionStats())
        self.work: Work
        self.posted = 0
        self._seen = 0
        self._sent = 0

    def post(self, count: int) -> None:
        """Buffers, as many as the ring has room for."""
        for _ in range(min(count, RING - (self.posted - self._seen))):
            slot = self.posted % RING
            self._rx.chain(slot, [(BIG + SLOT * slot, SLOT)], WRITE)
            self.posted += 1

    def send(self, frame: bytes) -> None:
        slot = self._sent % RING
        self._tx.poke(BIG + SLOT * slot, bytes(12) + frame)
        self._tx.chain(slot, [(BIG + SLOT * slot, 12 + len(frame))])
        self._sent += 1
        self.work.turn(32)

    def received(self) -> list[bytes]:
        """What has come since the last time."""
        count = (self._rx.used_index() - self._seen) % 65536
        found = []
        for head, length in self._rx.used(count):
            assert head == self._seen % RING
            found.append(self._rx.peek(BIG + SLOT * head, length)[12:])
            self._seen += 1
        return found

    @property
    def drops(self) -> dict[str, int]:
        named = zip(drop_names(), self.stats.drops, strict=False)
        return {name: count for name, count in named if count}


class Scene:
    """Pairs at a port, steered; all of them receive, or those of `receiving`."""

    def __init__(self, count: int, receiving: Sequence[int] | None = None) -> None:
        self._stack = ExitStack()
        self.port = PoolPort()
        self.pairs = [Pair(self._stack) for _ in range(count)]
        asked = range(count) if receiving is None else receiving
        receivers = [pair.rx if number in asked else None for number, pair in enumerate(self.pairs)]
        self.steering = Steering(self.port, receivers)  # type: ignore[arg-type]
        self._stack.callback(self.steering.close)
        for pair, rx, port in zip(self.pairs, receivers, self.steering.ports, strict=True):
            pair.work = Work(pair.tx, rx, port)

    def settle(self) -> None:
        """Turns until nothing moves."""
        while sum(pair.work.turn(32) for pair in self.pairs):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def udp(flow: int, number: int = 0) -> bytes:
    """A datagram to VM1 of one of its flows."""
    packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    packet /= IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1000 + flow, dport=53)
    return bytes(packet / Raw(number.to_bytes(4, "big")))


def turned(frame: bytes) -> bytes:
    """The same of IPv4 and UDP, in the other direction."""
    ip = frame[26:30], frame[30:34]
    ports = frame[34:36], frame[36:38]
    start = frame[6:12] + frame[:6] + frame[12:26]
    return start + ip[1] + ip[0] + ports[1] + ports[0] + frame[38:]
