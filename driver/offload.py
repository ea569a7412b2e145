"""What a virtio-net header asks for (virtio 1.3, 5.1.6), judged and done in pure Python.

A part of the oracle of the kernel's tests, never in the data path. Where the specification leaves a
choice, this is the toolkit's, for kernel and oracle alike:

* Unknown flags, and a checksum that was not negotiated, are ignored; a gso_type that was not is an
  error, and so is one whose headers are not found: Ethernet, up to two tags, unfragmented IPv4 or
  IPv6 with hop-by-hop, destination and used-up routing headers, TCP or UDP, within 256 bytes.
* hdr_len is never looked at, nor what the headers say of the frame's length.
* A frame to be cut whose checksum is not asked for is cut all the same, each part with its own.
* Of the parts, CWR is the first one's, FIN and PSH are the last one's.
* Fragments are of gso_size bytes of the datagram, its UDP header included, rounded down to a
  multiple of 8; the first has all headers (RFC 7112). Don't Fragment is cleared; what is no
  fragment keeps it. IPv4 options that are not to be copied become NOPs from the second on. A
  checksum that is not asked for is the whole datagram's already, and stays.
* A checksum is never 0, which in UDP says that there is none: 0xffff means the same.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, replace

from driver.offloads import Offloads

HEADERS_MAX = 256
_FORMAT = struct.Struct("<BBHHHH")
_IPV4, _IPV6 = 0x0800, 0x86DD
_TAGS = (0x8100, 0x88A8)
_EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing, destination: RFC 8200, 4
_ROUTING = 43
_DESTINATION = 60
_FRAGMENT, _FRAGMENT_BYTES = 44, 8
_FRAME_MAX = 65562  # RK_FRAME_MAX
_TCP, _UDP = 6, 17
_FIN_PSH, _CWR = 0x09, 0x80


class OffloadFlag(enum.IntFlag):
    """Of a header's flags: those that matter."""

    NEEDS_CSUM = 1
    DATA_VALID = 2


class Gso(enum.IntEnum):
    """A header's gso_type, without ECN."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


ECN = 0x80  # or'ed to a TCP type
_OFFLOADS = {
    Gso.TCPV4: Offloads.TSO4,
    Gso.TCPV6: Offloads.TSO6,
    Gso.UDP_L4: Offloads.USO,
    Gso.UDP: Offloads.UFO,
}
_OF_UDP = (Gso.UDP, Gso.UDP_L4)


class OffloadError(Exception):
    """A header asks for what cannot be: bad_offload."""


@dataclass(frozen=True, slots=True)
class Offload:
    """struct virtio_net_hdr before num_buffers; all zero is a plain frame."""

    flags: int = 0
    gso_type: int = 0
    header_bytes: int = 0
    segment_bytes: int = 0
    checksum_start: int = 0
    checksum_offset: int = 0

    @classmethod
    def parse(cls, header: bytes) -> Offload:
        """Of the first 10 bytes."""
        return cls(*_FORMAT.unpack_from(header))

    def pack(self) -> bytes:
        """10 bytes."""
        return _FORMAT.pack(
            self.flags,
            self.gso_type,
            self.header_bytes,
            self.segment_bytes,
            self.checksum_start,
            self.checksum_offset,
        )

    @property
    def needs(self) -> Offloads | None:
        """What the other side has to take, once judged; None: nobody takes it."""
        needs = Offloads.CSUM if self.flags & OffloadFlag.NEEDS_CSUM else Offloads(0)
        if self.gso_type == Gso.NONE:
            return needs
        if not needs:
            return None
        if self.gso_type & ECN:
            needs |= Offloads.ECN
        return needs | _OFFLOADS[Gso(self.gso_type & ~ECN)]


PLAIN = Offload()


@dataclass(frozen=True, slots=True)
class Headers:
    """Where in a frame its headers are.

    fragmentable: where those end that every fragment has (RFC 8200, 4.5). next_header: of IPv6,
    where the last of them says what follows.
    """

    ipv6: bool
    protocol: int
    network: int
    transport: int
    payload: int
    fragmentable: int
    next_header: int

    @classmethod
    def find(cls, frame: bytes) -> Headers:
        """Raises OffloadError."""
        start = frame[:HEADERS_MAX]
        try:
            return cls._find(start)
        except (IndexError, struct.error):
            raise OffloadError from None

    @classmethod
    def _find(cls, start: bytes) -> Headers:
        network, tags = 14, 0
        while (kind := _word(start, network - 2)) in _TAGS and tags < len(_TAGS):
            network, tags = network + 4, tags + 1
        if (kind, start[network] >> 4) not in ((_IPV4, 4), (_IPV6, 6)):
            raise OffloadError
        find = _ipv4 if kind == _IPV4 else _ipv6
        protocol, transport, fragmentable, next_header = find(start, network)
        if protocol == _TCP:
            length = 4 * (start[transport + 12] >> 4)
            minimum = 20
        elif protocol == _UDP:
            length = minimum = 8
        else:
            raise OffloadError
        if length < minimum or transport + length > len(start):
            raise OffloadError
        payload = transport + length
        ipv6 = kind == _IPV6
        return cls(ipv6, protocol, network, transport, payload, fragmentable, next_header)


def _ipv4(start: bytes, network: int) -> tuple[int, int, int, int]:
    """Protocol, and where it begins; `Headers.fragmentable` and next_header."""
    words = start[network] & 15
    if words < 5 or _word(start, network + 6) & 0x3FFF:
        raise OffloadError
    transport = network + 4 * words
    return start[network + 9], transport, transport, 0


def _ipv6(start: bytes, network: int) -> tuple[int, int, int, int]:
    protocol, at = start[network + 6], network + 40
    fragmentable, next_header = at, network + 6
    while protocol in _EXTENSIONS:
        if protocol == _ROUTING and start[at + 3]:
            raise OffloadError
        end = at + 8 * (start[at + 1] + 1)
        if protocol != _DESTINATION:
            fragmentable, next_header = end, at
        protocol, at = start[at], end
    return protocol, at, fragmentable, next_header


def _word(data: bytes | bytearray, at: int) -> int:
    return int(struct.unpack_from(">H", data, at)[0])


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071), never 0."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def judge(frame: bytes, offload: Offload, allowed: Offloads) -> Offload:
    """What can be relied upon of a header of a frame.

    Raises:
        OffloadError: It asks for what was not negotiated, or cannot be.
    """
    known = OffloadFlag.NEEDS_CSUM | OffloadFlag.DATA_VALID if allowed & Offloads.CSUM else 0
    result = replace(offload, flags=offload.flags & known)
    if not result.flags & OffloadFlag.NEEDS_CSUM:
        result = replace(result, checksum_start=0, checksum_offset=0)
    elif result.checksum_start < 14 or result.checksum_start + result.checksum_offset + 2 > len(
        frame
    ):
        raise OffloadError
    if result.gso_type == Gso.NONE:
        return replace(result, header_bytes=0, segment_bytes=0)
    if result.gso_type == Gso.UDP:
        result = replace(result, segment_bytes=result.segment_bytes & ~7)
    return replace(result, header_bytes=_judge_gso(frame, result, allowed))


def _judge_gso(frame: bytes, offload: Offload, allowed: Offloads) -> int:
    kind = offload.gso_type & ~ECN
    if kind not in _OFFLOADS or (kind in _OF_UDP and offload.gso_type & ECN):
        raise OffloadError
    needs = _OFFLOADS[Gso(kind)] | (Offloads.ECN if offload.gso_type & ECN else 0)
    if needs & ~allowed or not 0 < offload.segment_bytes <= len(frame):
        raise OffloadError
    headers = Headers.find(frame)
    protocol = _UDP if kind in _OF_UDP else _TCP
    if headers.protocol != protocol or (protocol == _TCP and headers.ipv6 != (kind == Gso.TCPV6)):
        raise OffloadError
    if not headers.ipv6 and len(frame) - headers.network > 65535:
        raise OffloadError
    if kind == Gso.UDP and not (
        headers.payload - headers.fragmentable
        <= offload.segment_bytes
        <= _FRAME_MAX - headers.fragmentable - _FRAGMENT_BYTES
    ):
        raise OffloadError
    field = 6 if protocol == _UDP else 16
    if offload.flags & OffloadFlag.NEEDS_CSUM and (
        offload.checksum_start,
        offload.checksum_offset,
    ) != (headers.transport, field):
        raise OffloadError
    return headers.payload


def forwarded(
    frame: bytes, asked: Offload, negotiated: Offloads, taken: Offloads
) -> list[tuple[bytes, Offload]]:
    """What a frame becomes, each part with its header, on its way to somebody who takes these.

    Raises:
        OffloadError: Nothing.
    """
    if not asked.flags and not asked.gso_type:
        return [(frame, PLAIN)]
    offload = judge(frame, asked, negotiated)
    if offload.needs is not None and not offload.needs & ~taken:
        return [(frame, offload)]
    return [(part, PLAIN) for part in plain(frame, offload)]


def plain(frame: bytes, offload: Offload, identification: int = 0) -> list[bytes]:
    """The frames that a frame with a judged header stands for.

    Args:
        frame: It.
        offload: Its header, as `judge` returned it.
        identification: Of IPv6 fragments (RFC 8200, 4.5).
    """
    if offload.gso_type == Gso.UDP:
        return _fragments(frame, offload, identification)
    if offload.gso_type != Gso.NONE:
        return _cut(frame, offload.segment_bytes)
    if not offload.flags & OffloadFlag.NEEDS_CSUM:
        return [frame]
    start = offload.checksum_start
    at = start + offload.checksum_offset
    return [frame[:at] + checksum(frame[start:]).to_bytes(2, "big") + frame[at + 2 :]]


def _cut(frame: bytes, segment_bytes: int) -> list[bytes]:
    headers = Headers.find(frame)
    payload = frame[headers.payload :]
    offsets = range(0, max(len(payload), 1), segment_bytes)
    parts = []
    for number, offset in enumerate(offsets):
        start = bytearray(frame[: headers.payload])
        part = payload[offset : offset + segment_bytes]
        last = number + 1 == len(offsets)
        _number_network(start, headers, len(start) + len(part), number)
        if headers.protocol == _TCP:
            _number_tcp(start, headers.transport, offset, last=last)
        _finish(start, headers, part)
        parts.append(bytes(start) + part)
    return parts


def _number_network(start: bytearray, headers: Headers, total: int, number: int) -> None:
    network = headers.network
    if headers.ipv6:
        struct.pack_into(">H", start, network + 4, total - network - 40)
        return
    identity = (_word(start, network + 4) + number) % 65536
    struct.pack_into(">HH", start, network + 2, total - network, identity)
    struct.pack_into(">H", start, network + 10, 0)
    struct.pack_into(">H", start, network + 10, checksum(start[network : headers.transport]))


def _number_tcp(start: bytearray, tcp: int, offset: int, *, last: bool) -> None:
    sequence = struct.unpack_from(">I", start, tcp + 4)[0]
    struct.pack_into(">I", start, tcp + 4, (sequence + offset) % (1 << 32))
    if not last:
        start[tcp + 13] &= ~_FIN_PSH & 0xFF
    if offset:
        start[tcp + 13] &= ~_CWR & 0xFF


def _finish(start: bytearray, headers: Headers, part: bytes) -> None:
    """UDP's length, and the checksum."""
    network, transport = headers.network, headers.transport
    length = len(start) - transport + len(part)
    field = transport + (16 if headers.protocol == _TCP else 6)
    if headers.protocol == _UDP:
        struct.pack_into(">H", start, transport + 4, length)
    struct.pack_into(">H", start, field, 0)
    addresses = start[network + 8 : network + 40]
    if not headers.ipv6:
        addresses = start[network + 12 : network + 20]
    pseudo = addresses + struct.pack(">II", length, headers.protocol)
    struct.pack_into(">H", start, field, checksum(pseudo + start[transport:] + part))


def _fragments(frame: bytes, offload: Offload, identification: int) -> list[bytes]:
    headers, size = Headers.find(frame), offload.segment_bytes
    datagram = bytearray(frame[headers.fragmentable :])
    if offload.flags & OffloadFlag.NEEDS_CSUM:
        start = bytearray(frame[: headers.payload])
        _finish(start, headers, frame[headers.payload :])
        datagram[: headers.payload - headers.fragmentable] = start[headers.fragmentable :]
    offsets = range(0, len(datagram), size)
    alone = len(offsets) == 1
    parts = []
    for offset in offsets:
        start = bytearray(frame[: headers.fragmentable])
        part = datagram[offset : offset + size]
        more = offset + size < len(datagram)
        if headers.ipv6 and not alone:
            start += struct.pack(">BxHI", start[headers.next_header], offset | more, identification)
            start[headers.next_header] = _FRAGMENT
        elif not alone:
            struct.pack_into(">H", start, headers.network + 6, offset // 8 | more << 13)
            if offset:
                _forget_options(start, headers.network + 20)
        _number_network(start, headers, len(start) + len(part), 0)
        parts.append(bytes(start + part))
    return parts


def _forget_options(start: bytearray, at: int) -> None:
    """RFC 791, 3.1: those whose copied flag is not set are the first fragment's."""
    while at < len(start) and start[at] != 0:
        if start[at] == 1:
            at += 1
            continue
        length = start[at + 1] if at + 1 < len(start) else 0
        if length < 2 or at + length > len(start):
            return
        if not start[at] & 0x80:
            start[at : at + length] = b"\x01" * length
        at += length
