"""The dgram port against unix datagram sockets that behave as QEMU's, or do not."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from driver.software_vf import PortSpec, abi, parse_vf
from guest.errors import VhostPciError
from pmd.kernel_abi import FRAME_MAX
from tests.kernel.namespace import frame
from tests.kernel.port_user import PortUser, VfUser

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Peer:
    """As QEMU's -netdev dgram: bound to its own path, sends to ours, never connects."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "peer"
        self.other = str(directory / "ours")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(30)
        self.socket.setsockopt(socket.SOL_SOCKET, abi.SO_SNDBUFFORCE, 1 << 20)
        self.socket.bind(str(self.path))

    def send(self, content: bytes) -> None:
        self.socket.sendto(content, self.other)

    def receive(self) -> bytes:
        return self.socket.recv(1 << 17)

    def close(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def vf(tmp_path: Path) -> Iterator[VfUser]:
    with VfUser(parse_vf(f"dgram:{tmp_path}/ours,{tmp_path}/peer")) as user:
        yield user


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path)
    yield peer
    peer.close()


def test_frames_go_both_ways_in_order(vf: VfUser, peer: Peer) -> None:
    sent = [frame(i, 60 + 150 * i) for i in range(100)]
    rest = list(sent)
    got = []
    while rest:
        taken = vf[0].tx([[each[:3], each[3:]] for each in rest[:32]])
        assert set(taken) == {"sent"}
        got += [peer.receive() for _ in taken]
        del rest[: len(taken)]
    assert got == sent
    got = []
    for each in sent:
        peer.send(each)
        got += vf[0].take_all(1)
    assert got == sent


def test_longest_frames(vf: VfUser, peer: Peer) -> None:
    longest = frame(1, FRAME_MAX)
    assert vf[0].tx([longest]) == ["sent"]
    assert peer.receive() == longest
    peer.send(longest)
    assert vf[0].take_all(1) == [longest]


def test_a_peer_that_does_not_read_holds_frames_back_and_loses_none(vf: VfUser, peer: Peer) -> None:
    taken = 0
    while verdicts := vf[0].tx([frame(taken + i) for i in range(4)]):
        assert set(verdicts) == {"sent"}
        taken += len(verdicts)
    assert vf[0].tx([frame(taken)]) == []
    assert [peer.receive() for _ in range(taken)] == [frame(i) for i in range(taken)]
    assert vf[0].tx([frame(taken)]) == ["sent"]
    assert peer.receive() == frame(taken)


def test_a_peer_may_come_late_go_and_come_again(vf: VfUser, tmp_path: Path) -> None:
    assert vf[0].tx([frame(0), frame(1)]) == ["vf_down", "vf_down"]
    for generation in range(3):
        peer = Peer(tmp_path)
        assert vf[0].tx([frame(generation)]) == ["sent"]
        assert peer.receive() == frame(generation)
        peer.send(frame(generation + 100))
        assert vf[0].take_all(1) == [frame(generation + 100)]
        peer.socket.close()
        assert vf[0].tx([frame(8)]) == ["vf_down"]  # its file is there: refused
        peer.close()
        assert vf[0].tx([frame(9)]) == ["vf_down"]  # no file
    assert vf[0].rx() == []


def test_what_is_no_whole_frame_is_dropped_and_counted(vf: VfUser, peer: Peer) -> None:
    oversize, empty, runt, shortest = b"x" * (FRAME_MAX + 1), b"", b"x" * 13, b"x" * 14
    for content in (frame(1), oversize, empty, frame(2), runt, frame(3), shortest):
        peer.send(content)
    assert vf[0].take_all(4) == [frame(1), frame(2), frame(3), shortest]
    assert vf[0].missed == 3


def test_a_frame_no_datagram_can_hold_is_dropped_alone(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        with PortUser(PortSpec("dgram", ours.detach())) as port:
            assert port.tx([frame(1), frame(2, 60000)]) == ["sent", "oversize"]
            assert theirs.recv(100) == frame(1)
            theirs.send(frame(3))
            assert port.take_all(1) == [frame(3)]
            theirs.close()
            assert port.tx([frame(4)]) == ["vf_down"]
    assert list(tmp_path.iterdir()) == []


def test_one_socket_serves_all_queue_pairs(tmp_path: Path, peer: Peer) -> None:
    with VfUser(parse_vf(f"dgram:{tmp_path}/ours,{tmp_path}/peer"), 3) as vf:
        (port,) = vf.ports
        assert port.tx([frame(1)]) == ["sent"]
        assert peer.receive() == frame(1)
        peer.send(frame(9))
        assert port.take_all(1) == [frame(9)]


def test_a_peer_path_too_long_is_refused_and_the_socket_stays_the_callers() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        with pytest.raises(VhostPciError, match="the peer's path is longer than 107 bytes"):
            PortUser(PortSpec("dgram", ours.fileno(), output="/" + "x" * 107))
        assert ours.getsockname() == ""
