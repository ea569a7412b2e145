"""Offloads against the oracle and scapy: what the port or VM1 does not take is done in software."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP

from driver.offload import ECN, PLAIN, Gso, Offload, OffloadError, OffloadFlag, forwarded
from driver.offloads import NO_OFFLOADS, Offloads
from pmd.kernel import DirectionStats, Work, drop_names
from tests.kernel.offload_frames import SEQUENCE, asking, check, packet, unnumbered
from tests.kernel.offload_port import OffloadPort, Told
from tests.kernel.rig import BIG, BIG_SIZE, ISA, WRITE, Rig

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL = Offloads(0x3F00)
NONE = NO_OFFLOADS
SETTINGS = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def drops(stats: DirectionStats) -> dict[str, int]:
    """By name, those that happened."""
    return {name: count for name, count in zip(drop_names(), stats.drops, strict=False) if count}


def done(told: Told, negotiated: Offloads, taken: Offloads) -> list[Told]:
    """What a frame becomes on its way to somebody who takes these; OffloadError: nothing."""
    return forwarded(*told, negotiated, taken)


def send(
    frames: list[Told],
    negotiated: Offloads = ALL,
    taken: Offloads = NONE,
    *,
    cuts: tuple[int, ...] = (),
    room: int = 256,
    burst: int = 256,
    isa: str = ISA,
) -> tuple[list[Told], dict[str, int]]:
    """VM1 sends frames, each in the buffers that cuts make; what the port had, and the drops."""
    with Rig(256, offloads=negotiated) as rig, OffloadPort(taken, room) as port:
        rig.isa = isa
        at, index = BIG, 0
        for frame, offload in frames:
            data = offload.pack() + b"\x07\x00" + frame  # N04: num_buffers is not looked at
            ends = sorted({cut for cut in cuts if 0 < cut < len(data)} | {len(data)})
            rig.poke(at, data)
            begins = [0, *ends[:-1]]
            rig.chain(index, [(at + a, b - a) for a, b in zip(begins, ends, strict=True)])
            at, index = at + len(data), index + len(ends)
        stats = DirectionStats()
        work = Work(rig.queue(stats), None, port)
        turns = 0
        while rig.used_index() != rig.index:
            work.turn(burst)
            turns += 1
            assert turns < 5000
        assert stats.packets + sum(stats.drops) == len(frames)
        assert rig.used(len(frames)) == [(head, 0) for head, _ in rig.used(len(frames))]
        return port.sent, drops(stats)


def receive(
    *ports_frames: list[Told], negotiated: Offloads, mergeable: bool = False, burst: int = 256
) -> tuple[list[Told], dict[str, int]]:
    """Each port has frames for VM1: what VM1 finds in the one ring's buffers, and the drops."""
    with (
        Rig(16, offloads=negotiated, mergeable=mergeable) as rig,
        contextlib.ExitStack() as stack,
    ):
        size = 1600 if mergeable else BIG_SIZE // 16
        stats = DirectionStats()
        queue = rig.queue(stats)
        ports = [stack.enter_context(OffloadPort(ALL)) for _ in ports_frames]
        works = [Work(None, queue, port) for port in ports]
        for port, frames in zip(ports, ports_frames, strict=True):
            port.give(frames)
        found: list[Told] = []
        taken = 0
        idle = 0
        for slot in range(16):
            rig.desc(slot, BIG + size * slot, size, WRITE)
        rig.make_available(*range(16))
        while idle < 2:
            idle = 0 if sum([work.turn(burst) for work in works]) else idle + 1
            used = rig.used((rig.used_index() - taken) % 65536)
            taken = rig.used_index()
            found += _frames(rig, used, size)
            rig.make_available(*[slot for slot, _ in used])
        assert [port.given for port in ports] == [[]] * len(ports)
        return found, drops(stats)


def _frames(rig: Rig, used: list[tuple[int, int]], size: int) -> list[Told]:
    buffers = [rig.peek(BIG + size * head, length) for head, length in used if length]
    found = []
    while buffers:
        count = struct.unpack_from("<H", buffers[0], 10)[0]
        whole = b"".join(buffers[:count])
        del buffers[:count]
        found.append((whole[12:], Offload.parse(whole)))
    return found


_PACKETS = st.builds(
    packet,
    st.integers(0, 4000).map(lambda n: bytes(i * 7 & 0xFF for i in range(n))),
    udp=st.booleans(),
    ipv6=st.booleans(),
    tags=st.integers(0, 2),
    options=st.integers(0, 2),
)
_ASKING = st.builds(
    asking,
    _PACKETS,
    st.sampled_from([0, 0, 100, 536, 1448, 65000]),
    ecn=st.booleans(),
    fragments=st.booleans(),
).map(
    lambda told: (told[0], replace(told[1], segment_bytes=min(told[1].segment_bytes, len(told[0]))))
)


@st.composite
def _told(draw: st.DrawFn) -> Told:
    """A frame with its header; often one field is anything, or some bytes are."""
    frame, offload = draw(_ASKING)
    if offload.gso_type in (ECN | Gso.UDP_L4, ECN | Gso.UDP) and draw(st.booleans()):
        offload = replace(offload, gso_type=offload.gso_type & ~ECN)
    wrong = draw(st.sampled_from(["", "", "", "field", "bytes", "plain", "short"]))
    if wrong == "field":
        name = draw(st.sampled_from(list(Offload.__dataclass_fields__)))
        most = 255 if name in {"flags", "gso_type"} else 65535
        near = st.sampled_from([0, 1, 2, 13, 14, len(frame) - 2, len(frame) - 1, len(frame), most])
        value = min(draw(st.one_of(near, st.integers(0, most))), most)
        offload = replace(offload, **{name: value})
    elif wrong == "bytes":
        data = bytearray(frame)
        for at in draw(st.lists(st.integers(12, min(len(data), 90) - 1), max_size=4)):
            data[at] = draw(st.integers(0, 255))
        frame = bytes(data)
    elif wrong == "plain":
        offload = PLAIN
    elif wrong == "short":
        frame = frame[: draw(st.integers(14, min(len(frame), 100)))]
    return frame, offload


FRAMES = st.lists(
    st.tuples(_told(), st.lists(st.integers(1, 400), max_size=4).map(tuple)), min_size=1, max_size=6
)  # with the cuts that make their buffers
_SETS = st.sampled_from(
    [
        NONE,
        Offloads.CSUM,
        ALL,
        ALL & ~Offloads.ECN,
        Offloads.CSUM | Offloads.TSO4,
        ALL & ~Offloads.USO,
        ALL & ~Offloads.UFO,
    ]
)


@SETTINGS
@given(
    frames=st.lists(_told(), min_size=1, max_size=6),
    negotiated=_SETS,
    taken=_SETS,
    cuts=st.lists(st.integers(1, 400), max_size=4).map(tuple),
    pace=st.tuples(st.sampled_from([1, 2, 7, 256]), st.sampled_from([1, 2, 256])),
)
def test_transmit(
    frames: list[Told],
    negotiated: Offloads,
    taken: Offloads,
    cuts: tuple[int, ...],
    pace: tuple[int, int],
) -> None:
    """pace: frames the port takes at once, chains a turn may complete."""
    room, burst = pace
    expected: list[Told] = []
    bad = 0
    for frame, offload in frames:
        asked = replace(offload, flags=offload.flags & OffloadFlag.NEEDS_CSUM)
        try:
            expected += done((frame, asked), negotiated, taken) if negotiated else [(frame, PLAIN)]
        except OffloadError:
            bad += 1
    found, dropped = send(frames, negotiated, taken, cuts=cuts, room=room, burst=burst)
    assert [(unnumbered(data), offload) for data, offload in found] == expected
    assert dropped == ({"bad_offload": bad} if bad else {})


@SETTINGS
@given(
    frames=st.lists(_told(), min_size=1, max_size=6),
    negotiated=_SETS,
    mergeable=st.booleans(),
    burst=st.sampled_from([1, 2, 256]),
)
def test_receive(frames: list[Told], negotiated: Offloads, mergeable: bool, burst: int) -> None:
    expected: list[Told] = []
    bad = 0
    for told in frames:
        try:
            for frame, offload in done(told, ALL, negotiated):
                known = offload.flags if negotiated & Offloads.CSUM else 0
                expected.append((frame, replace(offload, flags=known)))
        except OffloadError:
            bad += 1
    found, dropped = receive(frames, negotiated=negotiated, mergeable=mergeable, burst=burst)
    assert [(unnumbered(data), offload) for data, offload in found] == expected
    assert dropped == ({"bad_offload": bad} if bad else {})


def test_two_ports_of_one_ring() -> None:
    """A frame that VM1 has in part goes on where it was, whatever another port has meanwhile."""
    sources = [
        [asking(packet(bytes([number]) * size, udp=udp), 1000) for size in (30_000, 2_000, 41_500)]
        for number, udp in ((1, False), (2, True))
    ]
    found, dropped = receive(*sources, negotiated=NONE, burst=7)
    assert dropped == {}
    for frames, port in zip(sources, (6, 17), strict=True):
        expected = [part for told in frames for part in done(told, ALL, NONE)]
        assert [told for told in found if told[0][23] == port] == expected


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("size", [0, 1, 1448, 1449, 9000, 60000])
def test_tcp_segments_are_what_scapy_says(size: int, ipv6: bool) -> None:
    payload = bytes(i % 251 for i in range(size))
    asked = packet(payload, ipv6=ipv6, tags=1, options=2)
    told = asking(asked, min(1448, len(bytes(asked))), ecn=True)
    found, dropped = send([told])
    assert dropped == {}
    frames = [check(data) for data, _ in found]
    assert b"".join(bytes(each[TCP].payload) for each in frames) == payload
    assert [each[TCP].seq for each in frames] == [
        (SEQUENCE + 1448 * i) % (1 << 32) for i in range(len(frames))
    ]
    assert len(frames) == max(1, -(-size // 1448))
    assert ["C" in each[TCP].flags for each in frames] == [True, *[False] * (len(frames) - 1)]
    for flag in "FP":
        assert [flag in each[TCP].flags for each in frames] == [*[False] * (len(frames) - 1), True]
    if not ipv6:
        assert [each[IP].id for each in frames] == [(65534 + i) % 65536 for i in range(len(frames))]


@pytest.mark.parametrize("ipv6", [False, True])
def test_udp_datagrams_are_what_scapy_says(ipv6: bool) -> None:
    payload = bytes(i % 251 for i in range(10001))
    found, dropped = send([asking(packet(payload, udp=True, ipv6=ipv6), 1000)])
    assert dropped == {}
    frames = [check(data) for data, _ in found]
    assert [len(bytes(each[UDP].payload)) for each in frames] == [*[1000] * 10, 1]
    assert b"".join(bytes(each[UDP].payload) for each in frames) == payload


@pytest.mark.parametrize("sizes", [range(70), [127, 128, 129, 191, 192, 193, 1460], [51234]])
def test_checksums_of_any_length_are_what_scapy_says(sizes: Sequence[int]) -> None:
    payloads = [bytes((i * i + 255) & 0xFF for i in range(size)) for size in sizes]
    asked = [asking(packet(payload, udp=udp)) for payload in payloads for udp in (False, True)]
    found, dropped = send(asked)
    assert dropped == {}
    assert len(found) == len(asked)
    for data, _ in found:
        check(data)


def test_the_longest_frame_goes_whole_or_in_parts() -> None:
    payload = bytes(i % 251 for i in range(65535 - 40))
    frame, offload = asking(packet(payload), 1448)
    assert len(frame) == 65535 + 14
    whole, _ = send([(frame, offload)], taken=ALL)
    assert whole == [(frame, replace(offload, header_bytes=54))]
    parts, _ = send([(frame, offload)])
    assert b"".join(data[54:] for data, _ in parts) == payload


GOOD_FRAME, GOOD = asking(packet(bytes(3000)), 1448)


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        ({}, 3),
        ({"header_bytes": 0}, 3),
        ({"header_bytes": 0xFFFF}, 3),
        ({"flags": 0xFF}, 3),  # N05, and bits that nobody knows
        ({"flags": 0}, 3),  # cut all the same
        ({"gso_type": 0xFF}, 0),
        ({"gso_type": int(Gso.UDP)}, 0),
        ({"gso_type": int(Gso.TCPV6)}, 0),
        ({"gso_type": int(Gso.UDP_L4)}, 0),
        ({"gso_type": ECN}, 0),
        ({"segment_bytes": 0}, 0),
        ({"segment_bytes": len(GOOD_FRAME)}, 1),
        ({"segment_bytes": len(GOOD_FRAME) + 1}, 0),
        ({"segment_bytes": 1}, 3000),
        ({"checksum_start": 13}, 0),
        ({"checksum_start": 36}, 0),
        ({"checksum_start": 0xFFFF}, 0),
        ({"checksum_offset": 0xFFFF}, 0),
        ({"checksum_offset": 6}, 0),
        ({"gso_type": 0, "checksum_start": len(GOOD_FRAME) - 2, "checksum_offset": 0}, 1),
        ({"gso_type": 0, "checksum_start": len(GOOD_FRAME) - 1, "checksum_offset": 0}, 0),
        ({"gso_type": 0, "checksum_start": 14, "checksum_offset": len(GOOD_FRAME)}, 0),
    ],
)
def test_n02_n03_headers_that_cannot_be(change: dict[str, int], sent: int) -> None:
    found, dropped = send([(GOOD_FRAME, replace(GOOD, **change))])
    assert len(found) == sent
    assert dropped == ({} if sent else {"bad_offload": 1})


def test_n01_what_was_not_negotiated() -> None:
    checksum = replace(GOOD, gso_type=0)
    assert send([(GOOD_FRAME, checksum)], NONE) == ([(GOOD_FRAME, PLAIN)], {})
    assert send([(GOOD_FRAME, GOOD)], NONE) == ([(GOOD_FRAME, PLAIN)], {})
    assert send([(GOOD_FRAME, GOOD)], Offloads.CSUM) == ([], {"bad_offload": 1})
    ecn = replace(GOOD, gso_type=GOOD.gso_type | ECN)
    assert send([(GOOD_FRAME, ecn)], ALL & ~Offloads.ECN) == ([], {"bad_offload": 1})
    assert len(send([(GOOD_FRAME, ecn)], taken=ALL & ~Offloads.ECN)[0]) == 3


def test_a_chain_that_changes_while_it_is_cut() -> None:
    """VM1 makes the frame another one between two turns: the ring goes on, nothing is stuck."""
    with Rig(8, offloads=ALL) as rig, OffloadPort(NONE, room=1) as port:
        rig.poke(BIG, GOOD.pack() + bytes(2) + GOOD_FRAME)
        for head in range(4):
            rig.chain(head, [(BIG, 12 + len(GOOD_FRAME))])
        stats = DirectionStats()
        work = Work(rig.queue(stats), None, port)
        assert work.turn(8) == 0
        rig.poke(BIG, replace(GOOD, segment_bytes=2999).pack())
        assert work.turn(8) == 1  # the second of two
        rig.poke(BIG, replace(GOOD, segment_bytes=1000).pack())
        assert work.turn(8) == 0
        rig.poke(BIG, PLAIN.pack())
        assert work.turn(8) == 1
        rig.poke(BIG, GOOD.pack())
        assert work.turn(8) == 0
        rig.poke(BIG, replace(GOOD, gso_type=0xFF).pack())
        assert work.turn(8) == 2
        assert [len(data) for data, _ in port.sent] == [1502, 55, 1054, 3054, 1502]
        assert drops(stats) == {"bad_offload": 2}
        assert rig.used_index() == rig.index
