"""The function itself: how VM1's state looks from PCI, and what the driver's writes do.

docs/device.md 3 to 7. No sockets here: a vfio-user client reaches it through `VfioUserServer`, VM1
through `publish`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from driver.state_area import (
    COMMIT_REGION,
    FIRST_EXTENSION_WINDOW,
    QUEUE_COUNT_MAX,
    RING,
    WINDOW_RW,
    Register,
    RingFlag,
    Status,
)
from guest.function import Area, Irq, Region, RegionInfo
from tools.device.commit_area import COMMIT_SIZE, CommitArea
from tools.device.dirty_map import DirtyMap
from tools.device.driver_watch import DriverWatch
from tools.device.interrupts import Interrupts
from tools.device.kicks import KickWatch
from tools.device.pci_config import CONFIG_SIZE, PciConfig
from tools.device.registers import Registers
from tools.device.ring_layout import layout_of
from tools.device.state_writer import BAR0_SIZE, STATE_OFFSET, STATE_SIZE, StateWriter
from tools.device.vm1_state import Vm1State
from tools.device.windows import EMPTY_LAYOUT, Window, choose_windows, lay_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from tools.device.vm1_state import RingState, Span

log = logging.getLogger(__name__)

# A dynamic client sees extension windows below this; stock QEMU refuses more than 100 regions.
REGION_COUNT_DYNAMIC = 32
SERIAL_MASK = 0xFFFF_FFFF
VM1_AWAY = Vm1State(connected=False, features=0, memory=(), rings=())


@dataclass(frozen=True, slots=True)
class RegionView:
    """A region with the descriptor of its mappable areas: area.offset is at file_offset + it.

    fd is -1 where nothing can be mapped; it stays the device's, and valid until the next publish.
    """

    info: RegionInfo
    fd: int = -1
    file_offset: int = 0


class VhostPciDevice:
    """One vhost-pci function. Thread rule: the running event loop's, from construction on.

    Args:
        ring_count: Entries of the ring table, 1 to 512.
        queue_error: Called with a ring that the driver has quarantined.
        missed: Called with what the driver lacks translations of.

    Raises:
        OSError: No memory for BAR 0.
    """

    def __init__(
        self,
        ring_count: int,
        queue_error: Callable[[int], None],
        missed: Callable[[list[Span]], None] = lambda _spans: None,
    ) -> None:
        if not 0 < ring_count <= QUEUE_COUNT_MAX:
            raise ValueError(f"{ring_count} rings")
        self.config = PciConfig()
        self.interrupts = Interrupts()
        self._writer = StateWriter(ring_count)
        try:
            self.commits = CommitArea()
        except OSError:
            self._writer.close()
            raise
        self._frozen_commits: tuple[int, int] | None = None
        self._driver = DriverWatch(
            lambda: self._writer.driver_area().heartbeat, lambda: self._writer.generation
        )
        self._dirty = DirtyMap(self._writer, self._driver)
        self._kicks = KickWatch(self._kicked)
        further: dict[int, Callable[[int], None]] = {
            Register.DRIVER_FEATURES: self._set_driver_features,
            Register.MISS: lambda count: missed(self._writer.misses(count)),
        }
        self._registers = Registers(ring_count, self._driver, self._kicks, queue_error, further)
        self._vm1 = VM1_AWAY
        self._layout = EMPTY_LAYOUT
        self._frozen: tuple[Window, ...] | None = None
        self._disconnect: Callable[[str], None] | None = None
        self._dynamic = True
        self._events = False
        self._publishing = asyncio.Lock()
        self._kick_interrupts = 0
        self._window_serial = 0
        self.config.set_bar(Region.BAR0, BAR0_SIZE, prefetchable=False)
        self.config.set_bar(COMMIT_REGION, COMMIT_SIZE, prefetchable=False)
        self._show()

    # VM1's side

    async def publish(self, state: Vm1State) -> None:
        """Show a new state; returns when nothing of the former one is in use any more.

        That is once the driver acknowledged, or is not there, or was declared dead: 5 s at most.
        What was written until then VM1's log shows, if it has one.
        Borrows the state's descriptors until the next publish has returned.
        """
        async with self._publishing:
            before = self._vm1
            self.commits.start(before, state)
            self._vm1 = state
            self._dirty.begin(state)
            # The log is the device's own affair.
            if state.log == before.log or replace(before, log=state.log) != state:
                self._kicks.take(state.rings)
                self._registers.take(state.rings)
                self._show()
                await self._follow()
            self.commits.finish(before, state)
            self._dirty.settle(before)

    async def _follow(self) -> None:
        """Wait for the driver; one that is dead is sent away."""
        cause = await self._driver.wait()
        if cause:
            log.warning("driver: declared dead: %s", cause)
            self._driver.lose()
            if self._disconnect is not None:
                self._disconnect(f"the driver is dead: {cause}")

    def _show(self) -> None:
        """Write tables and windows anew, under a new generation, and interrupt the driver."""
        memory = self._vm1.memory
        windows = self._frozen
        if windows is None:
            windows = choose_windows(memory, self.region_count)
        former, self._layout = self._layout, lay_out(memory, windows)
        self._window_serial += self._layout.shown != former.shown
        for region in self._layout.left_out:
            log.warning("VM1's %d bytes of memory at %#x are in no window", region.size, region.bus)
        status = Status.CONNECTED if self._vm1.connected else Status(0)
        rings: Sequence[RingState] = self._vm1.rings
        if not self._dynamic and (self._layout.left_out or self._has_other_commits()):
            status |= Status.REPLUG
            rings = ()
        translations = self._vm1.translations
        if translations is not None and not self._driver.translates:
            status |= Status.UNTRANSLATED
            rings, translations = (), ()
        if any(ring.started for ring in rings):
            status |= Status.RUNNING
        window = self._layout.window(WINDOW_RW)
        self.config.set_bar(WINDOW_RW, window.size if window else 0, prefetchable=True)
        self._writer.write(
            status,
            self._vm1.features,
            ring_table(rings, self._writer.ring_count, packed=layout_of(self._vm1.features).packed),
            self._layout.memory_table(translations),
            mtu=self._vm1.mtu,
            dirty_shift=self._dirty.shift,
            refused=self._vm1.refused,
            window_serial=self._window_serial & SERIAL_MASK,
            announcement=self._vm1.announcement,
        )
        self.interrupts.signal(Irq.MSI, 0)

    def _set_driver_features(self, value: int) -> None:
        self._driver.set_features(value)
        if self._vm1.translations is not None:
            self._show()

    def _has_other_commits(self) -> bool:
        """Whether packed rings need another commit area than a static client has mapped."""
        frozen = self._frozen_commits
        packed = layout_of(self._vm1.features).packed
        return packed and frozen not in (None, self.commits.identity)

    def _kicked(self, ring: int) -> None:
        # docs/device.md 6: vector 1 + (n mod 7).
        self._kick_interrupts += self.interrupts.signal(Irq.MSI, 1 + ring % 7)

    # The client's side

    def attach(
        self, disconnect: Callable[[str], None], *, dynamic: bool, events: bool = False
    ) -> None:
        """A client is there; disconnect(reason) is how to get rid of it.

        dynamic, events: what it wants of docs/device.md 3 and 4.
        It finds a state area written anew, whatever the one before it left there.
        """
        self._disconnect = disconnect
        self._dynamic = dynamic
        self._events = events
        self._show()

    def detach(self) -> None:
        """The client is gone: what it mapped, armed and assigned goes; the device's state stays."""
        self._disconnect = None
        self.interrupts.close()
        self._kicks.disarm_all()
        self._driver.lose()
        self._driver.acknowledged = None
        self._writer.clear_driver_area()
        self._frozen = None
        self._frozen_commits = None
        self._dynamic = True
        windows = choose_windows(self._vm1.memory, self.region_count)
        if windows != self._layout.windows or self._layout.left_out:
            self._show()

    def reset(self) -> None:
        """Function-level reset (docs/device.md 7). VM1 is not disturbed."""
        self._driver.lose()
        self._kicks.disarm_all()
        self.interrupts.release(Irq.MSI)
        self.config.reset()
        if self._vm1.translations is not None:
            self._show()  # the next driver may be one that does not translate

    @property
    def region_count(self) -> int:
        """How many region indices the client may ask for."""
        return REGION_COUNT_DYNAMIC if self._dynamic else FIRST_EXTENSION_WINDOW

    def region(self, index: int) -> RegionView:
        """A region as it is now; a static client's windows stay as they are from here on.

        OSError EINVAL for an index past region_count.
        """
        if not 0 <= index < self.region_count:
            raise OSError(errno.EINVAL, f"there is no region {index}")
        if index == Region.BAR0:
            info = RegionInfo(index, BAR0_SIZE, True, True, (Area(STATE_OFFSET, STATE_SIZE),))
            return RegionView(info, self._writer.fd)
        if index == COMMIT_REGION:
            if not self._dynamic and self._frozen_commits is None:
                self._frozen_commits = self.commits.identity
            info = RegionInfo(index, COMMIT_SIZE, True, True, (Area(0, COMMIT_SIZE),))
            return RegionView(info, self.commits.fd)
        if index == Region.CONFIG:
            return RegionView(RegionInfo(index, CONFIG_SIZE, True, True, ()))
        if not self._dynamic and index == WINDOW_RW and self._frozen is None:
            self._frozen = self._layout.windows
        window = self._layout.window(index)
        if window is None:
            return RegionView(RegionInfo(index, 0, False, False, ()))
        file = self._layout.file_of(window)
        info = RegionInfo(index, window.size, True, window.writable, self._layout.areas(window))
        return RegionView(info, file.fd if file and info.areas else -1, window.base)

    def read(self, index: int, offset: int, count: int) -> bytes:
        """Trapped read. OSError EINVAL outside the region; EIO and others from VM1's file."""
        self._check(index, offset, count)
        if index == Region.CONFIG:
            return self.config.read(offset, count)
        if index == Region.BAR0:
            if offset >= STATE_OFFSET:
                return self._writer.read(offset, count)
            if offset + count <= STATE_OFFSET:
                return self._registers.read(offset, count)
            behind = offset + count - STATE_OFFSET
            return bytes(count - behind) + self._writer.read(STATE_OFFSET, behind)
        if index == COMMIT_REGION:
            return os.pread(self.commits.fd, count, offset)
        window = self._layout.window(index)
        return self._layout.read(window, offset, count) if window else bytes(count)

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Trapped write. As read; EPERM where the region is read-only."""
        self._check(index, offset, len(data))
        window = self._layout.window(index)
        if index == Region.CONFIG:
            if self.config.write(offset, data):
                self.reset()
        elif index == Region.BAR0 and offset + len(data) > STATE_OFFSET:
            self._writer.write_driver_area(offset, data)
        elif index == Region.BAR0:
            self._registers.write(offset, data)
        elif index == COMMIT_REGION:
            os.pwrite(self.commits.fd, data, offset)
        elif window and not window.writable:
            raise OSError(errno.EPERM, f"region {index} is read-only")
        elif window:
            self._layout.write(window, offset, data)

    def _check(self, index: int, offset: int, count: int) -> None:
        window = self._layout.window(index) if index < self.region_count else None
        sizes = {Region.BAR0: BAR0_SIZE, COMMIT_REGION: COMMIT_SIZE, Region.CONFIG: CONFIG_SIZE}
        size = window.size if window else sizes.get(index, 0)
        if not (0 < count <= size and 0 <= offset <= size - count):
            raise OSError(errno.EINVAL, f"{count} bytes at {offset:#x} of region {index}")

    def eventfds(self) -> list[tuple[int, int]]:
        """BAR 0 offset and eventfd of what a client may signal, then of what it may wait for.

        VM1's call and, if the client wants events, its kick eventfds. They are borrowed.
        """
        kicks = self._registers.kicks() if self._events else []
        return self._registers.doorbells() + kicks

    def describe(self) -> dict[str, Any]:
        """All of it, for the host's display; only what JSON can say."""
        driver = self._writer.driver_area()
        return {
            "client": None if self._disconnect is None else {"dynamic_windows": self._dynamic},
            "driver_status": self._driver.status.name.lower(),
            "driver_pid": driver.pid,
            "heartbeat": driver.heartbeat,
            "generation": self._writer.generation,
            "acknowledged": self._driver.acknowledged,
            "frozen": self._frozen is not None,
            "windows": [
                {
                    "region": window.index,
                    "size": window.size,
                    "writable": window.writable,
                    "granted": sum(area.size for area in window.grants),
                }
                for window in self._layout.windows
            ],
            "dirty": self._dirty.describe(),
            "memory_entries": len(self._layout.entries),
            "memory_left_out": len(self._layout.left_out),
            "armed_kicks": list(self._kicks.armed),
            "kick_interrupts": self._kick_interrupts,
            **self._registers.describe(),
        }

    def close(self) -> None:
        """Free everything; the client and VM1 have been sent away before."""
        self._kicks.take(())
        self._dirty.close()
        self.interrupts.close()
        self.commits.close()
        self._writer.close()


def ring_table(rings: Sequence[RingState], count: int, *, packed: bool) -> npt.NDArray[np.void]:
    """The ring table (docs/device.md 5.3): count items of dtype RING, rings past count left out."""
    table = np.zeros(count, dtype=RING)
    for row, ring in zip(table, rings, strict=False):
        flags = RingFlag.PACKED if packed else RingFlag(0)
        flags |= RingFlag.STARTED if ring.started else 0
        flags |= RingFlag.ENABLED if ring.enabled else 0
        flags |= RingFlag.KICKABLE if ring.kick_fd >= 0 else 0
        flags |= RingFlag.CALLABLE if ring.call_fd >= 0 else 0
        row["size"], row["flags"] = ring.size, flags if ring.size else 0
        row["desc"], row["driver"], row["device"] = ring.desc, ring.driver, ring.device
        row["base"], row["call_serial"] = ring.base, ring.call_serial
    return table
