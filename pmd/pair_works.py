"""What the lcores run of one channel: its queue pairs put to the ports of its VF.

Where there are as many pairs as ports, pair n has port n. Where VM1 has more, pairs share a port,
by whose flows it is steered to them (pmd/steering.py); where it has fewer, because it has switched
some off, or the VF has queues to spare, a pair has several. A receive ring is driven by one lcore
and so is a port: a group of pairs and ports is one lcore's.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from typing import TYPE_CHECKING, Self

from driver.software_vf import PortSpec
from guest.named_tuple import NamedTuple
from pmd.kernel import Event, Port, Work
from pmd.kernel_abi import RingFlags
from pmd.steering import Steering, divide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from driver.vhost_pci import VhostPci
    from pmd.kernel import Guard, Queue
    from pmd.ports import Ports
    from pmd.receiving import Receiving
    from pmd.steering import Group, SteeredPort


class Watched(NamedTuple):
    """The facts that all works of a channel watch: see `Work`."""

    generation_address: int
    expected: int
    heartbeat_address: int
    guard: Guard
    wake_fd: int

    @classmethod
    def of(cls, device: VhostPci, generation: int, guard: Guard) -> Self:
        """Those of a device; guard is of its windows."""
        addresses = device.generation_address, device.heartbeat_address
        return cls(addresses[0], generation, addresses[1], guard, device.change_fd)


class PairWorks:
    """The works, until close.

    Thread rule: while no loop runs them.

    Args:
        queues: By ring: 2n is VM1's receiveq n, 2n + 1 its transmitq n (docs/device.md 1).
        ports: Not empty; they stay the caller's, and open until close.
        watched: Of all works.
        receiving: Decides how they receive.

    Raises:
        VhostPciError: No memory; or as `Receiving.begin`.

    Attributes:
        of_pairs: The work of each queue pair.
        groups: By the first pair of each: the works that one lcore is to run, in this order.
    """

    def __init__(
        self,
        queues: Mapping[int, Queue],
        ports: Ports,
        watched: Watched,
        receiving: Receiving,
    ) -> None:
        self.of_pairs: dict[int, Work] = {}
        self.groups: dict[int, tuple[Work, ...]] = {}
        self._queues = queues
        self._ports = ports
        self._watched = watched
        self._receiving = receiving
        self._stack = contextlib.ExitStack()
        pairs = sorted({ring // 2 for ring in queues})
        receivers = [pair for pair in pairs if _enabled(self._rx(pair))]
        sending = [p for p in pairs if p not in receivers and _enabled(self._tx(p))]
        try:
            for group in divide(receivers, sending, len(ports)):
                self.groups[group.pairs[0]] = tuple(self._works(group))
            self._put_off([pair for pair in pairs if pair not in receivers + sending])
        except BaseException:
            self.close()
            raise

    def _rx(self, pair: int) -> Queue | None:
        return self._queues.get(2 * pair)

    def _tx(self, pair: int) -> Queue | None:
        return self._queues.get(2 * pair + 1)

    def _work(self, tx: Queue | None, rx: Queue | None, port: Port | SteeredPort) -> Work:
        facts = self._watched
        return Work(
            tx,
            rx,
            port,
            generation_address=facts.generation_address,
            expected=facts.expected,
            heartbeat_address=facts.heartbeat_address,
            guard=facts.guard,
            wake_fd=facts.wake_fd,
        )

    def _works(self, group: Group) -> list[Work]:
        """Of each pair, and of the ports that have none; the first pair has the group's frames."""
        first = self._rx(group.pairs[0])
        home = first if _enabled(first) else None
        several = len(group.ports)
        works: list[Work] = []
        for index, port in enumerate(group.ports):
            works += self._at_port(group.pairs[index::several], port, home)
        if home is not None:
            shared = several > 1 or len(group.pairs) > 1
            self._receiving.begin(group.pairs[0], group.ports[0], home, shared=shared)
        return works

    def _at_port(self, pairs: Sequence[int], port: int, home: Queue | None) -> list[Work]:
        """Home: the ring for what comes where none of the pairs receives."""
        receivers = [rx if _enabled(rx := self._rx(pair)) else None for pair in pairs] or [None]
        if not any(receivers):
            receivers[0] = home
        ends: Sequence[Port | SteeredPort] = [self._ports[port]]
        if len(receivers) > 1:
            ends = self._stack.enter_context(Steering(self._ports[port], receivers)).ports
        if not pairs:
            return [self._work(None, home, ends[0])]
        for pair, rx, end in zip(pairs, receivers, ends, strict=True):
            self.of_pairs[pair] = self._work(self._tx(pair), rx, end)
        return [self.of_pairs[pair] for pair in pairs]

    def _put_off(self, pairs: list[int]) -> None:
        """Pairs that are off: what VM1 has sent there goes back to it, and nowhere else."""
        if not pairs:
            return
        nowhere = self._stack.enter_context(Port(PortSpec("null")))
        for pair in pairs:
            self.of_pairs[pair] = self._work(self._tx(pair), self._rx(pair), nowhere)
            self.groups[pair] = (self.of_pairs[pair],)

    @property
    def _all(self) -> Iterator[Work]:
        return itertools.chain(*self.groups.values())

    @property
    def events(self) -> Event:
        """Why any of them is passed over."""
        return Event(functools.reduce(operator.or_, (work.events for work in self._all), 0))

    def expect(self, generation: int) -> None:
        """Their queues are of this generation now."""
        for work in self._all:
            work.expect(generation)

    def drain(self) -> int:
        """Return to VM1 what the VF is done with; the chains still in flight."""
        return sum(work.drain() for work in self.of_pairs.values())

    def close(self) -> None:
        """Leave the ports to whoever comes next. No loop has a work any more. Twice is fine."""
        self._stack.close()


def _enabled(queue: Queue | None) -> bool:
    return queue is not None and RingFlags.ENABLED in queue.config.flags
