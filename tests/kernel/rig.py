"""A VM1 whose memory kernel and oracle see alike: rings are poked in, both run, all is compared.

VM1's memory is two windows full of noise. The bus addresses leave holes, join windows where these
are not neighbours, and touch the end of the address space; noise outside the grants is the canary.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from driver.bus_memory import BusMemory
from driver.device_ring import DescFlag, DeviceRing, Layout
from driver.device_state import DirtyMap
from driver.memory_map import MappedArea, MemoryMap
from driver.offload import PLAIN
from driver.offloads import Offloads
from driver.split_ring import SplitRing
from guest.closing import Closing
from guest.function import Area, RegionInfo
from pmd.kernel import (
    DirectionStats,
    Map,
    Queue,
    RingConfig,
    RingFlags,
    Work,
    drop_names,
    fault_names,
)
from tests.kernel.offload_frames import unnumbered
from tests.kernel.offload_port import OffloadPort
from tests.kernel.shared_memory import noisy
from tests.words import store_word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

ALL_OFFLOADS = Offloads(0x3F00)
NEXT, WRITE, INDIRECT = DescFlag.NEXT, DescFlag.WRITE, DescFlag.INDIRECT

RINGS = 0x10000  # ring parts only
RINGS_SIZE = 0x8000
DATA = 0x100000
DATA_SEAM = 0x104000  # the bus goes on, the window does not
DATA_END = 0x107000  # then a hole of one page
MORE = 0x108000
READ_ONLY = 0x10A000  # goes on after MORE, in the other window
READ_ONLY_END = 0x10C000
BIG = 0x200000
BIG_SIZE = 0x20000
TOP = (1 << 64) - 0x1000  # the last page there is
#         bus, length, offset, window, permission
TABLE = [
    (RINGS, RINGS_SIZE, 0x1000, 2, 3),
    (DATA, DATA_SEAM - DATA, 0x10000, 2, 3),
    (DATA_SEAM, DATA_END - DATA_SEAM, 0x20000, 2, 3),
    (MORE, READ_ONLY - MORE, 0x28000, 2, 3),
    (READ_ONLY, READ_ONLY_END - READ_ONLY, 0x1000, 4, 1),
    (BIG, BIG_SIZE, 0x40000, 2, 3),
    (TOP, 0x1000, 0x30000, 2, 3),
]
WINDOWS = {2: 0x70000, 4: 0x4000}
WRITABLE = 2  # the window that VM1 lets us write
PAGE_SHIFT = 12
MARKS = (BIG + BIG_SIZE) >> PAGE_SHIFT  # the last page there is has none: it is past the map's end

ISA = os.environ.get("PMD_KERNEL_ISA", "")  # tools/check runs all tests with "" and "scalar"
SMALL = 512  # the largest ring whose parts have the usual places
DESC, AVAIL, USED = RINGS, RINGS + 0x2000, RINGS + 0x4000


def frames_of(port: OffloadPort) -> list[bytes]:
    """The frames VM1 sent, and those it was not given, taken off the port."""
    found = [data for data, _ in port.sent + port.given]
    port.sent.clear()
    port.given.clear()
    return found


def give(port: OffloadPort, frames: Iterable[bytes]) -> None:
    """Have the port give VM1 these."""
    port.give((data, PLAIN) for data in frames)


def parts_of(size: int) -> tuple[int, int, int, int]:
    """Bus addresses of a ring's descriptors, available and used ring, and of what is behind them.

    A ring of more than SMALL has pages as it needs them: of 32768 it ends before DATA.
    """
    if size <= SMALL:
        return DESC, AVAIL, USED, RINGS + RINGS_SIZE
    avail = RINGS + 16 * size
    used = avail + 6 + 2 * size + 0xFFF & ~0xFFF
    end = used + 6 + 8 * size + 0xFFF & ~0xFFF
    return RINGS, avail, used, end


class Rig(Closing):
    """VM1's memory and one ring's layout; a context manager that frees what it made.

    far: whether the last page there is belongs to VM1. So wide a table has all the rest in one of
    the kernel's slots; without, a slot is a page.
    """

    regions = TABLE
    window_bytes = WINDOWS

    def __init__(self, size: int = 8, *, far: bool = True, **features: object) -> None:
        desc, avail, used, end = parts_of(size)
        self.layout = Layout(desc, avail, used, size, **features)  # type: ignore[arg-type]
        if end > RINGS + RINGS_SIZE:
            self._give_rings(end - RINGS)
        self.windows = {window: noisy(window, size) for window, size in self.window_bytes.items()}
        self.memory = MemoryMap(
            self.regions if far else self.regions[:-1],
            {
                window: RegionInfo(window, length, True, window == WRITABLE, (Area(0, length),))
                for window, length in self.window_bytes.items()
            },
        )
        self._vm1 = BusMemory(
            self.memory, {window: data.data for window, data in self.windows.items()}
        )
        self.kick_fd = -1
        self.marks: npt.NDArray[np.uint8] | None = None  # of each page, where it is to be marked
        self.plain = True  # whether plain chains go the short way; verdicts are to be the same
        self.takes = ALL_OFFLOADS  # of its ports; the rest is done in software
        self.isa = ISA  # of isa_names(), or ""; verdicts are to be the same again
        self._stack = ExitStack()
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stack.callback(os.close, self.call_fd)
        self.set_index(0)
        self.poke(self.layout.avail, bytes(2))

    def _give_rings(self, length: int) -> None:
        """Ring parts so long lie behind all else in their window."""
        behind = self.window_bytes[WRITABLE]
        self.regions = [(RINGS, length, behind, WRITABLE, 3), *self.regions[1:]]
        self.window_bytes = {**self.window_bytes, WRITABLE: behind + length}

    def poke(self, bus: int, data: bytes) -> None:
        """VM1 writes its memory: no permission holds it back. Two bytes are one store."""
        for run in self._vm1.runs(bus, len(data), write=False):
            part, data = data[: run.length], data[run.length :]
            target = self.windows[run.window][run.offset : run.offset + run.length]
            if run.length == 2:
                store_word(target.data, int.from_bytes(part, "little"))
            else:
                target[:] = np.frombuffer(part, np.uint8)

    def peek(self, bus: int, length: int) -> bytes:
        """VM1 reads its memory."""
        return self._vm1.read(bus, length)

    def set_index(self, index: int) -> None:
        """Both indices: an empty ring that has run before."""
        self.index = index % 65536
        self.poke(self.layout.avail + 2, struct.pack("<H", self.index))
        self.poke(self.layout.used + 2, struct.pack("<H", self.index))

    def desc(self, index: int, address: int, length: int, flags: int = 0, after: int = 0) -> None:
        """Write a descriptor of the ring's table."""
        where = self.layout.desc + 16 * index
        self.poke(where, struct.pack("<QIHH", address, length, flags, after))

    def table(self, bus: int, *entries: tuple[int, int, int, int]) -> None:
        """Write an indirect table."""
        self.poke(bus, b"".join(struct.pack("<QIHH", *entry) for entry in entries))

    def chain(self, head: int, buffers: Sequence[tuple[int, int]], flags: int = 0) -> None:
        """Write buffers as descriptors head, head + 1, ..., and make the chain available."""
        for offset, (address, length) in enumerate(buffers):
            more = NEXT if offset + 1 < len(buffers) else 0
            self.desc(head + offset, address, length, flags | more, head + offset + 1)
        self.make_available(head)

    def make_available(self, *heads: int) -> None:
        """Enter heads into the available ring and publish them."""
        self.index %= 65536
        for head in heads:
            slot = self.index % self.layout.size
            self.poke(self.layout.avail + 4 + 2 * slot, struct.pack("<H", head))
            self.index = (self.index + 1) % 65536
        self.poke(self.layout.avail + 2, struct.pack("<H", self.index))

    def used(self, count: int) -> list[tuple[int, int]]:
        """The last count used elements before used.idx: (id, len)."""
        end = self.used_index()
        slots = [(end - count + i) % 65536 % self.layout.size for i in range(count)]
        raw = [self.peek(self.layout.used + 4 + 8 * slot, 8) for slot in slots]
        return [struct.unpack("<II", each) for each in raw]

    def used_index(self) -> int:
        return int(struct.unpack("<H", self.peek(self.layout.used + 2, 2))[0])

    def mark(self) -> None:
        """Have what is written to buffers be marked from the next queue on."""
        self.marks = np.zeros(MARKS + 64, np.uint8)

    def _own_parts(self) -> list[tuple[int, int]]:
        """What the device's side writes of the ring, which it need not mark."""
        return [(self.layout.used, 6 + 8 * self.layout.size)]

    def content(self) -> dict[int, bytes]:
        """All memory, for `unmarked`."""
        return {window: data.tobytes() for window, data in self.windows.items()}

    def unmarked(self, before: dict[int, bytes]) -> list[int]:
        """Bus addresses of pages that are another content than before, and have no mark."""
        assert self.marks is not None
        assert not self.marks[MARKS:].any(), "marked past the map's end"
        own = {
            page
            for bus, size in self._own_parts()
            for page in range(bus >> PAGE_SHIFT, (bus + size - 1 >> PAGE_SHIFT) + 1)
        }
        found = []
        for bus, length, offset, window, _ in self.regions:
            for at in range(0, length, 1 << PAGE_SHIFT):
                page, part = (bus + at) >> PAGE_SHIFT, slice(offset + at, offset + at + 0x1000)
                changed = self.windows[window][part].tobytes() != before[window][part]
                if changed and page < MARKS and page not in own and not self.marks[page]:
                    found.append(bus + at)
        return found

    def kernel_map(self) -> Map:
        """A map onto the windows; freed with the rig."""
        areas = {
            window: [MappedArea(0, len(data), data.ctypes.data)]
            for window, data in self.windows.items()
        }
        return self._stack.enter_context(Map(self.memory.regions(areas)))

    def port(self) -> OffloadPort:
        """Keeps what it is sent, for `frames_of`, and gives VM1 what `give` gave it."""
        return self._stack.enter_context(OffloadPort(self.takes))

    def config(self) -> RingConfig:
        layout = self.layout
        flags = RingFlags(int(layout.offloads))
        for wanted, flag in [
            (layout.indirect, RingFlags.INDIRECT),
            (layout.event_idx, RingFlags.EVENT_IDX),
            (layout.mergeable, RingFlags.MERGEABLE),
            (layout.enabled, RingFlags.ENABLED),
            (layout.in_order, RingFlags.IN_ORDER),
        ]:
            flags |= flag if wanted else 0
        return RingConfig(
            layout.desc,
            layout.avail,
            layout.used,
            layout.size,
            flags,
            layout.header_bytes,
            self.call_fd,
            mtu=layout.mtu,
            kick_fd=self.kick_fd,
            dirty=self._dirty_map(),
        )

    def _dirty_map(self) -> DirtyMap | None:
        return None if self.marks is None else DirtyMap(self.marks.ctypes.data, MARKS, PAGE_SHIFT)

    def queue(self, stats: DirectionStats) -> Queue:
        """The kernel's queue, from the memory as it is; freed with the rig."""
        chosen = {"PMD_KERNEL_PLAIN": str(int(self.plain)), "PMD_KERNEL_ISA": self.isa}
        with patch.dict(os.environ, chosen):
            return self._stack.enter_context(Queue(self.config(), self.kernel_map(), stats))

    def oracle(self) -> tuple[DeviceRing, dict[int, bytearray]]:
        """The oracle's ring on a copy of the memory as it is."""
        copies = {window: bytearray(data.tobytes()) for window, data in self.windows.items()}
        views = {window: memoryview(copy) for window, copy in copies.items()}
        return SplitRing(self.layout, BusMemory(self.memory, views)), copies

    def copy_into(self, copies: dict[int, bytearray], bus: int, length: int) -> None:
        """Bring the oracle's copies up to date with part of the memory."""
        for run in self._vm1.runs(bus, length, write=False):
            part = slice(run.offset, run.offset + run.length)
            copies[run.window][part] = self.windows[run.window][part].tobytes()

    def check_alike(self, copies: dict[int, bytearray]) -> None:
        """What the kernel wrote is what the oracle wrote."""
        for window, copy in copies.items():
            mine = self.windows[window]
            if mine.tobytes() != bytes(copy):
                differing = [hex(at) for at in np.flatnonzero(mine != np.frombuffer(copy, "u1"))]
                raise AssertionError(f"window {window} differs at {differing[:16]}")

    def close(self) -> None:
        self._stack.close()


@dataclass(frozen=True)
class Outcome:
    """What kernel and oracle agreed on."""

    frames: list[bytes]  # transmit: what came out; receive: what stayed in the port
    drops: dict[str, int]
    fault: str
    packets: int
    calls: int


def agree(
    rig: Rig, ring: DeviceRing, copies: dict[int, bytearray], queue: Queue, frames: list[bytes]
) -> Outcome:
    """The kernel's counters, fault, calls and memory are the oracle's."""
    stats = queue.stats
    drops = {name: count for name, count in zip(drop_names(), stats.drops, strict=False) if count}
    assert drops == {verdict.value: count for verdict, count in ring.drops.items()}
    assert (stats.packets, stats.bytes) == (ring.packets, ring.payload_bytes)
    fault = fault_names()[queue.fault]
    assert fault == ring.fault.value
    rig.check_alike(copies)
    # A frame over the MTU takes none of the chains by whose number the kernel asks its port: a turn
    # may end with chains left, and the next one calls once more.
    if rig.layout.event_idx and "over_mtu" not in drops:
        assert stats.calls == ring.calls
    else:
        assert (stats.calls > 0) == (ring.calls > 0)
    assert _calls(rig) == stats.calls
    return Outcome(frames, drops, fault, stats.packets, stats.calls)


def _calls(rig: Rig) -> int:
    try:
        return os.eventfd_read(rig.call_fd)
    except BlockingIOError:
        return 0


def begin(
    rig: Rig, then: Callable[[Rig], None] | None
) -> tuple[DeviceRing, dict[int, bytearray], Queue]:
    """Kernel and oracle begin the ring; then VM1 goes on writing, the same for both."""
    ring, copies = rig.oracle()
    ring.taken = rig.takes
    queue = rig.queue(DirectionStats())
    if then:
        then(rig)
        rig.copy_into(copies, rig.layout.desc, rig.layout.used - rig.layout.desc)
    return ring, copies, queue


def transmit(rig: Rig, burst: int = 256, then: Callable[[Rig], None] | None = None) -> Outcome:
    """Run kernel and oracle over a transmit ring until nothing moves; they agree.

    then: What VM1 writes to descriptors and available ring after both have begun.
    """
    ring, copies, queue = begin(rig, then)
    port = rig.port()
    work = Work(queue, None, port)
    frames: list[bytes] = []
    while work.turn(burst):
        frames += frames_of(port)
    expected: list[bytes] = []
    index = -1
    while index != ring.completed:
        index = ring.completed
        expected += ring.transmit(burst)
    if rig.layout.offloads:
        frames = [unnumbered(frame) for frame in frames]
    assert frames == expected
    return agree(rig, ring, copies, queue, frames)


def receive(
    rig: Rig, frames: Sequence[bytes], burst: int = 256, then: Callable[[Rig], None] | None = None
) -> Outcome:
    """Run kernel and oracle over a receive ring until nothing moves; they agree.

    then: As for `transmit`.
    """
    ring, copies, queue = begin(rig, then)
    content = rig.content()
    port = rig.port()
    give(port, frames)
    work = Work(None, queue, port)
    while work.turn(burst):
        pass
    left = list(frames)
    before = (-1, -1)
    while before != (ring.completed, len(left)):
        before = (ring.completed, len(left))
        left = left[ring.receive(left, burst) :]
    assert frames_of(port) == left
    assert rig.marks is None or rig.unmarked(content) == []
    return agree(rig, ring, copies, queue, left)
