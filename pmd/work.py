"""`Work`: one queue pair of one channel, as a loop runs it."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from pmd.kernel_abi import Event, WorkStructure
from pmd.kernel_library import library

if TYPE_CHECKING:
    from pmd.guard import Guard
    from pmd.handle import Handle
    from pmd.kernel import Queue


class Work:
    """One queue pair of one channel, for a loop: what it polls and which facts it watches.

    Args:
        tx: VM1's transmit queue, or None.
        rx: VM1's receive queue, or None.
        port: The other end: a `Port`, or a struct rk_port of somebody else's.
        generation_address: Of the state area's u32, 0 for none (`VhostPci.generation_address`);
            must stay mapped while a loop has the work.
        expected: The generation tx and rx were made for.
        heartbeat_address: Of the driver area's u64, 0 for none.
        guard: Of the windows tx and rx lie in, or None.
        wake_fd: Readable when the generation changed, -1 where nothing tells; open while a loop has
            the work.
    """

    def __init__(
        self,
        tx: Queue | None,
        rx: Queue | None,
        port: Handle,
        *,
        generation_address: int = 0,
        expected: int = 0,
        heartbeat_address: int = 0,
        guard: Guard | None = None,
        wake_fd: int = -1,
    ) -> None:
        self.tx, self.rx, self.port, self.guard = tx, rx, port, guard
        self.structure = WorkStructure(
            generation_address or None,
            heartbeat_address or None,
            guard.fault_address if guard else None,
            tx.handle if tx else None,
            rx.handle if rx else None,
            port.handle,
            expected,
            0,
            wake_fd,
            0,
            0,
        )

    @property
    def events(self) -> Event:
        """Why the loop passes it over, and what it asks for; nothing while it runs."""
        return Event(self.structure.events)

    @property
    def parts(self) -> tuple[Handle, ...]:
        """The kernel objects that must outlive it."""
        return tuple(part for part in (self.tx, self.rx, self.port) if part is not None)

    def expect(self, generation: int) -> None:
        """Its queues are of this generation now. While no loop runs it."""
        self.structure.expected = generation
        self.structure.events = 0

    def turn(self, burst: int) -> int:
        """One turn outside any loop, for tests and stage benchmarks: the chains completed."""
        return int(library().rk_work_turn(ctypes.byref(self.structure), burst))

    def drain(self) -> int:
        """Return to VM1 what the VF is done with, take nothing new; the chains still in flight.

        Not while a loop runs it.
        """
        return int(library().rk_work_drain(ctypes.byref(self.structure)))

    def take_rest(self) -> None:
        """Give VM1 the frames that the port has, by copies, as far as VM1 has buffers.

        The VF's receive queue was stopped; `Port.set_direct` is due. Not while a loop runs it.
        """
        library().rk_work_take_rest(ctypes.byref(self.structure))

    def resume(self) -> None:
        """What passed it over has been seen to. While no loop runs it."""
        self.structure.events = 0
