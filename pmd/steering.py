"""Which receive ring takes the frames of a VF's queue whose own one VM1 does not use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from driver.ring import Ring


@dataclass(frozen=True, slots=True)
class Steering:
    """Of one channel.

    The VF goes on giving each of its queues some flows, whatever VM1 switches off (`ethtool -L`).
    These frames are not to wait there (virtio 1.3, 5.1.6.5.6). A ring that VM1 uses and that is not
    served, since it is quarantined, keeps its own.

    Attributes:
        guests: Pairs whose frames take another's receive ring, and whose.
    """

    guests: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rings: Sequence[Ring], served: Collection[int], ports: int) -> Self:
        """For the rings that the device shows, of which `served` run, and so many queues."""
        used = {ring.pair for ring in rings if ring.started and ring.enabled and not ring.transmits}
        ready = sorted(pair for pair in used if 2 * pair in served)
        away = set(range(ports)) - used
        return cls({pair: ready[pair % len(ready)] for pair in away} if ready else {})

    def home(self, pair: int) -> int:
        """The pair whose receive ring it is, on whose lcore both have to run."""
        return self.guests.get(pair, pair)

    def shared(self, pair: int) -> bool:
        """Whether several queues of the VF share its receive ring."""
        return pair in self.guests or pair in self.guests.values()
