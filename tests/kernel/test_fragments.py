"""UDP fragments made in software: what other decoders put together again, and hostile headers."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from scapy.layers.inet import IP, UDP, IPOption_RR, IPOption_Security, defragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from driver.offload import ECN, PLAIN, Gso, OffloadFlag, judge
from driver.offloads import Offloads
from driver.software_vf import parse_vf
from pmd.kernel_library import isa_names
from tests.kernel.namespace import answerer, ip, namespace
from tests.kernel.offload_frames import asking, check, packet
from tests.kernel.port_user import VfUser
from tests.kernel.test_offload import ALL, receive, send

if TYPE_CHECKING:
    from tests.kernel.offload_port import Told

UFO = Offloads.CSUM | Offloads.UFO
PAYLOAD = bytes(i * 7 % 251 for i in range(65535))
SHAPES = [(ipv6, tags, options) for ipv6 in (False, True) for tags, options in ((0, 0), (2, 2))]


def datagram(size: int, *, ipv6: bool = False, tags: int = 0, options: int = 0) -> Ether:
    return packet(PAYLOAD[:size], udp=True, ipv6=ipv6, tags=tags, options=options)


def asked(size: int, segment_bytes: int, *, ipv6: bool = False) -> Told:
    return asking(datagram(size, ipv6=ipv6), segment_bytes, fragments=True)


def together(found: list[Told]) -> Ether:
    """scapy's reassembly of one datagram's fragments, each judged by itself; its sums checked."""
    frames = [Ether(data) for data, offload in found if offload == PLAIN]
    assert len(frames) == len(found) > 1
    last = len(frames) - 1
    for index, each in enumerate(frames):
        again = each.copy()
        if IP in each:
            assert int(each[IP].flags) == (0 if index == last else 1)  # DF has gone
            del again[IP].chksum, again[IP].len
        else:
            assert each[IPv6ExtHdrFragment].m == (index != last)
            del again[IPv6].plen
        assert bytes(again) == bytes(each)
    start = frames[0].copy()
    if IP in start:
        whole = defragment([each[IP] for each in frames])[0]  # type: ignore[no-untyped-call]
        start[IP].underlayer.remove_payload()
    else:
        whole = defragment6([each[IPv6] for each in frames])  # type: ignore[no-untyped-call]
        start[IPv6].underlayer.remove_payload()
    return check(bytes(start / whole))


@pytest.mark.parametrize("isa", isa_names())
@pytest.mark.parametrize(("ipv6", "tags", "options"), SHAPES)
def test_scapy_puts_them_together(ipv6: bool, tags: int, options: int, isa: str) -> None:
    front = 14 + 4 * tags + (48 + 8 * (options > 0) * 2 if ipv6 else 20)
    for size in (1480, 9001, 65535 - (100 if ipv6 else 28)):
        told = asking(datagram(size, ipv6=ipv6, tags=tags, options=options), 1447, fragments=True)
        with patch.dict(os.environ, PMD_KERNEL_ISA=isa):
            found, dropped = send([told], isa=isa)
        assert dropped == {}
        assert max(len(data) for data, _ in found) <= front + 1440  # 1447, by eights
        assert bytes(together(found)[UDP].payload) == PAYLOAD[:size]


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_series_goes_on_where_it_was_under_its_number(ipv6: bool) -> None:
    """The port takes a frame a turn; each datagram has an identification of its own, and one."""
    sizes = [4000, 9000, 2000, 5]
    told = [asked(size, 1480 if size > 1000 else 8, ipv6=ipv6) for size in sizes]
    for room, burst in ((1, 256), (7, 2), (256, 256)):
        found, dropped = send(told, room=room, burst=burst)
        assert dropped == {}
        for size in sizes:
            count = -(-(size + 8) // (1480 if size > 1000 else 8))
            part, found = found[:count], found[count:]
            assert bytes(together(part)[UDP].payload) == PAYLOAD[:size]
        assert found == []
    if ipv6:
        found, _ = send(told, room=1)
        numbers = [Ether(data)[IPv6ExtHdrFragment].id for data, _ in found]
        assert len(set(numbers)) == len(sizes)
        assert numbers == sorted(numbers, key=numbers.index)


def test_more_than_a_burst_or_the_memory_holds() -> None:
    """Two long datagrams, and one of many fragments."""
    for told in ([asked(65_400, 1480)] * 2, [asked(8_000, 8)]):
        found, dropped = send(told)
        assert dropped == {}
        count = len(found) // len(told)
        for first in range(0, len(found), count):
            together(found[first : first + count])


def test_what_fits_is_no_fragment() -> None:
    """And keeps its flags; a checksum that was not asked for stays, even none."""
    for ipv6 in (False, True):
        frame, offload = asked(1000, 1008, ipv6=ipv6)
        ((data, header),) = send([(frame, offload)])[0]
        assert (len(data), header) == (len(frame), PLAIN)
        assert check(data)[UDP].payload == Raw(PAYLOAD[:1000])
        if not ipv6:
            assert check(data)[IP].flags == "DF"
    frame, offload = asked(3000, 1480)
    for checksum in (0, 0x1234):
        told = frame[:40] + struct.pack(">H", checksum) + frame[42:]
        found, _ = send([(told, replace(offload, flags=0))])
        assert found[0][0][40:42] == checksum.to_bytes(2, "big")
        assert b"".join(data[34:] for data, _ in found) == told[34:]


def test_options_are_copied_as_their_flag_says() -> None:
    """RFC 791, 3.1; and a list that does not end is left as it is."""
    options = [IPOption_RR(pointer=4, routers=["192.0.2.9"]), IPOption_Security()]
    frame = datagram(3000)
    frame[IP].options = options
    told = asking(Ether(bytes(frame)), 1480, fragments=True)
    found, _ = send([told])
    first, second, *_ = [Ether(data) for data, _ in found]
    assert [type(each) for each in first[IP].options[:2]] == [IPOption_RR, IPOption_Security]
    assert bytes(second)[34:42] == b"\x01" * 7 + b"\x82"
    together(found)
    for broken in (b"\x07\x00", b"\x07\x01", b"\x07\xff", b"\x01\x01\x01\x07"):
        data = told[0][:34] + broken + told[0][34 + len(broken) :]
        found, dropped = send([(data, told[1])])
        assert (len(found), dropped) == (3, {})


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        ({}, 3),
        ({"flags": 0xFF, "header_bytes": 0xFFFF}, 3),
        ({"segment_bytes": 0}, 0),
        ({"segment_bytes": 7}, 0),
        ({"segment_bytes": 15}, 376),
        ({"segment_bytes": 3008}, 1),
        ({"segment_bytes": 3042}, 1),
        ({"segment_bytes": 3050}, 0),  # more than the frame has
        ({"segment_bytes": 0xFFFF}, 0),
        ({"gso_type": Gso.UDP | ECN}, 0),
        ({"gso_type": int(Gso.TCPV4)}, 0),
        ({"checksum_start": 36}, 0),
        ({"checksum_offset": 16}, 0),
    ],
)
def test_n02_n03_headers_that_cannot_be(change: dict[str, int], sent: int) -> None:
    frame, offload = asked(3000, 1480)
    assert len(frame) == 3042
    found, dropped = send([(frame, replace(offload, **change))])
    assert len(found) == sent
    assert dropped == ({} if sent else {"bad_offload": 1})


def test_frames_that_cannot_be_cut_so() -> None:
    tcp, offload = asking(packet(bytes(3000)), 1480)
    assert send([(tcp, replace(offload, gso_type=int(Gso.UDP)))]) == ([], {"bad_offload": 1})
    # Behind what each fragment has are eight bytes of destination options: RFC 7112.
    frame = datagram(3000, ipv6=True, options=1)
    assert send([asking(frame, 15, fragments=True)]) == ([], {"bad_offload": 1})
    assert len(send([asking(frame, 16, fragments=True)])[0]) == 189
    fragment = datagram(3000)
    fragment[IP].flags = "MF"
    told = asking(datagram(3000), 1480, fragments=True)
    assert send([(bytes(fragment), told[1])]) == ([], {"bad_offload": 1})
    longest = asked(65400, 65448, ipv6=True)  # a fragment would be longer than any frame
    assert len(send([longest])[0]) == 1
    assert send([(longest[0], replace(longest[1], segment_bytes=65503))]) == (
        [],
        {"bad_offload": 1},
    )


def test_n01_what_was_not_negotiated() -> None:
    told = asked(3000, 1480)
    assert send([told], ALL & ~Offloads.UFO) == ([], {"bad_offload": 1})
    assert send([told], UFO, UFO)[0] == [
        (told[0], replace(told[1], header_bytes=42)),
    ]
    odd = told[0], replace(told[1], segment_bytes=1487)  # whoever takes it has a multiple of 8
    assert send([odd], UFO, UFO)[0][0][1].segment_bytes == 1480


def test_vm1_is_given_what_it_negotiated() -> None:
    """5.1.6.4.1: whole with GUEST_UFO, else in fragments."""
    told = asked(6000, 1480)
    whole = (told[0], replace(told[1], header_bytes=42))
    assert receive([told], negotiated=UFO) == ([whole], {})
    for negotiated in (Offloads(0), ALL & ~Offloads.UFO):
        found, dropped = receive([told], negotiated=negotiated, mergeable=True)
        assert dropped == {}
        assert bytes(together(found)[UDP].payload) == PAYLOAD[:6000]


@pytest.mark.parametrize("ipv6", [False, True])
def test_linux_takes_it_whole_and_puts_ours_together(ipv6: bool) -> None:
    """A socket of Linux's on a tap device: what the kernel is left, and what is cut by us."""
    told = asked(60_000, 1480, ipv6=ipv6)
    fragments, _ = send([told])
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with (
        namespace(),
        VfUser(parse_vf("tap:t0")) as vf,
        socket.socket(family, socket.SOCK_DGRAM) as machine,
    ):
        ip("link set t0 address 02:00:00:00:00:02")
        ip("link set t0 up")
        if ipv6:
            Path("/proc/sys/net/ipv6/conf/t0/disable_ipv6").write_text("0")
        ip("addr add fd00::2/64 dev t0 nodad" if ipv6 else "addr add 192.0.2.2/24 dev t0")
        machine.settimeout(30)
        machine.bind(("fd00::2" if ipv6 else "192.0.2.2", 2000))
        with answerer("t0") as wire:
            offload = judge(*told, ALL)
            assert offload.flags == OffloadFlag.NEEDS_CSUM
            assert vf[0].tx([told[0]], offload) == ["sent"]
            assert machine.recv(1 << 17) == PAYLOAD[:60_000]
            assert wire.recv(1 << 17) == told[0]
        vf[0].tx_all([data for data, _ in fragments])
        assert machine.recv(1 << 17) == PAYLOAD[:60_000]
