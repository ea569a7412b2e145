"""Several queue pairs at one port of the VF, as the kernel steers frames to them.

`divide` says which pairs and which ports belong together; `Steering` is a port that several share.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from guest.named_tuple import NamedTuple
from pmd.handle import Handle
from pmd.kernel_library import library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pmd.kernel import Queue
    from pmd.port import Port


class Group(NamedTuple):
    """Queue pairs and ports that one lcore runs; the pairs send on its ports, pair n on port n.

    What a port receives goes to those of its pairs that receive, else to the first pair.
    """

    pairs: tuple[int, ...]
    ports: tuple[int, ...]


def divide(receiving: Sequence[int], sending: Sequence[int], ports: int) -> tuple[Group, ...]:
    """As many groups as can be, each with a port, and a pair that receives if any does.

    Where there are as many pairs as ports, pair n has port n.

    Args:
        receiving: Queue pairs with a receive ring that is enabled.
        sending: Further pairs, that only send.
        ports: How many there are, at least 1.
    """
    pairs = [*receiving, *sending]
    count = min(len(receiving) or 1, ports)
    if not pairs:
        return ()
    return tuple(
        Group(tuple(pairs[first::count]), tuple(range(first, ports, count)))
        for first in range(count)
    )


class SteeredPort(Handle):
    """A queue pair's end of a `Steering`, which owns it: for a `Work`."""

    def __init__(self, steering: Steering, pair: int) -> None:
        self._steering = steering
        super().__init__(library().rk_steering_port(steering.handle, pair))

    def hold(self) -> None:
        """See `Handle.hold`."""
        self._steering.hold()

    def let_go(self) -> None:
        """See `Handle.let_go`."""
        self._steering.let_go()


class Steering(Handle):
    """A port that several queue pairs share (virtio 1.3, 5.1.6.5.6).

    Thread rule: one loop runs all of its pairs; the rest while none does.

    Args:
        port: Nobody else runs it until close.
        receivers: The receive ring of each pair, None where it does not receive.

    Raises:
        VhostPciError: No memory.
    """

    _free = "rk_steering_free"

    def __init__(self, port: Port, receivers: Sequence[Queue | None]) -> None:
        rings = [None if queue is None else queue.handle for queue in receivers]
        array = (ctypes.c_void_p * len(rings))(*rings)
        handle = library().rk_steering_new(port.handle, array, len(rings))
        if not handle:
            cause = os.strerror(ctypes.get_errno()).lower()
            raise VhostPciError("share", f"{port.name} among {len(rings)} queue pairs", cause)
        super().__init__(handle, [port, *(queue for queue in receivers if queue is not None)])
        self.ports = tuple(SteeredPort(self, pair) for pair in range(len(rings)))
