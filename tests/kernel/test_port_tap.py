"""The tap port against the kernel's TAP device, answered by a packet socket on it."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from driver.offload import OffloadFlag, judge, plain
from driver.offloads import Offloads
from driver.software_vf import parse_vf
from tests.kernel.namespace import answerer, frame, ip, namespace
from tests.kernel.offload_frames import asking, check, packet
from tests.kernel.port_user import VfUser, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _network() -> Iterator[None]:
    with namespace():
        yield


def test_frames_go_both_ways_in_order() -> None:
    with VfUser(parse_vf("tap:t0")) as vf:
        ip("link set t0 mtu 9000 up")
        with answerer("t0") as machine:
            sent = [frame(i, 60 + 97 * i) for i in range(90)]
            vf[0].tx_all([[each[:5], each[5:14], each[14:]] for each in sent])
            assert [machine.recv(1 << 16) for _ in sent] == sent
            for each in sent:
                machine.send(each)
            assert vf[0].take_all(len(sent)) == sent
            assert vf[0].rx() == []


def test_frames_wait_in_the_pool_and_in_the_device() -> None:
    with VfUser(parse_vf("tap:t0")) as vf:
        ip("link set t0 up")
        with answerer("t0") as machine:
            sent = [frame(i) for i in range(150)]
            for each in sent:
                machine.send(each)
            shown = vf[0].rx(256)
            assert 0 < len(shown) <= 64
            assert shown == sent[: len(shown)]
            vf[0].done(3)
            assert vf[0].take_all(147) == sent[3:]


def test_a_device_that_is_down_drops_and_then_works() -> None:
    with VfUser(parse_vf("tap:t0")) as vf:
        assert vf[0].tx([frame(0), frame(1)]) == ["vf_down", "vf_down"]
        assert vf[0].rx() == []
        ip("link set t0 up")
        with answerer("t0") as machine:
            assert vf[0].tx([frame(2)]) == ["sent"]
            assert machine.recv(2000) == frame(2)
            ip("link set t0 down")
            assert vf[0].tx([frame(3)]) == ["vf_down"]


def test_a_deleted_device_drops() -> None:
    with VfUser(parse_vf("tap:t0")) as vf:
        ip("link set t0 up")
        ip("link del t0")
        assert vf[0].tx([frame(0), frame(1)]) == ["vf_down", "vf_down"]
        assert vf[0].rx() == []


def test_a_device_we_made_goes_with_us() -> None:
    with VfUser(parse_vf("tap:t0")):
        ip("link show t0")
    with pytest.raises(subprocess.CalledProcessError):
        ip("link show t0")


def test_queue_pairs_share_one_device() -> None:
    with VfUser(parse_vf("tap:t0"), 3) as vf:
        ip("link set t0 up")
        with answerer("t0") as machine:
            for pair in range(3):
                assert vf[pair].tx([frame(pair)]) == ["sent"]
                assert machine.recv(2000) == frame(pair)
            machine.send(frame(9))
            found: list[bytes] = []

            def receive() -> bool:
                for pair in range(3):
                    found.extend(vf[pair].take())
                return bool(found)

            until(receive, "the frame on some queue")
            assert found == [frame(9)]


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_long_frame_goes_to_the_kernel_whole(ipv6: bool) -> None:
    payload = bytes(i % 251 for i in range(65535 - 60))
    with VfUser(parse_vf("tap:t0")) as vf:
        ip("link set t0 up")
        with answerer("t0") as machine:
            data, asked = asking(packet(payload, ipv6=ipv6), 1448)
            allowed = Offloads.CSUM | Offloads.TSO4 | Offloads.TSO6
            assert vf[0].tx([[data[:14], data[14:]]], judge(data, asked, allowed)) == ["sent"]
            assert machine.recv(1 << 17) == data
            assert vf[0].tx([data[:1000]]) == ["sent"]  # not asked for, the next is plain
            assert machine.recv(1 << 17) == data[:1000]


def test_the_kernel_leaves_checksums_to_us() -> None:
    with (
        VfUser(parse_vf("tap:t0")) as vf,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as machine,
    ):
        ip("link set t0 up")
        ip("addr add 192.0.2.1/24 dev t0")
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev t0")
        machine.sendto(b"an odd number of bytes.", ("192.0.2.2", 9))
        until(lambda: bool(vf[0].rx()), "the datagram")
        frames, (offload,) = vf[0].rx(), vf[0].offloads
        assert offload.flags == OffloadFlag.NEEDS_CSUM
        (done,) = plain(frames[0], judge(frames[0], offload, Offloads.CSUM))
        assert done != frames[0]
        check(done)
