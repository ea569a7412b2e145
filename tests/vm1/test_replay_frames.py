"""What replay sends where it leaves work to the device, and how it counts what comes in pieces."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from driver.offload import Offload, OffloadFlag, plain
from tests.kernel.offload_frames import check
from tests.vm1.backend import OFFERED, Backend
from tests.vm1.test_modes import DEADLINE_S, options
from tools.vhost_user_abi import Feature
from tools.vm1.options import Direction, Leave, Mode, RingOptions, Sizes, TrafficOptions
from tools.vm1.report import Ended
from tools.vm1.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from tools.vm1.report import Result

HEADER = struct.Struct("<BBHHHH")  # 5.1.6: flags, gso_type, hdr_len, gso_size, csum_start, _offset
FRAMES = 600


class Collector(Backend):
    """Keeps the first frames, and takes the others."""

    def __init__(self, path: Path, offered: Feature) -> None:
        super().__init__(path, offered=offered)
        self.seen: list[tuple[bytes, bytes]] = []

    def accept(self, header: bytes, frame: bytes) -> list[bytes]:
        if len(self.seen) < FRAMES:
            self.seen.append((header, frame))
        return []


def replay(path: Path, rings: RingOptions, size: int, direction: Direction) -> Result:
    """Until some more than FRAMES went each way that there is."""
    traffic = TrafficOptions(direction=direction, sizes=Sizes(size, size))
    wanted = replace(options(path, Mode.REPLAY, traffic), rings=rings, seconds=DEADLINE_S)

    def enough() -> bool:
        found = session.snapshot()
        return all(
            found[name] > FRAMES + 300
            for name, way in (("sent", Direction.TX), ("received", Direction.RX))
            if way & direction
        )

    session = Session(wanted, enough)
    result = session.run()
    assert (result.ended, result.exit_status) == (Ended.SIGNAL, 0)
    return result


@pytest.mark.parametrize(
    ("leave", "feature", "segment_bytes"),
    [(Leave.USO, Feature.NET_HOST_USO, 1448), (Leave.UFO, Feature.NET_HOST_UFO, 1480)],
)
def test_datagrams(tmp_path: Path, leave: Leave, feature: Feature, segment_bytes: int) -> None:
    """As a driver leaves them to the device; scapy, and our oracle for devices, agree on what."""
    with Collector(tmp_path / "socket", OFFERED | Feature.NET_CSUM | feature) as backend:
        result = replay(tmp_path / "socket", RingOptions(leave=leave), 4000, Direction.TX)
    assert result.features & feature
    for header, frame in backend.seen:
        assert Offload.parse(header) == Offload(
            OffloadFlag.NEEDS_CSUM, 3 if leave == Leave.UFO else 5, 42, segment_bytes, 34, 6
        )
        assert len(check(plain(frame, Offload(1, 0, 0, 0, 34, 6))[0])) == 4000
    assert len({frame for _, frame in backend.seen}) == FRAMES


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("leave", [Leave.CSUM, Leave.TSO])
def test_each_frame_is_good_once_the_device_did_its_part(
    tmp_path: Path, leave: Leave, packed: bool
) -> None:
    offered = OFFERED | Feature.RING_PACKED | Feature.NET_CSUM | Feature.NET_HOST_TSO4
    rings = RingOptions(packed=packed, leave=leave)
    with Collector(tmp_path / "socket", offered) as backend:
        result = replay(tmp_path / "socket", rings, 4000, Direction.TX)
    assert bool(result.features & Feature.NET_HOST_TSO4) == (leave == Leave.TSO)
    assert result.features & Feature.NET_CSUM
    gso = (1, 54, 1448) if leave == Leave.TSO else (0, 0, 0)
    sequences = set()
    for header, frame in backend.seen:
        assert HEADER.unpack(header[:10]) == (1, *gso, 34, 16)
        packet = Ether(frame)
        assert (len(frame), packet[IP].len) == (4000, 4000 - 14)
        sequences.add(packet[TCP].seq)
        told = packet[IP].chksum
        # 5.1.6.2: the pseudo header's sum stands where the checksum is to go.
        total = sum(struct.unpack("!1983H", frame[34:]))
        del packet[IP].chksum, packet[TCP].chksum
        made = Ether(bytes(packet))
        assert made[IP].chksum == told
        total = (total & 0xFFFF) + (total >> 16)
        assert ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF == made[TCP].chksum
    assert len(sequences) == len(backend.seen) == FRAMES


def test_a_device_without_it(tmp_path: Path) -> None:
    with Collector(tmp_path / "socket", OFFERED), pytest.raises(Exception, match="NET_CSUM"):
        replay(tmp_path / "socket", RingOptions(leave=Leave.CSUM), 1000, Direction.TX)


def test_a_frame_in_several_buffers_is_one(tmp_path: Path) -> None:
    with Backend(tmp_path / "socket") as backend:
        result = replay(tmp_path / "socket", RingOptions(buffer_bytes=300), 1000, Direction.BOTH)
    found = result.json_object()
    assert found["received"] <= found["sent"] <= backend.received
    assert 0 <= found["received_bytes"] - 1000 * found["received"] < 1000
