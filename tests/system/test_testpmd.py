"""DPDK's virtio-net driver as VM1, its rings served by `pmd` through `vhost-pci-device`.

Goal: somebody else's driver, with each way to lay out its rings, sends and receives whole frames,
and none is lost, made up or changed. Method: testpmd counts on its side, the VF on ours, and where
content matters the frames are captured and compared. A testpmd stays while one `pmd` after the
other serves it.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system import pcap
from tests.system.processes import Device, Pmd
from tests.system.testpmd import PortStats, Testpmd, virtio_user

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

SIZES = (64, 256, 1518)
BURSTS = 16
BURST = 32
SEGMENTS = (64, 100, 200)
LOOP_S = 4.0
WRAP_S = 0.5
WRAP_TIMEOUT_S = 60.0


@functools.cache
def wide() -> bool:
    """Whether this machine has what DPDK's vectorized way on packed rings needs."""
    return "avx512f" in Path("/proc/cpuinfo").read_text().split()


@dataclass(frozen=True, slots=True)
class Rings:
    """How testpmd lays out its rings."""

    mergeable: bool
    in_order: bool
    queue_size: int
    queue_pairs: int
    packed: bool = False
    vectorized: bool = False

    def __str__(self) -> str:
        words = ["packed"] * self.packed + ["mergeable"] * self.mergeable
        words += ["in-order"] * self.in_order + ["vectorized"] * self.vectorized
        words += ["without AVX-512"] * (self.vectorized and self.packed and not wide())
        return "-".join([*words, f"{self.queue_size}x{self.queue_pairs}"])

    @property
    def paths(self) -> tuple[str, str]:
        """The functions that DPDK has to transmit and receive by, in its words."""
        if self.packed:
            # On another machine DPDK goes the standard way, and the test's name says so.
            plain = "vectorized" if self.vectorized and wide() else "standard"
            kind = "mergeable buffer" if self.mergeable else plain
            return f"packed ring {plain} Tx", f"packed ring {kind} Rx"
        if self.in_order:
            return "inorder Tx", "inorder Rx"
        kind = "mergeable buffer" if self.mergeable else "standard"
        return "standard Tx", f"{'vectorized' if self.vectorized else kind} Rx"


# Every value and every pair of values of any two columns, and DPDK's way for rows of vectors.
SPLIT = [
    Rings(mergeable=False, in_order=False, queue_size=256, queue_pairs=1),
    Rings(mergeable=False, in_order=True, queue_size=1024, queue_pairs=2),
    Rings(mergeable=True, in_order=False, queue_size=1024, queue_pairs=2),
    Rings(mergeable=True, in_order=True, queue_size=256, queue_pairs=3),
    Rings(mergeable=True, in_order=True, queue_size=1024, queue_pairs=1),
    Rings(mergeable=False, in_order=False, queue_size=256, queue_pairs=4),
    Rings(mergeable=False, in_order=False, queue_size=256, queue_pairs=1, vectorized=True),
]
# Each of DPDK's ways to receive and to transmit on a packed ring.
PACKED = [
    Rings(mergeable=False, in_order=False, queue_size=256, queue_pairs=2, packed=True),
    Rings(mergeable=True, in_order=False, queue_size=256, queue_pairs=3, packed=True),
    Rings(mergeable=True, in_order=True, queue_size=1024, queue_pairs=1, packed=True),
    Rings(mergeable=False, in_order=True, queue_size=256, queue_pairs=4, packed=True),
    Rings(
        mergeable=False,
        in_order=True,
        queue_size=256,
        queue_pairs=1,
        packed=True,
        vectorized=True,
    ),
    Rings(
        mergeable=True, in_order=True, queue_size=256, queue_pairs=2, packed=True, vectorized=True
    ),
]


@dataclass(frozen=True, slots=True)
class Driver:
    """VM1: testpmd at a device, whom one `pmd` after the other serves."""

    rings: Rings
    device: Device
    testpmd: Testpmd


def start_testpmd(device: Device, rings: Rings) -> Testpmd:
    vdev = virtio_user(
        device.vhost_user,
        queue_pairs=rings.queue_pairs,
        queue_size=rings.queue_size,
        packed=rings.packed,
        mergeable=rings.mergeable,
        in_order=rings.in_order,
        vectorized=rings.vectorized,
    )
    return Testpmd([vdev], cpu=0, queue_pairs=rings.queue_pairs, queue_size=rings.queue_size)


@pytest.fixture(scope="module", params=[*SPLIT, *PACKED], ids=str)
def driver(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Driver]:
    with (
        Device(tmp_path_factory.mktemp("driver")) as device,
        start_testpmd(device, request.param) as testpmd,
    ):
        # Until then it sets its rings up more than once, and frames in them are forgotten.
        testpmd.wait_for_link()
        yield Driver(request.param, device, testpmd)


def wait_until_rings_wrapped(driver: Driver, since: PortStats) -> None:
    """Returns once more than ten laps went through, and no earlier than WRAP_S."""
    deadline = time.monotonic() + WRAP_TIMEOUT_S
    time.sleep(WRAP_S)
    while max(_moved(now := driver.testpmd.port_stats(), since)) <= 10 * driver.rings.queue_size:
        assert time.monotonic() < deadline, f"slow, or stuck: {now}"
        time.sleep(WRAP_S)


def wait_until_sent(driver: Driver, since: PortStats, count: int) -> None:
    """Returns once so many frames went back, however long either was kept from its CPU."""
    deadline = time.monotonic() + WRAP_TIMEOUT_S
    while _moved(now := driver.testpmd.port_stats(), since)[1] < count:
        assert time.monotonic() < deadline, f"slow, or lost: {now}"


def _moved(now: PortStats, since: PortStats) -> tuple[int, int]:
    return now.rx_packets - since.rx_packets, now.tx_packets - since.tx_packets


def check_txonly_frame(frame: bytes, size: int) -> None:
    """What testpmd's txonly makes: IPv4 with its checksum, UDP, and all lengths right."""
    assert len(frame) == size
    assert frame[12:14] == b"\x08\x00"
    header = struct.unpack("!10H", frame[14:34])
    assert header[1] == size - 14
    total = sum(header)
    assert (total & 0xFFFF) + (total >> 16) in {0xFFFF, 0x1FFFE}
    assert frame[23] == 17
    assert struct.unpack("!H", frame[38:40]) == (size - 34,)


def transmit_some(testpmd: Testpmd, pmd: Pmd) -> int:
    """Has each queue send BURSTS; how many frames there was room for."""
    testpmd.start("rxonly", bursts_first=BURSTS)
    counts = testpmd.stop_forwarding()
    pmd.wait_until_quiet(1)  # or the next ones find the ring still full
    assert counts.rx_packets == 0
    assert (counts.tx_packets + counts.tx_dropped) % (BURSTS * BURST) == 0
    return counts.tx_packets


def test_the_driver_takes_the_path_that_is_meant(driver: Driver) -> None:
    assert driver.testpmd.paths == driver.rings.paths
    # It has a control queue where it has several pairs, and receive modes (CTRL_RX) by that.
    assert ("support rx control" in driver.testpmd.said) == (driver.rings.queue_pairs == 1)


def test_transmitted_frames_arrive(driver: Driver) -> None:
    """Some of each size, then for a while: the rings wrap many times. All that it counts arrive."""
    rings, testpmd = driver.rings, driver.testpmd
    with Pmd([(driver.device.function, "null")]) as pmd:
        pmd.wait_until_forwarding()
        sent = []
        for size in SIZES:
            testpmd.command(f"set txpkts {size}")
            sent.append(transmit_some(testpmd, pmd))
        testpmd.command(f"set txpkts {SIZES[0]}")
        before = testpmd.port_stats()
        testpmd.start("txonly")
        wait_until_rings_wrapped(driver, before)
        sustained = testpmd.stop_forwarding().tx_packets
        pmd.wait_until_quiet()
        summary = pmd.summary()
    assert min(sent) >= rings.queue_size * rings.queue_pairs // 2
    assert sustained > 10 * rings.queue_size
    bytes_sent = sum(n * size for n, size in zip(sent, SIZES, strict=True))
    assert summary.vm1_to_vf.packets == sum(sent) + sustained
    assert summary.vm1_to_vf.bytes == bytes_sent + SIZES[0] * sustained
    assert summary.vm1_to_vf.dropped == 0
    assert summary.vf_to_vm1.packets == 0


def test_content_through_testpmd_and_back(driver: Driver, tmp_path: Path) -> None:
    """testpmd sends back each frame of a capture as it is: the same frames in the same order."""
    dice = random.Random(str(driver.rings))
    sizes = [60, 61, 1514, *(dice.randint(60, 1514) for _ in range(2000))]
    frames = [dice.randbytes(size) for size in sizes]
    given, output = tmp_path / "in.pcap", tmp_path / "out.pcap"
    pcap.write(given, frames)
    # Where its transmit ring is full, testpmd is to wait instead of dropping.
    driver.testpmd.command("set burst tx delay 100 retry 100000")
    before = driver.testpmd.port_stats()
    driver.testpmd.start("io retry")
    with Pmd([(driver.device.function, f"pcap:{given},{output}")]) as pmd:
        pmd.wait_until_forwarding()
        wait_until_sent(driver, before, len(frames))
        pmd.wait_until_quiet()
        summary = pmd.summary()
    counts = driver.testpmd.stop_forwarding()
    assert counts.rx_packets == counts.tx_packets == len(frames)
    assert summary.vf_to_vm1.packets == summary.vm1_to_vf.packets == len(frames)
    assert summary.vf_to_vm1.dropped == summary.vm1_to_vf.dropped == 0
    found = pcap.read(output)
    if driver.rings.queue_pairs > 1:  # one flow each: they are in order within a pair only
        assert sorted(found) == sorted(frames)
    else:
        assert found == frames


def test_frames_from_the_vf(driver: Driver) -> None:
    """gen fills VM1's receive rings as fast as testpmd empties them; both count the same."""
    testpmd = driver.testpmd
    before = testpmd.port_stats()
    testpmd.start("rxonly")
    with Pmd([(driver.device.function, "gen:256")]) as pmd:
        pmd.wait_until_forwarding()
        wait_until_rings_wrapped(driver, before)
        summary = pmd.summary()
    deadline = time.monotonic() + WRAP_TIMEOUT_S
    while _moved(after := testpmd.port_stats(), before)[0] < summary.vf_to_vm1.packets:
        assert time.monotonic() < deadline, f"lost: {after}"
    testpmd.stop_forwarding()
    received, sent = _moved(after, before)
    assert received > 10 * driver.rings.queue_size
    assert (received, sent) == (summary.vf_to_vm1.packets, 0)
    assert after.rx_bytes - before.rx_bytes == 256 * received
    assert summary.vf_to_vm1.dropped == 0


@contextmanager
def standing_still(pmd: Pmd) -> Iterator[None]:
    os.kill(pmd.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pmd.pid, signal.SIGCONT)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_transmitted_content(tmp_path: Path, packed: bool) -> None:
    """Frames of one segment, and of several: those fill a ring with a table each.

    In chains a ring would have room for a quarter of as many: header and three segments.
    """
    rings = Rings(mergeable=True, in_order=False, queue_size=256, queue_pairs=1, packed=packed)
    output = tmp_path / "out.pcap"
    sent = {}
    with Device(tmp_path) as device, Pmd([(device.function, f"pcap:,{output}")]) as pmd:
        with start_testpmd(device, rings) as testpmd:
            pmd.wait_until_forwarding()
            for size in SIZES:
                testpmd.command(f"set txpkts {size}")
                sent[size] = transmit_some(testpmd, pmd)
            testpmd.command(f"set txpkts {','.join(map(str, SEGMENTS))}")
            with standing_still(pmd):
                testpmd.start("rxonly", bursts_first=BURSTS)
                sent[sum(SEGMENTS)] = testpmd.stop_forwarding().tx_packets
            pmd.wait_until_quiet()
        pmd.summary()
    assert min(sent.values()) >= rings.queue_size // 2
    frames = pcap.read(output)
    assert len(frames) == sum(sent.values())
    expected = [size for size, count in sent.items() for _ in range(count)]
    for frame, size in zip(frames, expected, strict=True):
        check_txonly_frame(frame, size)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_frames_circulate(tmp_path: Path, packed: bool) -> None:
    """1024 frames for each queue go round between testpmd and loop for a while; none gets lost.

    What testpmd sent, the VF got; what the VF gave, testpmd got or has in its receive rings. A
    frame ends where testpmd finds its transmit ring full, and says so; or with testpmd, and what
    then waits for buffers is dropped, or left in a ring that is stopped before it is looked at
    once more. Or in the beginning: testpmd waits for no answer once it has its second pair turned
    on, and what it sends there before `pmd` has heard of that is dropped as of a pair that is off.
    """
    rings = Rings(mergeable=True, in_order=False, queue_size=256, queue_pairs=2, packed=packed)
    with Device(tmp_path) as device, Pmd([(device.function, "loop")]) as pmd:
        with start_testpmd(device, rings) as testpmd:
            pmd.wait_until_forwarding()
            testpmd.start("io", bursts_first=32)
            drops = pmd.drops_within(LOOP_S)
            first = 32 * BURST * rings.queue_pairs
            while testpmd.port_stats().rx_packets <= 10 * first:  # the test's own timeout bounds it
                drops += pmd.drops_within(WRAP_S)
            counts = testpmd.stop_forwarding()
            pmd.wait_until_quiet()
        summary = pmd.summary()
    assert counts.tx_packets + counts.tx_dropped == counts.rx_packets + first
    assert counts.rx_packets > 10 * first
    early = sum(drops)
    assert early <= first // rings.queue_pairs
    assert not any(drops[len(drops) // 2 :])
    left = counts.tx_packets - summary.vm1_to_vf.packets
    assert early <= summary.vm1_to_vf.dropped <= left
    assert left - early <= rings.queue_size * rings.queue_pairs
    assert summary.vm1_to_vf.drops.keys() <= {"disabled", "vf_down"}
    assert summary.vf_to_vm1.dropped == 0
    waiting = summary.vf_to_vm1.packets - counts.rx_packets
    assert 0 <= waiting <= rings.queue_size * rings.queue_pairs
    assert summary.vm1_to_vf.packets >= summary.vf_to_vm1.packets
