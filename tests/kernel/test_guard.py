"""VM1's memory file shrinks under a running loop (docs/device.md 8; S-catalogue U17)."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from driver.memory_map import HostRegion
from driver.software_vf import PortSpec
from guest.mapping import Mapping
from pmd.kernel import (
    DirectionStats,
    Event,
    Guard,
    Loop,
    Map,
    Port,
    Queue,
    RingConfig,
    RingFlags,
    Work,
    fault_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 1 << 20
AVAIL, USED, DATA = 0x1000, 0x2000, 0x3000


@pytest.fixture
def memory() -> Iterator[int]:
    """A memfd with a ring of 256 whose buffers are one frame each."""
    fd = os.memfd_create("vm1", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    for head in range(256):
        os.pwrite(fd, struct.pack("<QIHH", DATA + 0x100 * head, 0x100, 0, 0), 16 * head)
        os.pwrite(fd, struct.pack("<H", head), AVAIL + 4 + 2 * head)
    yield fd
    os.close(fd)


def _queue(map_: Map) -> Queue:
    config = RingConfig(0, AVAIL, USED, 256, RingFlags.ENABLED, 12)
    return Queue(config, map_, DirectionStats())


def _regions(mapping: Mapping) -> list[HostRegion]:
    return [HostRegion(0, mapping.size, mapping.address, 3)]


@pytest.mark.parametrize("left", [0, DATA + 0x1000])
def test_a_shrunken_file_quarantines_the_channel(memory: int, left: int) -> None:
    with (
        Mapping(memory, SIZE, 0, writable=True, name="VM1") as mapping,
        Guard() as guard,
        Map(_regions(mapping)) as map_,
        _queue(map_) as queue,
        Port(PortSpec("copy")) as port,
        Loop(32) as loop,
    ):
        guard.add(mapping.address, mapping.size)
        work = Work(queue, None, port, guard=guard)
        loop.set([work])
        os.pwrite(memory, struct.pack("<H", 16), AVAIL + 2)
        assert loop.run(20_000_000) == Event.BUDGET
        assert queue.stats.packets == 16
        assert not guard.faulted

        shrink = threading.Timer(0.05, _shrink_and_go_on, (memory, left))
        shrink.start()
        deadline = time.monotonic() + 20
        event = Event.BUDGET
        while event == Event.BUDGET and time.monotonic() < deadline:
            event = loop.run(100_000_000)
        shrink.join()
        assert Event.FAULT in event  # the budget may end with it
        assert guard.faulted
        assert work.events == Event.FAULT
        assert fault_names()[queue.fault] == "window"
        packets = queue.stats.packets
        assert loop.run(1_000_000) == Event.BUDGET  # the work is passed over
        assert queue.stats.packets == packets
        loop.set([])


def _shrink_and_go_on(memory: int, left: int) -> None:
    """VM1 truncates its file; where the ring is left, offers buffers that are not."""
    os.ftruncate(memory, left)
    if left:
        os.pwrite(memory, struct.pack("<H", 16 + 200), AVAIL + 2)


def test_a_fault_elsewhere_goes_to_whom_it_concerns() -> None:
    """The handler must not swallow what is not a window: by default that ends the process."""
    script = (
        "import mmap, os, tempfile\n"
        "from pmd.kernel import Guard\n"
        "guard = Guard()\n"
        "file = tempfile.TemporaryFile()\n"
        "file.truncate(4096)\n"
        "view = mmap.mmap(file.fileno(), 4096)\n"
        "file.truncate(0)\n"
        "view[0]\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGBUS or b"AddressSanitizer" in ended.stderr


def test_removing_and_closing_twice_is_fine(memory: int) -> None:
    with Mapping(memory, SIZE, 0, writable=True, name="VM1") as mapping:
        guard = Guard()
        for _ in range(2000):  # more than there are places: each is given back
            guard.add(mapping.address, mapping.size)
            guard.remove(mapping.address)
        guard.remove(mapping.address)
        guard.close()
        guard.close()
        assert not guard.faulted
