"""verify --offloads: what is left to the device, and what the device leaves to VM1.

The back-end judges each transmitted frame, and makes checksums and segments, by scapy.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.system.testpmd import Testpmd
from tests.vm1.backend import OFFERED, Backend
from tests.vm1.test_modes import finish, vm1
from tests.vm1.test_verify import short, verify
from tools.vhost_user_abi import Feature
from tools.vm1.options import RingOptions, Sizes, TrafficOptions
from tools.vm1.report import Ended

if TYPE_CHECKING:
    from pathlib import Path

    from tools.vm1.report import Result

COUNT = 300
HEADER = struct.Struct("<BBHHHH")  # 5.1.6: flags, gso_type, hdr_len, gso_size, csum_start, _offset
NEEDS_CSUM, DATA_VALID = 1, 2
TCPV4, TCPV6 = 1, 4
TRANSMIT = OFFERED | Feature.NET_CSUM | Feature.NET_HOST_TSO4 | Feature.NET_HOST_TSO6
RECEIVE = Feature.NET_GUEST_CSUM | Feature.NET_GUEST_TSO4 | Feature.NET_GUEST_TSO6


class Wrong(enum.Enum):
    """What the back-end does wrong with one frame."""

    CHECKSUM = enum.auto()
    SEGMENT_ORDER = enum.auto()
    SEQUENCE = enum.auto()
    GSO_WITHOUT_CSUM = enum.auto()
    GSO_SIZE = enum.auto()
    START = enum.auto()
    TYPE = enum.auto()


class OffloadBackend(Backend):
    """Leaves to VM1 what it may, or does all of it.

    gso: frames seen with a GSO type, by that type. wrong: done at the tenth such frame.
    """

    def __init__(
        self, path: Path, offered: Feature, *, leaves: bool, wrong: Wrong | None = None
    ) -> None:
        super().__init__(path, offered=offered)
        self.gso = {TCPV4: 0, TCPV6: 0}
        self._leaves, self._wrong = leaves, wrong

    def accept(self, header: bytes, frame: bytes) -> list[bytes]:
        flags, gso_type, header_bytes, segment_bytes, start, offset = HEADER.unpack(header)
        if not flags:
            return super().accept(header, frame)
        packet = Ether(frame)
        network = packet[IP] if IP in packet else packet[IPv6]
        tcp = network[TCP]
        assert flags == NEEDS_CSUM
        assert (start, offset) == (len(frame) - len(tcp), 16)
        assert len(network) == len(frame) - 14
        payload = bytes(tcp.payload)
        if gso_type:
            assert gso_type == (TCPV4 if IP in packet else TCPV6)
            assert header_bytes == len(frame) - len(payload)
            assert 0 < segment_bytes < len(payload)
            self.gso[gso_type] += 1
        wrong = None
        if sum(self.gso.values()) == 10 and gso_type:
            wrong, self._wrong = self._wrong, None
        if self._leaves:
            return [_spoiled(header, wrong) + frame]
        size = segment_bytes or len(payload)
        made = [
            _segment(packet, payload[at : at + size], at) for at in range(0, len(payload), size)
        ]
        return [bytes(10) + each for each in _spoiled_segments(made, wrong)]


def _segment(packet: Ether, payload: bytes, at: int) -> bytes:
    """One segment with every length and checksum made anew."""
    made = packet.copy()
    tcp = made[TCP]
    tcp.remove_payload()
    tcp.add_payload(Raw(payload))
    tcp.seq += at
    del tcp.chksum
    if IP in made:
        del made[IP].chksum
        del made[IP].len
    else:
        del made[IPv6].plen
    return bytes(made)


def _spoiled(header: bytes, wrong: Wrong | None) -> bytes:
    flags, gso_type, header_bytes, segment_bytes, start, offset = HEADER.unpack(header)
    if wrong == Wrong.GSO_WITHOUT_CSUM:
        flags = DATA_VALID
    elif wrong == Wrong.GSO_SIZE:
        segment_bytes = 0
    elif wrong == Wrong.START:
        start += 2
    elif wrong == Wrong.TYPE:
        gso_type ^= TCPV4 | TCPV6
    return HEADER.pack(flags, gso_type, header_bytes, segment_bytes, start, offset)


def _spoiled_segments(made: list[bytes], wrong: Wrong | None) -> list[bytes]:
    if wrong == Wrong.CHECKSUM:
        start = len(made[0]) - len(Ether(made[0])[TCP])
        value = made[0][start + 16] ^ 0x40
        made[0] = made[0][: start + 16] + bytes([value]) + made[0][start + 17 :]
    elif wrong == Wrong.SEGMENT_ORDER:
        made[0], made[1] = made[1], made[0]
    elif wrong == Wrong.SEQUENCE:
        made[1] = _segment(Ether(made[1]), bytes(Ether(made[1])[TCP].payload), 8)
    return made


def run(path: Path, rings: RingOptions, sizes: Sizes, timeout_s: float = 30.0) -> Result:
    traffic = TrafficOptions(count=COUNT, sizes=sizes, timeout_s=timeout_s)
    return verify(path, rings=replace(rings, offloads=True), traffic=traffic)


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize(
    "rings",
    [RingOptions(), RingOptions(packed=True, chain=3, size=100), RingOptions(buffer_bytes=300)],
    ids=["split", "packed chains", "merged"],
)
def test_every_piece_comes_back(tmp_path: Path, rings: RingOptions, leaves: bool) -> None:
    offered = TRANSMIT | Feature.RING_PACKED | (RECEIVE if leaves else Feature(0))
    with OffloadBackend(tmp_path / "socket", offered, leaves=leaves) as backend:
        result = run(tmp_path / "socket", rings, Sizes(60, 1514))
    found = result.json_object()
    assert (result.ended, found["protocol_error_kinds"], result.exit_status) == (Ended.DONE, {}, 0)
    assert (found["sent"], found["received"]) == (COUNT, COUNT)
    assert min(backend.gso.values()) > 0
    assert found["offload_sent"] > sum(backend.gso.values())
    assert found["offload_received"] == (found["offload_sent"] if leaves else 0)


def test_only_what_is_offered(tmp_path: Path) -> None:
    """5.1.3.1: HOST_TSO needs CSUM, GUEST_TSO needs GUEST_CSUM: without them neither is taken."""
    tso = Feature.NET_HOST_TSO4 | Feature.NET_GUEST_TSO4 | Feature.NET_GUEST_TSO6
    with OffloadBackend(tmp_path / "socket", OFFERED | tso, leaves=False):
        result = run(tmp_path / "socket", RingOptions(), Sizes(64, 64))
    assert not result.features & tso
    assert (result.json_object()["offload_sent"], result.exit_status) == (0, 0)


def test_checksums_alone(tmp_path: Path) -> None:
    offered = OFFERED | Feature.NET_CSUM
    with OffloadBackend(tmp_path / "socket", offered, leaves=False) as backend:
        result = run(tmp_path / "socket", RingOptions(mergeable=False), Sizes(64, 1514))
    assert sum(backend.gso.values()) == 0
    assert (result.json_object()["offload_sent"] > 10, result.exit_status) == (True, 0)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (Wrong.CHECKSUM, "corrupt"),
        (Wrong.SEGMENT_ORDER, "reordered"),
        (Wrong.SEQUENCE, "corrupt"),
        (Wrong.GSO_WITHOUT_CSUM, "bad_header"),
        (Wrong.GSO_SIZE, "bad_header"),
        (Wrong.START, "corrupt"),
        (Wrong.TYPE, "corrupt"),
    ],
)
def test_wrong_is_seen(tmp_path: Path, wrong: Wrong, name: str) -> None:
    leaves = wrong.value >= Wrong.GSO_WITHOUT_CSUM.value
    offered = TRANSMIT | (RECEIVE if leaves else Feature(0))
    with OffloadBackend(tmp_path / "socket", offered, leaves=leaves, wrong=wrong):
        result = run(tmp_path / "socket", RingOptions(), Sizes(64, 64), timeout_s=2.0)
    found = result.json_object()
    assert (found[name] if name in found else found["protocol_error_kinds"][name]) == 1
    assert result.exit_status == 1


def test_left_to_vm1_without_its_consent(tmp_path: Path) -> None:
    """5.1.6.4.1: without GUEST_CSUM the device makes the checksum, without GUEST_TSO the cuts."""
    with OffloadBackend(tmp_path / "socket", TRANSMIT, leaves=True):
        result = verify(
            tmp_path / "socket", rings=RingOptions(offloads=True), traffic=short(count=100)
        )
    assert result.json_object()["protocol_error_kinds"]["bad_header"] > 10


@pytest.mark.system
def test_testpmd_makes_checksums(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Testpmd([f"net_vhost0,iface={path},queues=1"]) as testpmd:
        testpmd.start("io")
        arguments = ["--count", "20000", "--size", "60-1514", "--timeout", "30", "--packed"]
        with vm1("verify", "--offloads", "--vhost-user", str(path), *arguments) as process:
            status, found, err = finish(process)
        testpmd.stop_forwarding()
    assert (status, err, found["received"]) == (0, "", 20000)
    assert found["offload_sent"] > 1000
