"""What VM1 changes between any two instructions of ours counts as it was read: once.

VM1's word has one of two values, either at random, anew after each instruction. Whatever is made
of it is made of one of them: a second look would now and then find the other. Rows S.. are of
tests/conformance.toml.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from driver.memory_map import BusAddress
from driver.offloads import Offloads
from driver.software_vf import PortSpec
from pmd.kernel import DirectionStats, Port, Work, fault_names
from tests.kernel.offload_frames import asking, packet
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import AVAIL, BIG, DATA_END, DESC, Rig
from tests.kernel.single_step import steps
from tests.kernel.test_concurrent import SECRET, _seal, _unharmed

if TYPE_CHECKING:
    from driver.offload import Offload

ALL = Offloads(0x3F00)
FRAME, GOOD = asking(packet(bytes(900)), 400)
HEADERS = len(FRAME) - 900
RUNS = 2  # of a second look each finds one in four; each check has a new seed
CUT = [HEADERS + 400, HEADERS + 400, HEADERS + 100]


def _flickering(
    work: Work, rig: Rig, bus: int, two: tuple[bytes, bytes], chance: random.Random
) -> None:
    """A turn, while VM1 writes either to the bus address at random."""
    run = rig.memory.translate(BusAddress(bus), len(two[0]), write=True)
    there = rig.windows[run.window][run.offset : run.offset + run.length].data
    for _ in steps(lambda: work.turn(32)):
        there[:] = two[chance.getrandbits(1)]


def _received(outside: socket.socket) -> list[bytes]:
    """What was sent there."""
    frames = []
    while True:
        try:
            frames.append(outside.recv(65536))
        except BlockingIOError:
            return frames


@pytest.mark.parametrize(
    ("other", "lengths"),
    [
        (replace(GOOD, segment_bytes=500), [HEADERS + 500, HEADERS + 400]),
        (replace(GOOD, checksum_start=0xFFF0), []),
    ],
    ids=["another size", "a checksum far away"],
)
def test_s26_the_header_is_read_once(other: Offload, lengths: list[int], seed: int) -> None:
    """The frame is cut here in software, by one of both headers, or is dropped for one of them."""
    chance = random.Random(seed)
    for _ in range(RUNS):
        outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        outside.setblocking(False)
        with outside, Port(PortSpec("dgram", inside.detach())) as port, Rig(offloads=ALL) as rig:
            rig.poke(BIG, GOOD.pack() + bytes(2) + FRAME)
            rig.chain(0, [(BIG, 12 + len(FRAME))])
            work = Work(rig.queue(DirectionStats()), None, port)
            two = (GOOD.pack(), other.pack())
            _flickering(work, rig, BIG, two, chance)
            sent = [len(frame) for frame in _received(outside)]
            assert sent in (CUT, lengths)
            assert rig.used_index() == 1


@pytest.mark.parametrize("layout", [Rig, PackedRig])
def test_s26_a_descriptor_is_read_once(layout: type[Rig], seed: int) -> None:
    """A short buffer at the end of what is granted, or a longer one elsewhere.

    Address and length may be of either, being two words; then it is dropped, and else within.
    """
    chance = random.Random(seed)
    for turn in range(2 * RUNS):
        outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        outside.setblocking(False)
        with outside, Port(PortSpec("dgram", inside.detach())) as port, layout() as rig:
            rig.plain = turn % 2 == 0
            secret = _seal(rig)
            rig.chain(0, [(DATA_END - 60, 60)])
            before = rig.peek(DESC, 16)
            after = struct.pack("<QI", BIG, 200) + before[12:]
            work = Work(rig.queue(DirectionStats()), None, port)
            _flickering(work, rig, DESC, (before, after), chance)
            for frame in _received(outside):
                assert len(frame) in (60 - 12, 200 - 12)
                assert SECRET not in frame
            assert _unharmed(rig, secret)


def test_s27_the_index_is_read_once_a_burst(seed: int) -> None:
    """Chains behind the index that was read are not taken, nor are those before it left."""
    chance = random.Random(seed)
    fewer, more = 2, 6
    for _ in range(2 * RUNS):
        with Rig() as rig, contextlib.ExitStack() as stack:
            for head in range(more):
                rig.chain(head, [(BIG, 72)])
            queue = rig.queue(DirectionStats())
            work = Work(queue, None, stack.enter_context(Port(PortSpec("null"))))
            two = (struct.pack("<H", fewer), struct.pack("<H", more))
            _flickering(work, rig, AVAIL + 2, two, chance)
            assert rig.used_index() in (fewer, more)
            assert fault_names()[queue.fault] == fault_names()[0]
