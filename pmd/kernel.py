"""The ring-batch kernel as Python owns it: maps, queues, ports, loops, the SIGBUS guard.

The ladder, upwards: `Map` and `DirectionStats`, `Queue` on both, `Port`, `Work` of queues and a
port, `Loop` over works. What stands below must outlive what stands above: objects keep references
and counts of their users, and closing one that is still used raises BufferError: a bug of the
caller.

Thread rule: one thread at a time for an object and those below it; but `Loop.stop`,
`Guard.faulted` and reading statistics may happen at any time, from any thread. Kernel calls
release the GIL.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from driver.memory_map import Miss
from guest.errors import VhostPciError
from guest.named_tuple import NamedTuple
from pmd.guard import Guard
from pmd.handle import Handle
from pmd.kernel_abi import (
    BURST_MAX,
    FRAME_MAX,
    MISSES_MAX,
    DirectionStats,
    Event,
    LoopStats,
    MissStructure,
    PollStructure,
    RegionStructure,
    RingConfigStructure,
    RingFlags,
    WorkStructure,
)
from pmd.kernel_library import drop_names, fault_names, library, tsc_hz
from pmd.own_lines import own_lines
from pmd.port import Port, PortSpec
from pmd.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driver.device_state import DirtyMap
    from driver.memory_map import HostRegion

__all__ = [
    "BURST_MAX",
    "FRAME_MAX",
    "DirectionStats",
    "Event",
    "Guard",
    "Loop",
    "LoopStats",
    "Map",
    "Poll",
    "Port",
    "PortSpec",
    "Queue",
    "QueueError",
    "RingConfig",
    "RingFlags",
    "Work",
    "drop_names",
    "fault_names",
    "tsc_hz",
]


class Map(Handle):
    """VM1's memory as this process sees it: bus address -> host address.

    Args:
        regions: Sorted by bus, not overlapping (`MemoryMap.regions`). Copied; the memory behind
            them must stay mapped until close.

    Raises:
        VhostPciError: A region is empty, wraps, overlaps or is out of order; no memory.
    """

    _free = "rk_map_free"

    def __init__(self, regions: Sequence[HostRegion]) -> None:
        table = (RegionStructure * len(regions))(*(RegionStructure(*each) for each in regions))
        handle = library().rk_map_new(table, len(table))
        if not handle:
            cause = os.strerror(ctypes.get_errno()).lower()
            raise VhostPciError("translate through", f"{len(table)} memory regions", cause)
        super().__init__(handle)

    def translate(self, bus: int, length: int, permission: int) -> tuple[int, int] | None:
        """Host address of bus, and how many of length bytes are contiguous there; None if none."""
        run = ctypes.c_uint64()
        host = library().rk_map_translate(self.handle, bus, length, permission, ctypes.byref(run))
        return (host, run.value) if host else None


class RingConfig(NamedTuple):
    """struct rk_ring_config: bus addresses; size in descriptors; header 10 or 12 bytes (5.1.6.1).

    call_fd: -1 where VM1 gave none. call_offset -1: it is an eventfd; else 32 bits are written at
    this file offset (`guest.function.Doorbell`). The descriptor stays its owner's, and must stay
    open until the queue is closed. kick_fd: readable when VM1 kicked, -1 where nothing tells; open
    until no loop has the queue's work. commit: address of a packed ring's commit words, mapped
    until then (docs/device.md 5.6). mtu: of a receive ring, for frames that are not to be cut
    (5.1.4.1); 0: any length will do. dirty: where what is written to a receive ring's buffers is
    marked, mapped until then (docs/device.md 5.7); None: nobody asks.
    """

    desc: int
    avail: int
    used: int
    size: int
    flags: RingFlags
    header_bytes: int
    call_fd: int = -1
    call_offset: int = -1
    kick_fd: int = -1
    commit: int = 0
    mtu: int = 0
    dirty: DirtyMap | None = None


class QueueError(VhostPciError):
    """A ring cannot run; `errno` says why.

    EINVAL: impossible geometry. EFAULT: a part is not in one run of the map with its permission.
    ERANGE: avail.idx is further than the ring's size from used.idx, or a packed ring's commit words
    are none of it (quarantine: docs/device.md 5.3, 5.6). ENOMEM.
    """

    def __init__(self, name: str, number: int, *, packed: bool = False) -> None:
        causes = {
            errno.EINVAL: "its geometry is impossible",
            errno.EFAULT: "a part of it is outside the memory the driver may use",
            errno.ERANGE: "its commit words are no batch of this ring"
            if packed
            else "its available index is further than its size from its used index",
        }
        super().__init__("run", name, causes.get(number, os.strerror(number).lower()))
        self.errno = number


class Queue(Handle):
    """A ring ready to run from VM1's used.idx; packed: from its commit words (docs/device.md 5.3).

    Args:
        config: Frozen with the queue; a change of VM1's ring needs a new queue.
        map_: Borrowed until close.
        stats: Counted into while a loop runs the queue.
        name: For messages ("ring 3 of 0000:00:05.0").

    Raises:
        QueueError: See there.
    """

    _free = "rk_queue_free"

    def __init__(
        self, config: RingConfig, map_: Map, stats: DirectionStats, name: str = "ring"
    ) -> None:
        self.config = config
        self.stats = stats
        self.name = name
        dirty = config.dirty
        structure = RingConfigStructure(
            config.desc,
            config.avail,
            config.used,
            config.size,
            config.flags,
            config.header_bytes,
            config.call_fd,
            config.call_offset,
            config.kick_fd,
            config.mtu,
            config.commit,
            *((dirty.address, dirty.size, dirty.shift) if dirty else (0, 0, 0)),
        )
        handle = library().rk_queue_new(ctypes.byref(structure), map_.handle, ctypes.byref(stats))
        if not handle:
            packed = RingFlags.PACKED in config.flags
            raise QueueError(name, ctypes.get_errno(), packed=packed)
        super().__init__(handle, [map_])

    @property
    def fault(self) -> int:
        """An enum rk_fault (`fault_names`); not 0: quarantined, no longer touched."""
        fault = int(library().rk_queue_fault(self.handle))
        return 0 if fault_names()[fault] == "missing" else fault

    @property
    def in_flight(self) -> int:
        """Chains taken from the ring and not returned: the VF still reads them, or older ones."""
        return int(library().rk_queue_in_flight(self.handle))

    @property
    def waits(self) -> bool:
        """Whether it is left alone until it has translations; its `fault` is 0 then."""
        return fault_names()[int(library().rk_queue_fault(self.handle))] == "missing"

    def misses(self) -> list[Miss]:
        """Take what it waits for, to be asked for: each is told once."""
        table = (MissStructure * MISSES_MAX)()
        count = library().rk_queue_misses(self.handle, table)
        return [Miss(each.bus, each.length, each.permission) for each in table[:count]]

    def refuse(self, refused: Sequence[Miss]) -> None:
        """Drop chains that need what VM1's IOMMU does not have; VhostPciError without memory."""
        table = (MissStructure * len(refused))(*(MissStructure(*each) for each in refused))
        if library().rk_queue_refuse(self.handle, table, len(table)):
            raise QueueError(self.name, ctypes.get_errno())

    def remap(self, map_: Map) -> None:
        """Translate by another map from now on, where nothing is in flight.

        Raises:
            QueueError: A part of the ring is not there (EFAULT); it is as before.
        """
        if library().rk_queue_remap(self.handle, map_.handle):
            raise QueueError(self.name, ctypes.get_errno())
        self.replace_below([map_])

    def set_direct(self, port: Port) -> bool:
        """Receive into VM1's buffers by the VF's DMA, if those it has posted suit the port's VF.

        While it receives by copies, and no loop runs it; `Port.set_direct` is then due. A buffer
        that later does not suit ends the work with `Event.UNSUITED`.
        """
        return bool(library().rk_queue_set_direct(self.handle, port.handle))

    def set_copied(self, patience: int) -> None:
        """Receive by copies; the VF has let go of what it had of VM1's. While no loop runs it.

        Once so many buffers in a row suit the port's VF, the work ends with `Event.SUITED`; 0:
        nobody looks.
        """
        library().rk_queue_set_copied(self.handle, patience)

    def abandon(self) -> None:
        """Return those, counted as vf_error; but not VM1's receive buffers, which wait on.

        Only once the VF can no longer reach them.
        """
        library().rk_queue_abandon(self.handle)

    def call(self) -> None:
        """Call VM1 whatever its suppression says: once after each start (docs/device.md 5.3)."""
        library().rk_queue_call(self.handle)


class Poll(NamedTuple):
    """How a loop polls: struct rk_poll.

    idle_ns: It sleeps once nothing moved for so long; None: never. coalesce_ns: How long a call to
    VM1 may wait for others.
    """

    idle_ns: int | None = None
    coalesce_ns: int = 0


class Loop(Handle):
    """The poll loop of one lcore.

    Args:
        burst: Chains a turn of a work may complete in each direction, 1..BURST_MAX.
        poll: Whether it sleeps, and how long calls wait.
    """

    _free = "rk_loop_free"

    def __init__(self, burst: int, poll: Poll | None = None) -> None:
        self.stats = own_lines(LoopStats)
        self._works: tuple[Work, ...] = ()
        self._array: ctypes.Array[WorkStructure] | None = None
        self._running = False
        handle = library().rk_loop_new(burst, ctypes.byref(self.stats))
        if not handle:
            cause = os.strerror(ctypes.get_errno()).lower()
            raise VhostPciError("make", f"a loop of burst {burst}", cause)
        super().__init__(handle)
        if poll is not None:
            may_sleep = poll.idle_ns is not None
            structure = PollStructure(may_sleep, 0, poll.idle_ns or 0, poll.coalesce_ns)
            library().rk_loop_poll(self.handle, ctypes.byref(structure))

    @property
    def works(self) -> tuple[Work, ...]:
        """What `set` gave it."""
        return self._works

    def set(self, works: Sequence[Work]) -> None:
        """Poll these and no others, in this order. Their parts cannot be closed until the next set.

        Their `events` start anew. Not while it runs: BufferError.
        """
        if self._running:
            raise BufferError("the loop runs")
        array = own_lines(WorkStructure * len(works))
        for index, work in enumerate(works):
            array[index] = work.structure
            array[index].events = 0
            work.structure = array[index]  # a view: what the kernel writes is what `events` reads
        library().rk_loop_set(self.handle, array, len(works))
        self._array = array  # the kernel borrows it until the call above returns for another
        for part in (part for work in works for part in work.parts):
            part.hold()
        self._release()
        self._works = tuple(works)

    def _release(self) -> None:
        for part in (part for work in self._works for part in work.parts):
            part.let_go()
        self._works = ()

    def run(self, budget_ns: int) -> Event:
        """Poll, without the GIL, until an event; never empty. A work's own event is in the work."""
        self._running = True
        try:
            return Event(library().rk_loop_run(self.handle, budget_ns))
        finally:
            self._running = False

    def stop(self) -> None:
        """Make the running, or else the next, `run` return at its next burst. From any thread."""
        library().rk_loop_stop(self.handle)

    def close(self) -> None:
        """Let the works go and free it. Twice is fine; BufferError while it runs."""
        if self._running:
            raise BufferError("the loop runs")
        super().close()
        self._release()
