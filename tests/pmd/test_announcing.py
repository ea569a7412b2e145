"""VM1 has moved, and says nothing of it by itself: pmd tells the network, once."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from scapy.layers.l2 import ARP, Ether
from scapy.utils import rdpcap

from tests.device.vhost_user_peer import BUS, MIB, PROTOCOL, USER, FrontEnd, Region, memory
from tests.pmd.processes import Device, pmd
from tests.pmd.wait import wait_for
from tools.vhost_user_abi import Request

if TYPE_CHECKING:
    from pathlib import Path

RARP = 1 << 2
ADDRESS = "52:54:00:12:34:56"
OTHER = "52:54:00:12:34:57"


def payload(address: str) -> bytes:
    """As QEMU sends it: the address's bytes, and two more of no meaning."""
    return bytes.fromhex(address.replace(":", "")) + b"\xaa\xaa"


def begin(vm1: FrontEnd, fd: int) -> None:
    vm1.negotiate(protocol=PROTOCOL | RARP)
    assert vm1.set_memory([Region(BUS, 4 * MIB, USER)], [fd])


def start(vm1: FrontEnd) -> None:
    for ring in (0, 1):
        vm1.start_ring(ring, user=USER + 0x10000 * ring)
        vm1.enable_ring(ring)


def test_each_announcement_is_one_reverse_request(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Device(tmp_path) as device, memory() as fd:
        words = ["run", "--device", device.name, "--vf", f"pcap:,{out}"]
        with pmd(*words) as daemon, FrontEnd(device.vhost_user) as vm1:
            begin(vm1, fd)
            # Before the rings run it waits for them.
            assert vm1.acknowledged(Request.SEND_RARP, payload(ADDRESS))
            start(vm1)
            wait_for(lambda: f"announced {ADDRESS}" in daemon.stderr(), "the first one")
            vm1.stop_ring(0)
            start(vm1)
            assert vm1.acknowledged(Request.SEND_RARP, payload(ADDRESS))
            assert vm1.acknowledged(Request.SEND_RARP, payload(OTHER))
            wait_for(lambda: f"announced {OTHER}" in daemon.stderr(), "the last one")
            assert daemon.stop() == 0
    frames = [Ether(bytes(frame)) for frame in rdpcap(str(out))]
    assert [frame.src for frame in frames] == [ADDRESS, ADDRESS, OTHER]
    for frame in frames:
        assert (frame.dst, frame.type, len(frame)) == ("ff:ff:ff:ff:ff:ff", 0x8035, 60)
        asked = ARP(bytes(frame.payload))
        assert (asked.op, asked.hwsrc, asked.hwdst) == (3, frame.src, frame.src)
        assert (asked.hwtype, asked.ptype, asked.hwlen, asked.plen) == (1, 0x0800, 6, 4)
        assert {asked.psrc, asked.pdst} == {".".join("0000")}


def test_what_is_no_address_is_refused(tmp_path: Path) -> None:
    with Device(tmp_path) as device, memory() as fd, FrontEnd(device.vhost_user) as vm1:
        begin(vm1, fd)
        for address in ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"):
            assert not vm1.acknowledged(Request.SEND_RARP, payload(address))
        assert vm1.acknowledged(Request.SEND_RARP, payload(ADDRESS))


def test_without_the_protocol_feature_it_is_refused(tmp_path: Path) -> None:
    with Device(tmp_path) as device, FrontEnd(device.vhost_user) as vm1:
        vm1.negotiate()
        assert not vm1.acknowledged(Request.SEND_RARP, struct.pack("<Q", 0x5254))
