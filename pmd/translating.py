"""A channel's queues as VM1's translations come and go (docs/device.md 5.8).

Under VIRTIO_F_ACCESS_PLATFORM the memory table holds what is known of VM1's I/O virtual addresses,
so it changes all the time: queues, windows and ports stay, and only get another map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.ring import Feature
from guest.closing import Closing
from guest.errors import DeviceGoneError, VhostPciError
from pmd.kernel import Event, Map

if TYPE_CHECKING:
    from collections.abc import Collection

    from driver.device_state import DeviceState
    from driver.vhost_pci import VhostPci
    from pmd.kernel import Queue
    from pmd.pair_works import PairWorks

# What a work may have been left for, where only translations are at stake.
_HARMLESS = Event.GENERATION | Event.MISSING


class Translating(Closing):
    """The memory map of a channel's queues, and what replaces it.

    Thread rule: while no loop runs the works. Owns the maps; the queues are closed before it.

    Args:
        device: Stays the caller's.
        state: What is served, as `device.state` gave it.

    Raises:
        VhostPciError: No memory.

    Attributes:
        device: As given.
        state: What is served now.
    """

    def __init__(self, device: VhostPci, state: DeviceState) -> None:
        self.device = device
        self.state = state
        self._maps = [Map(state.regions)]

    @property
    def active(self) -> bool:
        """Whether VM1's addresses are translated at all."""
        return bool(self.state.features & Feature.ACCESS_PLATFORM)

    @property
    def map(self) -> Map:
        """The one that holds now."""
        return self._maps[-1]

    def follow(self, queues: Collection[Queue], works: PairWorks) -> int | None:
        """Ask for what the queues lack, and take what has come.

        Returns:
            The generation that is served now, acknowledged if it is another; None where more has
            changed than translations, or was not well: the channel is to be configured anew.

        Raises:
            DeviceGoneError: The function is lost.
        """
        self._ask(queues)
        served = self.state.generation
        if works.events & ~_HARMLESS or any(q.fault or q.in_flight for q in queues):
            return None
        if self.device.generation() == served:
            return None if works.events & Event.GENERATION else served
        try:
            state = self.device.retranslated(self.state)
            if state is None:
                return None
            self._take(state, queues)
        except DeviceGoneError:
            raise
        except VhostPciError:
            return None  # configured anew, it is said what is wrong
        works.expect(state.generation)
        self.device.acknowledge(state.generation)
        return state.generation

    def _ask(self, queues: Collection[Queue]) -> None:
        misses = [miss for queue in queues for miss in queue.misses()]
        if misses:
            self.device.report_misses(misses)

    def _take(self, state: DeviceState, queues: Collection[Queue]) -> None:
        self._maps.append(Map(state.regions))
        for queue in queues:
            queue.remap(self._maps[-1])
            queue.refuse(state.refused)
        self.state = state
        while len(self._maps) > 1:
            self._maps.pop(0).close()

    def close(self) -> None:
        """Free the maps. Twice is fine."""
        while self._maps:
            self._maps.pop().close()
