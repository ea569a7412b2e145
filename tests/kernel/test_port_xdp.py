"""The xdp port on one end of a veth pair, against packet sockets on the other."""

from __future__ import annotations

import contextlib
import itertools
import logging
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from driver.software_vf import parse_vf
from driver.software_vf.xdp_socket import RX_COUNT, TX_COUNT
from tests.kernel.namespace import answerer, flags_off, frame, ip, namespace
from tests.kernel.port_user import PortUser, VfUser, until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from driver.software_vf import Vf


@pytest.fixture(autouse=True)
def _network() -> Iterator[None]:
    """v0 is the VF's; v1 is the wire's."""
    with namespace():
        ip("link add v0 numrxqueues 4 numtxqueues 4 type veth peer numtxqueues 4 name v1")
        ip("link set v0 up")
        ip("link set v1 up")
        yield


@contextlib.contextmanager
def opened(queue_pairs: int = 1) -> Iterator[tuple[Vf, list[PortUser]]]:
    """xdp:v0 and its ports."""
    vf = parse_vf("xdp:v0")
    with VfUser(vf, queue_pairs) as user:
        yield vf, user.ports


def take_any(ports: list[PortUser], count: int) -> list[list[bytes]]:
    """Waits for count frames on all of the ports together; those of each."""
    frames: list[list[bytes]] = [[] for _ in ports]

    def receive() -> bool:
        for port, found in zip(ports, frames, strict=True):
            found.extend(port.take())
        return sum(map(len, frames)) >= count

    until(receive, f"{count} frames to arrive")
    return frames


def flows(count: int) -> list[bytes]:
    """A UDP frame each of so many flows."""
    return [
        bytes(
            Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
            / IP(src="192.0.2.1", dst="192.0.2.2")
            / UDP(sport=1000 + i, dport=9)
            / bytes(20)
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("mode", ["driver", "generic"])
def test_every_size_goes_both_ways_in_order(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    if mode == "generic":
        # A driver without XDP of its own.
        ip("link set v0 name lower")
        ip("link add link lower name v0 type macvlan mode passthru")
        ip("link set v0 up")
    caplog.set_level(logging.INFO, "pmd")
    with opened() as (vf, (port,)), answerer("v1") as wire:
        until(lambda: vf.look() == "" and port.tx([frame(0)]) == ["sent"], "the link to come up")
        assert wire.recv(2000) == frame(0)
        assert f"VF xdp:v0: copy, {mode} mode, " in caplog.text
        sent = [frame(i, size) for i, size in enumerate(range(60, 1515))]
        for begin in range(0, len(sent), 200):
            batch = sent[begin : begin + 200]
            port.tx_all([[each[:14], each[14:40], each[40:]] for each in batch])
            assert [wire.recv(1 << 16) for _ in batch] == batch
            for each in batch:
                wire.send(each)
            assert port.take_all(len(batch)) == batch
        assert port.rx() == []
        assert port.missed == 0


def test_short_frames_are_padded_with_zeros() -> None:
    with opened() as (_, (port,)), answerer("v1") as wire:
        port.tx_all([b"\xff" * 60] * TX_COUNT)  # each chunk was used
        for _ in range(TX_COUNT):
            assert wire.recv(2000) == b"\xff" * 60
        for size in (14, 15, 42, 59):
            assert port.tx([frame(size, size)]) == ["sent"]
            assert wire.recv(2000) == frame(size, size).ljust(60, b"\0")


def test_frames_of_several_chunks() -> None:
    for name in ("v0", "v1"):
        ip(f"link set {name} mtu 65535")
    sizes = [3839, 3840, 3841, 4095, 4096, 4097, 8191, 8192, 8193, 9014, 40000, 65535]
    with opened() as (_, (port,)), answerer("v1") as wire:
        for round_ in range(20):  # past the rings' ends
            sent = [frame(round_, size) for size in sizes]
            port.tx_all([[each[:5000], each[5000:]] if len(each) > 5000 else each for each in sent])
            assert [wire.recv(1 << 17) for _ in sent] == sent
            for each in sent:
                wire.send(each)
            assert port.take_all(len(sent)) == sent
        assert port.missed == 0


def test_bursts_longer_than_the_rings() -> None:
    with opened() as (_, (port,)), answerer("v1") as wire:
        for i in range(RX_COUNT + 100):
            wire.send(frame(i))
        assert port.take_all(RX_COUNT) == [frame(i) for i in range(RX_COUNT)]

        def counted() -> bool:
            assert port.rx(1) == []
            return port.missed == 100

        until(counted, "the drops to be counted")
        wire.send(frame(7))
        assert port.take_all(1) == [frame(7)]
        sent = [frame(i) for i in range(3 * TX_COUNT)]
        port.tx_all(sent)
        assert [wire.recv(2000) for _ in sent] == sent


def test_what_is_taken_late_stays_whole() -> None:
    with opened() as (_, (port,)), answerer("v1") as wire:
        sent = [frame(i, 100 + i) for i in range(60)]
        for each in sent[:50]:
            wire.send(each)
        until(lambda: port.rx(50) == sent[:50], "50 frames")
        for each in sent[50:]:
            wire.send(each)
        assert port.rx(7) == sent[:7]
        port.done(2)
        port.done(3)
        assert port.take_all(55) == sent[5:]


def test_what_the_interface_cannot_send_is_dropped_alone() -> None:
    with opened() as (_, (port,)), answerer("v1") as wire:
        frames = [frame(1), frame(2, 1519), frame(3, 1518), frame(4, 65000)]
        assert port.tx(frames) == ["sent", "oversize", "sent", "oversize"]
        assert [wire.recv(2000) for _ in range(2)] == [frame(1), frame(3, 1518)]


def test_tags_stay_where_the_driver_leaves_them(caplog: pytest.LogCaptureFixture) -> None:
    flags_off("v0")
    flags_off("v1")
    tagged = frame(5)[:12] + bytes.fromhex("8100e00c") + frame(5)[12:]
    with opened() as (_, (port,)), answerer("v1") as wire:
        assert "VLAN" not in caplog.text
        wire.send(tagged)
        assert port.take_all(1) == [tagged]


def test_tags_that_the_driver_takes_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with opened():
        pass
    assert "lose their VLAN tags; if its driver lets you: ethtool -K v0 rxvlan off" in caplog.text


@pytest.mark.parametrize("queue_pairs", [1, 2, 3, 4])
def test_all_queues_of_the_interface_are_received_from(queue_pairs: int) -> None:
    sent = flows(64)
    with opened(queue_pairs) as (_, ports):
        assert len(ports) == queue_pairs
        with answerer("v1") as wire:
            for each in sent:
                wire.send(each)
            arrived = take_any(ports, len(sent))
            assert all(arrived)  # which flows share a queue is the wire's choice
            assert sorted(itertools.chain(*arrived)) == sorted(sent)
            for pair, port in enumerate(ports):
                port.tx_all([frame(pair * 100 + i) for i in range(100)])
            found = [wire.recv(2000) for _ in range(100 * queue_pairs)]
    assert sorted(found) == sorted(frame(i) for i in range(100 * queue_pairs))


def test_reopened_with_more_queue_pairs_at_once() -> None:
    vf = parse_vf("xdp:v0")
    for queue_pairs in (1, 4, 2, 1):
        with VfUser(vf, queue_pairs) as user, answerer("v1") as wire:
            wire.send(frame(queue_pairs))
            assert list(itertools.chain(*take_any(user.ports, 1))) == [frame(queue_pairs)]


@pytest.mark.parametrize("which", ["v0", "v1"])
def test_a_link_that_is_down_drops_and_then_works(which: str) -> None:
    with opened() as (vf, (port,)), answerer("v1") as wire:
        wire.send(frame(0))
        assert port.take_all(1) == [frame(0)]
        ip(f"link set {which} down")
        assert vf.look() == ""
        assert port.tx([frame(1), frame(2)]) == ["vf_down", "vf_down"]
        assert port.rx() == []
        ip(f"link set {which} up")

        def sent() -> bool:
            assert vf.look() == ""
            return port.tx([frame(3)]) == ["sent"]

        until(sent, "the link to come up")
        until(lambda: _received(wire, frame(3)), "the frame to arrive")
        wire.send(frame(4))
        assert port.take_all(1) == [frame(4)]


def test_a_link_that_goes_down_unnoticed_loses_no_more_than_is_under_way() -> None:
    with opened() as (_, (port,)), answerer("v1") as wire:
        ip("link set v0 down")
        assert port.tx([frame(1), frame(2)]) == ["sent", "sent"]  # nobody knows better yet
        assert port.tx([frame(3), frame(4)]) == ["vf_down", "vf_down"]
        ip("link set v0 up")
        until(lambda: port.tx([frame(5)]) == ["sent"], "the link to come up")
        assert [wire.recv(2000) for _ in range(3)] == [frame(1), frame(2), frame(5)]


def _received(wire: socket.socket, wanted: bytes) -> bool:
    wire.setblocking(False)
    with contextlib.suppress(OSError):
        while wire.recv(2000) != wanted:
            pass
        wire.settimeout(30)
        return True
    return False


def test_an_interface_that_goes_away_and_comes_back() -> None:
    vf = parse_vf("xdp:v0")
    with VfUser(vf) as user, answerer("v1") as wire:
        for i in range(50):
            wire.send(frame(i))
        ip("link del v0")
        assert user[0].tx([frame(1), frame(2)])[1:] in (["sent"], ["vf_down"])
        assert user[0].tx([frame(1), frame(2)]) == ["vf_down", "vf_down"]
        assert vf.look() == ""
        assert user[0].tx([frame(1), frame(2)]) == ["vf_down", "vf_down"]
        user[0].take()
        ip("link add v0 type veth peer name v1")
        assert vf.look() == ""
        ip("link set v0 up")
        assert vf.look() == "its interface came back"
    ip("link set v1 up")
    with VfUser(vf) as user, answerer("v1") as wire:
        until(lambda: vf.look() == "" and user[0].tx([frame(6)]) == ["sent"], "the link")
        assert wire.recv(2000) == frame(6)


def test_frames_for_other_stations_come_while_it_is_open() -> None:
    ip("link set v0 address 02:00:00:00:00:77")
    with opened() as (_, (port,)), answerer("v1") as wire:
        wire.send(frame(1))
        assert port.take_all(1) == [frame(1)]
        assert "promiscuity 1 " in ip("-d link show v0")
    assert "promiscuity 0 " in ip("-d link show v0")
    assert "xdp" not in ip("link show v0")
