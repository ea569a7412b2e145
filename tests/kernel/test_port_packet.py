"""The packet port on one end of a veth pair, against a packet socket on the other."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from driver.software_vf import parse_vf
from tests.kernel.namespace import answerer, frame, ip, namespace, run
from tests.kernel.port_user import VfUser, until

if TYPE_CHECKING:
    from collections.abc import Iterator

RING_SLOTS = 4096


@pytest.fixture(autouse=True)
def _network() -> Iterator[None]:
    """v0 is the VF's; v1 is the wire's."""
    with namespace():
        ip("link add v0 type veth peer name v1")
        ip("link set v0 up")
        ip("link set v1 up")
        yield


def test_frames_go_both_ways_in_order() -> None:
    with VfUser(parse_vf("packet:v0")) as vf, answerer("v1") as wire:
        sent = [frame(i, 60 + 7 * i) for i in range(200)]
        vf[0].tx_all([[each[:12], each[12:]] for each in sent])
        assert [wire.recv(1 << 16) for _ in sent] == sent
        for each in sent:
            wire.send(each)
        assert vf[0].take_all(len(sent)) == sent
        assert vf[0].rx() == []
        assert vf[0].missed == 0


def test_frames_longer_than_a_slot_come_whole_and_in_order() -> None:
    ip("link set v0 mtu 65535")
    ip("link set v1 mtu 65535")
    with VfUser(parse_vf("packet:v0")) as vf, answerer("v1") as wire:
        sent = [frame(i, 65000 if i % 3 == 0 else 100 + i) for i in range(250)]
        for begin in range(0, len(sent), 50):
            batch = sent[begin : begin + 50]
            for each in batch:
                wire.send(each)
            assert vf[0].rx(7) == batch[:7]
            vf[0].done(2)
            assert vf[0].take_all(48) == batch[2:]
        vf[0].tx_all([sent[0]])
        assert wire.recv(1 << 17) == sent[0]
        assert vf[0].missed == 0


@pytest.mark.parametrize("tag", ["8100e00c", "88a80007"])
def test_a_tag_that_the_kernel_took_out_is_put_back(tag: str) -> None:
    tagged = frame(5)[:12] + bytes.fromhex(tag) + frame(5)[12:]
    with VfUser(parse_vf("packet:v0")) as vf, answerer("v1") as wire, answerer("v0") as machine:
        wire.send(tagged)
        assert machine.recv(2000) == frame(5)
        assert vf[0].take_all(1) == [tagged]
        assert vf[0].tx([tagged]) == ["sent"]
        assert wire.recv(2000) == frame(5)


@pytest.mark.parametrize("layer", [UDP, TCP])
def test_checksums_left_to_hardware_are_finished(layer: type[UDP | TCP]) -> None:
    ip("addr add 192.0.2.1/24 dev v1")
    ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev v1")
    kind = socket.SOCK_DGRAM if layer is UDP else socket.SOCK_STREAM
    with VfUser(parse_vf("packet:v0")) as vf, socket.socket(socket.AF_INET, kind) as machine:
        machine.setblocking(False)
        machine.connect_ex(("192.0.2.2", 9))
        if layer is UDP:
            machine.send(b"an odd number of bytes.")
        packet = Ether(vf[0].take_all(1)[0])
    found = packet[layer].chksum
    assert packet[IP].src == "192.0.2.1"
    del packet[layer].chksum
    assert Ether(bytes(packet))[layer].chksum == found


def test_what_this_machine_sends_is_not_received() -> None:
    with VfUser(parse_vf("packet:v0"), 2) as vf, answerer("v0") as machine:
        with answerer("v1") as wire:
            machine.send(frame(1))
            assert vf[0].tx([frame(2)]) == ["sent"]
            assert vf[1].tx([frame(3)]) == ["sent"]
            assert [wire.recv(2000) for _ in range(3)] == [frame(1), frame(2), frame(3)]
            wire.send(frame(4))
        assert machine.recv(2000) == frame(4)
        assert vf[0].take() + vf[1].take() == [frame(4)]


def test_queue_pairs_share_flows() -> None:
    flows = [
        bytes(
            Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
            / IP(src="192.0.2.1", dst="192.0.2.2")
            / UDP(sport=sport, dport=9)
            / bytes(20)
        )
        for sport in range(1000, 1064)
    ]
    with VfUser(parse_vf("packet:v0"), 2) as vf, answerer("v1") as wire:
        for _ in range(2):
            for each in flows:
                wire.send(each)
        found: list[list[bytes]] = [[], []]

        def receive() -> bool:
            for pair in range(2):
                found[pair] += vf[pair].take()
            return len(found[0]) + len(found[1]) == 128

        until(receive, "all frames on two queues")
    assert sorted(found[0] + found[1]) == sorted(flows * 2)
    assert found[0]
    assert found[1]
    assert not set(found[0]) & set(found[1])


def test_drops_of_a_full_ring_are_counted() -> None:
    with VfUser(parse_vf("packet:v0")) as vf, answerer("v1") as wire:
        for i in range(RING_SLOTS + 100):
            wire.send(frame(i))
        assert vf[0].take_all(RING_SLOTS) == [frame(i) for i in range(RING_SLOTS)]

        def counted() -> bool:
            assert vf[0].rx() == []
            return vf[0].missed == 100

        until(counted, "the drops to be counted")
        wire.send(frame(7))
        assert vf[0].take_all(1) == [frame(7)]


def test_a_frame_the_interface_cannot_send_is_dropped_alone() -> None:
    with VfUser(parse_vf("packet:v0")) as vf, answerer("v1") as wire:
        assert vf[0].tx([frame(1), frame(2, 1600), frame(3)]) == ["sent", "oversize", "sent"]
        assert [wire.recv(2000) for _ in range(2)] == [frame(1), frame(3)]


@pytest.mark.parametrize("which", ["v0", "v1"])
def test_a_link_that_is_down_drops_and_then_works(which: str) -> None:
    ip("link set v0 mtu 9000")
    ip("link set v1 mtu 9000")
    with VfUser(parse_vf("packet:v0")) as vf, answerer("v1") as wire:
        wire.send(frame(0, 5000))  # kept whole beside the ring, where the error is told as well
        ip(f"link set {which} down")
        assert vf[0].tx([frame(1), frame(2)]) == ["vf_down", "vf_down"]
        ip(f"link set {which} up")
        until(lambda: vf[0].tx([frame(3)]) == ["sent"], "the link to come up")
        wire.setblocking(False)

        def arrived() -> bool:
            try:
                return wire.recv(2000) == frame(3)
            except OSError:
                return False

        until(arrived, "the frame to arrive")
        wire.send(frame(4))
        assert vf[0].take_all(2) == [frame(0, 5000), frame(4)]


def test_a_deleted_interface_drops() -> None:
    with VfUser(parse_vf("packet:v0")) as vf:
        ip("link del v0")
        assert vf[0].tx([frame(1), frame(2)]) == ["vf_down", "vf_down"]
        assert vf[0].rx() == []


def test_frames_for_other_stations_come_too() -> None:
    ip("link set v0 address 02:00:00:00:00:77")
    with VfUser(parse_vf("packet:v0")) as vf, answerer("v1") as wire:
        wire.send(frame(1))
        assert vf[0].take_all(1) == [frame(1)]
        run("sh", "-c", "ip -d link show v0 | grep -q 'promiscuity [1-9]'")
