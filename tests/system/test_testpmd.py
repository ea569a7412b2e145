"""DPDK's virtio-net driver as VM1, its rings served by `pmd` through `vhost-pci-device`.

Goal: somebody else's driver, with each way to lay out its rings, sends and
receives whole frames, and none is lost, made up or changed. Method: testpmd counts on its side, the
VF on ours, and where content matters the frames are captured and compared.
"""

from __future__ import annotations

import random
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system import pcap
from tests.system.processes import Device, Pmd
from tests.system.testpmd import PortStats, Testpmd, virtio_user

pytestmark = pytest.mark.system

SIZES = (64, 256, 1518)
BURSTS = 16
BURST = 32
LOOP_S = 4.0
WRAP_TIMEOUT_S = 60.0


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
        return "-".join([*words, f"{self.queue_size}x{self.queue_pairs}"])


# Every value and every pair of values of any two columns.
SPLIT = [
    Rings(mergeable=False, in_order=False, queue_size=256, queue_pairs=1),
    Rings(mergeable=False, in_order=True, queue_size=1024, queue_pairs=2),
    Rings(mergeable=True, in_order=False, queue_size=1024, queue_pairs=2),
    Rings(mergeable=True, in_order=True, queue_size=256, queue_pairs=2),
    Rings(mergeable=True, in_order=True, queue_size=1024, queue_pairs=1),
    Rings(mergeable=False, in_order=False, queue_size=256, queue_pairs=1, vectorized=True),
]
# Each of DPDK's ways to receive and to transmit on a packed ring.
PACKED = [
    Rings(mergeable=False, in_order=False, queue_size=256, queue_pairs=2, packed=True),
    Rings(mergeable=True, in_order=True, queue_size=1024, queue_pairs=1, packed=True),
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
ALL = [*SPLIT, *PACKED]


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


def wait_until_rings_wrapped(testpmd: Testpmd, rings: Rings) -> None:
    """Returns once more than ten laps went through: a second, on a machine that is idle."""
    deadline = time.monotonic() + WRAP_TIMEOUT_S
    time.sleep(1)
    while max(_moved(testpmd.port_stats())) <= 10 * rings.queue_size:
        assert time.monotonic() < deadline, f"slow, or stuck: {testpmd.port_stats()}"
        time.sleep(0.5)


def _moved(counters: PortStats) -> tuple[int, int]:
    return counters.rx_packets, counters.tx_packets


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


@pytest.mark.parametrize("rings", ALL, ids=str)
def test_transmitted_frames_arrive(tmp_path: Path, rings: Rings) -> None:
    with Device(tmp_path) as device, Pmd([(device.function, "null")]) as pmd:
        with start_testpmd(device, rings) as testpmd:
            pmd.wait_until_forwarding()
            offered = BURSTS * BURST * rings.queue_pairs
            sent = []
            for size in SIZES:
                testpmd.command(f"set txpkts {size}")
                testpmd.start("rxonly", bursts_first=BURSTS)
                counts = testpmd.stop_forwarding()
                assert counts.tx_packets + counts.tx_dropped == offered
                sent.append(counts.tx_packets)
                pmd.wait_until_quiet(1)  # or the next ones find the ring still full
            pmd.wait_until_quiet()
        summary = pmd.summary()
    assert min(sent) >= rings.queue_size * rings.queue_pairs // 2
    assert summary.vm1_to_vf.packets == sum(sent)
    assert summary.vm1_to_vf.bytes == sum(n * size for n, size in zip(sent, SIZES, strict=True))
    assert summary.vm1_to_vf.dropped == 0
    assert summary.vf_to_vm1.packets == 0


@pytest.mark.parametrize("rings", PACKED, ids=str)
def test_the_driver_takes_the_path_that_is_meant(tmp_path: Path, rings: Rings) -> None:
    with Device(tmp_path) as device, Pmd([(device.function, "null")]) as pmd:
        with start_testpmd(device, rings) as testpmd:
            pmd.wait_until_forwarding()
            transmit, receive = testpmd.paths.split("; ")
        pmd.summary()
    wide = rings.vectorized and "avx512f" in Path("/proc/cpuinfo").read_text().split()
    assert transmit == f"packed ring {'vectorized' if wide else 'standard'} Tx"
    kind = "mergeable buffer" if rings.mergeable else "vectorized" if wide else "standard"
    assert receive == f"packed ring {kind} Rx"


@pytest.mark.parametrize("size", SIZES)
def test_transmitted_content(tmp_path: Path, size: int) -> None:
    rings = Rings(mergeable=True, in_order=False, queue_size=256, queue_pairs=1)
    output = tmp_path / "out.pcap"
    with Device(tmp_path) as device, Pmd([(device.function, f"pcap:,{output}")]) as pmd:
        with start_testpmd(device, rings) as testpmd:
            pmd.wait_until_forwarding()
            testpmd.command(f"set txpkts {size}")
            testpmd.start("rxonly", bursts_first=BURSTS)
            sent = testpmd.stop_forwarding().tx_packets
            pmd.wait_until_quiet()
        pmd.summary()
    frames = pcap.read(output)
    assert len(frames) == sent >= rings.queue_size // 2
    for frame in frames:
        check_txonly_frame(frame, size)


@pytest.mark.parametrize("rings", ALL, ids=str)
def test_sustained_transmission(tmp_path: Path, rings: Rings) -> None:
    """A second of txonly: the rings wrap many times, and every frame testpmd counts arrives."""
    with Device(tmp_path) as device, Pmd([(device.function, "null")]) as pmd:
        with start_testpmd(device, rings) as testpmd:
            pmd.wait_until_forwarding()
            testpmd.start("txonly")
            wait_until_rings_wrapped(testpmd, rings)
            sent = testpmd.stop_forwarding()
            pmd.wait_until_quiet()
        summary = pmd.summary()
    assert sent.tx_packets > 10 * rings.queue_size
    assert summary.vm1_to_vf.packets == sent.tx_packets
    assert summary.vm1_to_vf.bytes == 64 * sent.tx_packets
    assert summary.vm1_to_vf.dropped == 0


@pytest.mark.parametrize("rings", ALL, ids=str)
def test_frames_from_the_vf(tmp_path: Path, rings: Rings) -> None:
    """gen fills VM1's receive rings as fast as testpmd empties them; both count the same.

    gen begins when testpmd is up: until then testpmd sets its rings up more than once, and frames
    in them are forgotten.
    """
    with Device(tmp_path) as device, start_testpmd(device, rings) as testpmd:
        testpmd.wait_for_link()
        with Pmd([(device.function, "gen:256")]) as pmd:
            pmd.wait_until_forwarding()
            testpmd.start("rxonly")
            wait_until_rings_wrapped(testpmd, rings)
            testpmd.stop_forwarding()
            pmd.wait_until_quiet()  # the rings are full now
            received = testpmd.port_stats()
            summary = pmd.summary()
    held = summary.vf_to_vm1.packets - received.rx_packets
    assert received.rx_packets > 10 * rings.queue_size
    assert received.rx_bytes == 256 * received.rx_packets
    assert 0 <= held <= rings.queue_size * rings.queue_pairs
    assert summary.vf_to_vm1.dropped == 0


@pytest.mark.parametrize("rings", ALL, ids=str)
def test_content_through_testpmd_and_back(tmp_path: Path, rings: Rings) -> None:
    """testpmd sends back each frame of a capture as it is: the same frames in the same order."""
    dice = random.Random(str(rings))
    sizes = [60, 61, 1514, *(dice.randint(60, 1514) for _ in range(2000))]
    frames = [dice.randbytes(size) for size in sizes]
    given, output = tmp_path / "in.pcap", tmp_path / "out.pcap"
    pcap.write(given, frames)
    with Device(tmp_path) as device, start_testpmd(device, rings) as testpmd:
        # Where its transmit ring is full, testpmd is to wait instead of dropping.
        testpmd.command("set burst tx delay 100 retry 100000")
        testpmd.start("io retry")
        with Pmd([(device.function, f"pcap:{given},{output}")]) as pmd:
            pmd.wait_until_forwarding()
            pmd.wait_until_quiet()
            summary = pmd.summary()
        counts = testpmd.stop_forwarding()
    assert counts.rx_packets == counts.tx_packets == len(frames)
    assert summary.vf_to_vm1.packets == summary.vm1_to_vf.packets == len(frames)
    assert summary.vf_to_vm1.dropped == summary.vm1_to_vf.dropped == 0
    found = pcap.read(output)
    if rings.queue_pairs > 1:  # one flow each: they are in order within a pair only
        assert sorted(found) == sorted(frames)
    else:
        assert found == frames


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_frames_circulate(tmp_path: Path, packed: bool) -> None:
    """1024 frames for each queue go round between testpmd and loop for a while; none gets lost.

    What testpmd sent, the VF got; what the VF gave, testpmd got or has in its receive rings. A
    frame ends where testpmd finds its transmit ring full, and says so, or where it ends itself:
    what then still waits for its buffers the VF drops.
    """
    rings = Rings(mergeable=True, in_order=False, queue_size=256, queue_pairs=2, packed=packed)
    with Device(tmp_path) as device, Pmd([(device.function, "loop")]) as pmd:
        with start_testpmd(device, rings) as testpmd:
            pmd.wait_until_forwarding()
            testpmd.start("io", bursts_first=32)
            pmd.forget_lines(LOOP_S)
            counts = testpmd.stop_forwarding()
            pmd.wait_until_quiet()
        summary = pmd.summary()
    first = 32 * BURST * rings.queue_pairs
    assert counts.tx_packets + counts.tx_dropped == counts.rx_packets + first
    assert counts.rx_packets > 10 * first
    left = counts.tx_packets - summary.vm1_to_vf.packets
    assert left <= rings.queue_size * rings.queue_pairs
    assert summary.vm1_to_vf.dropped == left
    assert summary.vm1_to_vf.drops.keys() <= {"disabled", "vf_down"}
    assert summary.vf_to_vm1.dropped == 0
    waiting = summary.vf_to_vm1.packets - counts.rx_packets
    assert 0 <= waiting <= rings.queue_size * rings.queue_pairs
    assert summary.vm1_to_vf.packets >= summary.vf_to_vm1.packets
