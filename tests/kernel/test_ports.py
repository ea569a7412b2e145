"""The ports that need no device: null, copy, gen; and what rk_port_open refuses."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from driver.software_vf import FRAME_BYTES_MAX, PortSpec, parse_vf
from guest.errors import VhostPciError
from pmd.kernel_abi import BURST_MAX, FRAME_MAX
from tests.kernel.port_user import PortUser, VfUser


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(VhostPciError, match="there is no kind of port named teapot"):
        PortUser(PortSpec("teapot"))


def test_null_takes_all_and_has_none() -> None:
    with VfUser(parse_vf("null"), 2) as vf:
        assert vf[1].tx([b"a" * 60] * BURST_MAX) == ["sent"] * BURST_MAX
        assert vf[1].rx() == []
        assert vf[1].missed == 0


def test_copy_takes_all_it_can_hold_and_has_none() -> None:
    longest: list[bytes | list[bytes]] = [
        b"l" * FRAME_MAX,
        [b"a" * 60, b"b" * 9000],
        b"x" * (FRAME_MAX + 1),
    ]
    with VfUser(parse_vf("copy")) as vf:
        assert vf[0].tx(longest) == ["sent", "sent", "oversize"]
        assert vf[0].tx([b"a" * 60] * BURST_MAX) == ["sent"] * BURST_MAX
        assert vf[0].rx() == []


@pytest.mark.parametrize("frame_bytes", [60, 64, 1514, FRAME_BYTES_MAX])
def test_gen_makes_numbered_datagrams(frame_bytes: int) -> None:
    with VfUser(parse_vf(f"gen:{frame_bytes}")) as vf:
        frames: list[bytes] = []
        while len(frames) < 300:
            shown = vf[0].rx(32)
            assert vf[0].rx(32) == shown
            vf[0].done(len(shown) // 2 + 1)
            frames += shown[: len(shown) // 2 + 1]
    assert {len(frame) for frame in frames} == {frame_bytes}
    for number, frame in enumerate(frames):
        assert frame[42:50] == number.to_bytes(8, "big")
        assert frame[50:] == bytes(frame_bytes - 50)
    packet = Ether(frames[5])
    assert (packet.src, packet.dst) == ("02:00:00:00:00:01", "02:00:00:00:00:02")
    assert (packet[IP].src, packet[IP].dst) == ("198.18.0.1", "198.19.0.1")
    assert packet[UDP].dport == 9
    assert packet[IP].len == min(frame_bytes - 14, 0xFFFF)
    assert packet[UDP].len == packet[IP].len - 20
    found = packet[IP].chksum
    del packet[IP].chksum
    assert Ether(bytes(packet))[IP].chksum == found


def test_gen_counts_what_vm1_sends_as_sent() -> None:
    with VfUser(parse_vf("gen")) as vf:
        assert vf[0].tx([b"a" * 60] * 3) == ["sent"] * 3
        assert len(vf[0].rx(1)[0]) == 60


@pytest.mark.parametrize("frame_bytes", [0, 59, FRAME_MAX + 1])
def test_gen_refuses_impossible_sizes(frame_bytes: int) -> None:
    with pytest.raises(VhostPciError, match=f"frames have 60 to {FRAME_MAX} bytes"):
        PortUser(PortSpec("gen", frame_bytes=frame_bytes))
