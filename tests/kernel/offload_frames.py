"""Frames that ask for offloads, as operating systems send them, made and checked by scapy."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from driver.offload import ECN, Gso, Offload, OffloadFlag

if TYPE_CHECKING:
    from tests.kernel.offload_port import Told

SEQUENCE = (1 << 32) - 700  # wraps


def packet(
    payload: bytes, *, udp: bool = False, ipv6: bool = False, tags: int = 0, options: int = 0
) -> Ether:
    """Of FIN, PSH, ACK and CWR; options: words of TCP's, or of IPv6's extension headers."""
    result = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    for tag in range(tags):
        result /= Dot1Q(vlan=5 + tag)
    if ipv6:
        result /= IPv6(src="fd00::1", dst="fd00::2")
        if options:
            result /= IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4 * options))])
            result /= IPv6ExtHdrDestOpt()
    else:
        result /= IP(src="192.0.2.1", dst="192.0.2.2", id=65534, flags="DF")
    if udp:
        result /= UDP(sport=1000, dport=2000)
    else:
        nops = [("NOP", None)] * 4 * options
        result /= TCP(sport=1000, dport=2000, seq=SEQUENCE, flags="FPAC", options=nops)
    return result / Raw(payload)


def asking(
    frame: Ether, segment_bytes: int = 0, *, ecn: bool = False, fragments: bool = False
) -> Told:
    """The frame as a driver leaves it to the device: to be cut, or (0) its checksum only.

    fragments: a datagram is to be cut into these, and not into datagrams.
    """
    data = bytearray(bytes(frame))
    parsed = Ether(bytes(data))
    udp = UDP in parsed
    length = len(bytes(parsed[UDP if udp else TCP]))
    start, field = len(data) - length, 6 if udp else 16
    ipv6 = IPv6 in parsed
    protocol = 17 if udp else 6
    # 5.1.6.2: the field holds the pseudo header's sum.
    addresses = parsed[IPv6 if ipv6 else IP]
    at = bytes(data).index(bytes(addresses))
    sources = data[at + 8 : at + 40] if ipv6 else data[at + 12 : at + 20]
    words = sources + struct.pack(">II", length, protocol)
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into(">H", data, start + field, total)
    gso = Gso.TCPV6 if ipv6 else Gso.TCPV4
    if udp:
        gso = Gso.UDP if fragments else Gso.UDP_L4
    offload = Offload(
        OffloadFlag.NEEDS_CSUM,
        (gso | (ECN if ecn else 0)) if segment_bytes else Gso.NONE,
        random.Random(start).randrange(65536) if segment_bytes else 0,  # hdr_len: a hint, a lie
        segment_bytes,
        start,
        field,
    )
    return bytes(data), offload


def check(data: bytes) -> Ether:
    """The frame's lengths and checksums are what scapy computes; the frame, parsed."""
    found, again = Ether(data), Ether(data)
    layer = UDP if UDP in found else TCP
    del again[layer].chksum
    if layer is UDP:
        del again[UDP].len
    if IP in again:
        del again[IP].chksum
        del again[IP].len
    else:
        del again[IPv6].plen
    again = Ether(bytes(again))
    if {found[layer].chksum, again[layer].chksum} == {0, 0xFFFF}:  # the same number
        again[layer].chksum = found[layer].chksum
    assert bytes(again) == data, f"{found.summary()}: {found[layer].chksum}"
    return found


def unnumbered(data: bytes) -> bytes:
    """The frame with an IPv6 fragment's identification 0: each ring numbers as it likes."""
    at = 12
    while data[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    if data[at : at + 2] != b"\x86\xdd" or len(data) < at + 42:
        return data
    protocol, at = data[at + 8], at + 42
    while protocol in (0, 43, 60) and at + 2 <= len(data):
        protocol, at = data[at], at + 8 * (data[at + 1] + 1)
    return data[: at + 4] + bytes(4) + data[at + 8 :] if protocol == 44 else data
