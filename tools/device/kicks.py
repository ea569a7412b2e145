"""VM1's kicks, watched only while armed: a polling driver costs the device no CPU."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tools.device.eventfd import drain_eventfd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.device.vm1_state import RingState


class KickWatch:
    """Calls kicked(ring) when VM1 wrote the kick eventfd of an armed ring.

    Borrows the eventfds of the rings given last. Thread rule: the event loop's.
    """

    def __init__(self, kicked: Callable[[int], None]) -> None:
        self._kicked = kicked
        self._armed: set[int] = set()
        self._rings: Sequence[RingState] = ()
        self._watched: dict[int, int] = {}

    @property
    def armed(self) -> tuple[int, ...]:
        """The rings for which KICK_ARM is set."""
        return tuple(sorted(self._armed))

    def arm(self, ring: int, *, enable: bool) -> None:
        """What KICK_ARM says of a ring. A kick that came before counts as the first one."""
        if enable:
            self._armed.add(ring)
        else:
            self._armed.discard(ring)
        self._watch()

    def disarm_all(self) -> None:
        """As after a reset."""
        self._armed.clear()
        self._watch()

    def take(self, rings: Sequence[RingState]) -> None:
        """Watch these rings' eventfds from now on; the former ones may be closed after this."""
        self._rings = rings
        self._watch()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in self._watched.values():
            loop.remove_reader(fd)
        self._watched = {}
        for ring in self._armed:
            if ring < len(self._rings) and self._rings[ring].kick_fd >= 0:
                self._add(loop, ring, self._rings[ring].kick_fd)

    def _add(self, loop: asyncio.AbstractEventLoop, ring: int, fd: int) -> None:
        try:
            loop.add_reader(fd, self._readable, ring, fd)
        except OSError:
            return  # nothing that can be polled: VM1's own loss
        self._watched[ring] = fd

    def _readable(self, ring: int, fd: int) -> None:
        if drain_eventfd(fd):
            self._kicked(ring)
        else:  # end of file or worse would stay readable for ever
            asyncio.get_running_loop().remove_reader(fd)
            del self._watched[ring]
