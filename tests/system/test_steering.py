"""A TAP device and VM1 with unequal numbers of queues: no frame is left where nobody looks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.pmd.many_pairs import Vm1
from tests.pmd.wait import wait_for
from tests.system.network import add_tap, ip, namespace, silence
from tests.system.processes import Device, Pmd
from tests.system.testpmd import Testpmd, virtio_user

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system

PAIRS = 4
FLOWS = 64
ROUNDS = 8
_CLONE_NEWNET = 0x40000000
_OUTGOING = 4  # PACKET_OUTGOING
_IP = struct.Struct(">BBHHHBBH4s4s")


def wire(name: str, interface: str) -> socket.socket:
    """A packet socket at an interface of a namespace, made by a thread that goes there."""
    made: list[socket.socket] = []

    def enter() -> None:
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert ctypes.CDLL(None).setns(fd, _CLONE_NEWNET) == 0
            made.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
            made[0].bind((interface, 3))
        finally:
            os.close(fd)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    made[0].settimeout(60)
    return made[0]


def frame(flow: int, number: int) -> bytes:
    macs = b"\x02\0\0\0\0\2\x02\0\0\0\0\1\x08\x00"
    header = _IP.pack(0x45, 0, 46, 0, 0, 64, 17, 0, b"\xc0\0\x02\x01", b"\xc0\0\x02\x02")
    return macs + header + struct.pack(">HHHHI14x", 1000 + flow, 53, 26, 0, number)


def parsed(data: bytes) -> tuple[int, int]:
    """Flow and number."""
    port, number = struct.unpack_from(">H6xI", data, 34)
    assert data == frame(port - 1000, number)
    return port - 1000, number


def test_one_queue_of_a_tap_for_four_of_testpmds(tmp_path: Path) -> None:
    """testpmd sends each frame back on the queue that it came by: its flow stays there."""
    with contextlib.ExitStack() as stack:
        outside = stack.enter_context(namespace("steer"))
        add_tap("vftap", outside)
        device = stack.enter_context(Device(tmp_path))
        vdev = virtio_user(device.vhost_user, queue_pairs=PAIRS, mergeable=True, in_order=True)
        testpmd = stack.enter_context(Testpmd([vdev], queue_pairs=PAIRS))
        pmd = stack.enter_context(Pmd([(device.function, "tap:vftap")], namespace=outside))
        pmd.wait_until_forwarding()
        testpmd.start("io")
        with wire(outside, "vftap") as end:
            for number in range(ROUNDS):
                for flow in range(FLOWS):
                    end.send(frame(flow, number))
                back: Counter[tuple[int, int]] = Counter()
                while back.total() < FLOWS:
                    data, address = end.recvfrom(65536)
                    if address[2] != _OUTGOING:
                        back[parsed(data)] += 1
                assert back == Counter((flow, number) for flow in range(FLOWS))
        counts = testpmd.stop_forwarding()
        pmd.wait_until_quiet()
        summary = pmd.summary()
    queues = re.findall(r"RX Port= 0/Queue= ?(\d+) .*?RX-packets: (\d+)", testpmd.said, re.DOTALL)
    assert [int(queue) for queue, _ in queues] == list(range(PAIRS))
    assert counts.rx_packets == counts.tx_packets == FLOWS * ROUNDS
    each = [int(packets) for _, packets in queues]
    # All of a flow went one way.
    assert sum(each) == FLOWS * ROUNDS
    assert [packets % ROUNDS for packets in each] == [0] * PAIRS
    assert min(each) > 0
    assert summary.vf_to_vm1.dropped == summary.vm1_to_vf.dropped == 0


def test_four_queues_of_a_tap_for_one_that_is_on(tmp_path: Path) -> None:
    """VM1 switches three of four pairs off: what the kernel puts into their queues comes too."""
    with contextlib.ExitStack() as stack:
        outside = stack.enter_context(namespace("steer"))
        ip("tuntap", "add", "dev", "vftap", "mode", "tap", "multi_queue", namespace=outside)
        silence("vftap", outside)
        ip("link", "set", "vftap", "up", namespace=outside)
        device = stack.enter_context(Device(tmp_path))
        pmd = stack.enter_context(Pmd([(device.function, "tap:vftap")], namespace=outside))
        vm1 = stack.enter_context(Vm1(device.vhost_user, PAIRS))
        pmd.wait_until_forwarding()
        found: Counter[tuple[int, int]] = Counter()

        def look() -> bool:
            found.update(parsed(data) for data in vm1.pairs[0].take_frames())
            return found.total() >= FLOWS

        with wire(outside, "vftap") as end:
            for pair in range(1, PAIRS):
                vm1.enable(pair, 0)
            for flow in range(FLOWS):
                end.send(frame(flow, 0))
            wait_for(look, "the frames")
        assert found == Counter((flow, 0) for flow in range(FLOWS))
        assert [each.take_frames() for each in vm1.pairs[1:]] == [[]] * (PAIRS - 1)
