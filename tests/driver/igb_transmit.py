"""What an 82576 makes of a queue's transmit descriptors: its datasheet, 7.2, without mercy."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from driver.offload import checksum

if TYPE_CHECKING:
    from collections.abc import Callable

CUT, ADVANCED, REPORT, FCS, END = 1 << 31, 1 << 29, 1 << 27, 1 << 25, 1 << 24
CONTEXT, DATA = 2 << 20, 3 << 20
IP_CHECKSUM, TRANSPORT_CHECKSUM = 1 << 8, 1 << 9
CONTEXTS = 2
SEGMENT_BYTES_MAX = 9234
TCP, UDP = 6, 17
FIN_PSH, CWR = 0x09, 0x80


@dataclass(frozen=True)
class Context:
    """A context descriptor's fields."""

    network: int  # MACLEN
    network_bytes: int  # IPLEN
    ipv4: bool
    tcp: bool
    segment_bytes: int  # MSS
    transport_bytes: int  # L4LEN

    @property
    def transport(self) -> int:
        """Where TCP or UDP begins."""
        return self.network + self.network_bytes

    @property
    def checksum_at(self) -> int:
        return self.transport + (16 if self.tcp else 6)

    @property
    def end(self) -> int:
        """Of the headers, if the frame is cut."""
        return self.transport + self.transport_bytes


@dataclass
class IgbTransmit:
    """A queue's transmit side: `take` its descriptors in order.

    Attributes:
        memory: The VF's DMA.
        faults: Broken rules are noted there.
        contexts: By index, those it was told since it was made.
        told: How many context descriptors there were. asked: Frames that asked for something.
        pieces: Of the frame at hand, where the VF read it.
    """

    memory: Callable[[int, int], memoryview]
    faults: list[str]
    contexts: dict[int, Context] = field(default_factory=dict)
    told: int = 0
    asked: int = 0
    pieces: list[memoryview] = field(default_factory=list)
    _words: tuple[int, int] = (0, 0)

    def take(self, descriptor: bytes) -> list[bytes]:
        """The frames that leave by it."""
        address, command, status = struct.unpack("<QII", descriptor)
        kind = command & 15 << 20
        if not command & ADVANCED or kind not in (CONTEXT, DATA):
            self.faults.append(f"a descriptor that is none of ours: {command:#x}")
            return []
        if kind == CONTEXT:
            self._remember(address, command, status)
            return []
        shared = command & ~(END | REPORT | 0xFFFF), status & ~1
        if not self.pieces:
            self._words = shared
        elif self._words != shared:
            self.faults.append(f"a frame's descriptors differ: {self._words}, {shared}")
        if not command & FCS or status & 1 or not command & 0xFFFF:
            self.faults.append(f"a data descriptor of {command:#x} {status:#x}")
        self.pieces.append(self.memory(address, command & 0xFFFF))
        if not command & END:
            return []
        frames = self._send(b"".join(self.pieces), command, status)
        self.pieces = []
        return frames

    def _remember(self, lengths: int, kinds: int, cut: int) -> None:
        if self.pieces:
            self.faults.append("a context descriptor in a frame")
        if kinds & ~(ADVANCED | CONTEXT | 1 << 11 | 1 << 10) or cut & 0x8F or lengths >> 16:
            self.faults.append(f"a context descriptor of {lengths:#x} {kinds:#x} {cut:#x}")
        self.told += 1
        index = cut >> 4 & 7
        if index >= CONTEXTS:
            self.faults.append(f"context {index}")
        tcp = bool(kinds & 1 << 11)
        lengths_of = lengths >> 9 & 0x7F, lengths & 0x1FF
        context = Context(*lengths_of, bool(kinds & 1 << 10), tcp, cut >> 16, cut >> 8 & 0xFF)
        if not 14 <= context.network <= 127 or context.network_bytes < 20:
            self.faults.append(f"headers that cannot be: {context}")
        self.contexts[index] = context

    def _send(self, frame: bytes, command: int, status: int) -> list[bytes]:
        cut, asked = command & CUT, status & (IP_CHECKSUM | TRANSPORT_CHECKSUM)
        if len(frame) < 17:
            self.faults.append(f"a frame of {len(frame)} bytes")
        if status >> 14 != len(frame) and not cut:
            self.faults.append(f"{len(frame)} bytes with status {status:#x}")
        if not cut and not asked:
            return [frame]
        self.asked += 1
        context = self.contexts.get(status >> 4 & 7)
        if context is None:
            self.faults.append(f"an unknown context: {status:#x}")
            return []
        self._judge(frame, context)
        if cut:
            self._judge_cut(frame, context, status)
            return _cut(frame, context)
        if asked != TRANSPORT_CHECKSUM:
            self.faults.append(f"checksums of {asked:#x}")
        return [self._complete(frame, context)]

    def _judge(self, frame: bytes, context: Context) -> None:
        """The context is of this frame; no hardware looks, but what it then sends is noise."""
        network = frame[context.network :]
        right = frame[context.network - 2 : context.network]
        if context.ipv4:
            same = right == b"\x08\x00" and network[0] == 0x40 | context.network_bytes // 4
            protocol = network[9]
        else:
            same = right == b"\x86\xdd" and network[0] >> 4 == 6 and context.network_bytes == 40
            protocol = network[6]
        if not same or protocol != (TCP if context.tcp else UDP):
            self.faults.append(f"{context} of {frame[:64].hex()}")

    def _judge_cut(self, frame: bytes, context: Context, status: int) -> None:
        """7.2.4: what the headers of a frame to be cut must be."""
        headers = bytearray(frame[: context.end])
        network, transport = context.network, context.transport
        wrong = []
        if not context.tcp or headers[transport + 12] >> 4 != context.transport_bytes // 4:
            wrong.append("L4LEN")
        if len(self.pieces[0]) < context.end:
            wrong.append("its headers in several buffers")
        if not 0 < context.segment_bytes <= SEGMENT_BYTES_MAX - context.end:
            wrong.append("MSS")
        if status >> 14 != len(frame) - context.end or len(frame) <= context.end:
            wrong.append("PAYLEN")
        if not status & TRANSPORT_CHECKSUM or bool(status & IP_CHECKSUM) != context.ipv4:
            wrong.append("POPTS")
        if len(frame) - network > 0xFFFF:
            wrong.append("an IP packet of more than 65535 bytes")
        lengths = (2, 10) if context.ipv4 else (4,)
        if any(headers[network + at : network + at + 2] != bytes(2) for at in lengths):
            wrong.append("length or checksum in its IP header")
        seed = int.from_bytes(headers[context.checksum_at : context.checksum_at + 2], "big")
        wanted = ~_pseudo(headers, context) & 0xFFFF
        if seed != wanted:
            wrong.append(f"a sum of {seed:#x}, not {wanted:#x}")
        self.faults += [f"to be cut: {each}" for each in wrong]

    def _complete(self, frame: bytes, context: Context) -> bytes:
        """7.2.5. As QEMU's igb does, the sum is written where the frame is, too."""
        at = context.checksum_at
        value = checksum(frame[context.transport :]).to_bytes(2, "big")
        skip = at
        for piece in self.pieces:
            for offset in range(2):
                if 0 <= skip + offset < len(piece):
                    piece[skip + offset] = value[offset]
            skip -= len(piece)
        return frame[:at] + value + frame[at + 2 :]


def _pseudo(headers: bytes | bytearray, context: Context) -> int:
    """The checksum of TCP's pseudo header, of no length."""
    begin, end = (12, 20) if context.ipv4 else (8, 40)
    return checksum(headers[context.network + begin : context.network + end] + bytes((0, TCP)))


def _cut(frame: bytes, context: Context) -> list[bytes]:
    """7.2.4: flags by DTXTCPFLGL and DTXTCPFLGH as they are after a reset."""
    payload, size = frame[context.end :], max(1, context.segment_bytes)
    network, transport = context.network, context.transport
    segments = []
    for number, at in enumerate(range(0, len(payload), size)):
        part = payload[at : at + size]
        last = at + size >= len(payload)
        headers = bytearray(frame[: context.end])
        total = len(headers) + len(part)
        if context.ipv4:
            (identity,) = struct.unpack_from(">H", headers, network + 4)
            struct.pack_into(
                ">HH", headers, network + 2, total - network, identity + number & 0xFFFF
            )
            struct.pack_into(">H", headers, network + 10, checksum(headers[network:transport]))
        else:
            struct.pack_into(">H", headers, network + 4, total - network - 40)
        (sequence,) = struct.unpack_from(">I", headers, transport + 4)
        struct.pack_into(">I", headers, transport + 4, sequence + at & 0xFFFFFFFF)
        headers[transport + 13] &= ~((0 if last else FIN_PSH) | (CWR if number else 0)) & 0xFF
        # The length is added to what was there.
        summed = struct.pack(">H", total - transport) + headers[transport:] + part
        struct.pack_into(">H", headers, context.checksum_at, checksum(summed))
        segments.append(bytes(headers) + part)
    return segments
