"""The tap port against the kernel's TAP device, answered by a packet socket on it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from driver.software_vf import parse_vf
from tests.kernel.namespace import answerer, frame, ip, namespace
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
