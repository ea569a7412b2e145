"""Ethernet frames of our own between two machines: each goes there and comes back, byte for byte.

    frames.py reflect INTERFACE
        sends each of them back to where it came from; prints "ready"; never ends
    frames.py sweep INTERFACE DESTINATION FIRST LAST [VLAN]
        one of every size from FIRST to LAST bytes, with a VLAN tag in it or without; prints how
        many came back as they were
    frames.py stream INTERFACE DESTINATION
        frames of all sizes without end; prints from time to time how many were sent, and came back

Sizes have the addresses in them, and the tag, but no FCS. Standard library only.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

_ALL = 3  # linux/if_ether.h ETH_P_ALL
_OUTGOING = 4  # linux/if_packet.h: sent by this machine
_PROTOCOL = 0x88B5  # IEEE 802: for local experiments
_TAG = 0x8100
_ADDRESSES = 12
_HEADER = 14
_SIZES = range(60, 1515)
_BYTES = bytes(at * 7 & 0xFF for at in range(2048))
_WINDOW = 64  # frames under way, less than any ring
_LOST_S = 0.5  # what has not come back by then never will
_TRIALS = 5  # a wire may lose a frame, but not one size each time
_SAY_S = 0.5
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_RECEIVE_BYTES = 4 << 20
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_ADD_MEMBERSHIP, _PROMISCUOUS = 263, 8, 1, 1
_AUXDATA = struct.Struct("<IIIHHHH")  # linux/if_packet.h struct tpacket_auxdata
_HAS_TAG = 1 << 4


class Wire:
    """A packet socket that shows frames as they were on the wire, with their tags."""

    def __init__(self, interface: str) -> None:
        # All of them: the kernel takes tags of VLANs that it does not know away before it shows
        # frames to those who want one protocol.
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self.socket.bind((interface, _ALL))
        # What we send is shown to us as well: a window, twice, at a page or two a frame.
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        # So that no filter of the card's keeps a tag away.
        index = socket.if_nametoindex(interface)
        request = struct.pack("<iHH8x", index, _PROMISCUOUS, 0)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        self.address = bytes(self.socket.getsockname()[4])

    def send(self, frame: bytes) -> None:
        """However long the card takes none."""
        self.socket.settimeout(None)
        self.socket.send(frame)

    def receive(self, timeout_s: float | None) -> bytes | None:
        """The next frame; None: none came for so long."""
        self.socket.settimeout(timeout_s)
        while True:
            try:
                data, control, _, sender = self.socket.recvmsg(1 << 16, 256)
            except TimeoutError:
                return None
            frame = _with_tag(data, control)
            if sender[2] != _OUTGOING and _protocol(frame) == _PROTOCOL:
                return frame


def _with_tag(data: bytes, control: list[tuple[int, int, bytes]]) -> bytes:
    """The frame, its tag where it was."""
    for _, kind, value in control:
        if kind == _PACKET_AUXDATA:
            status, *_, tci, _ = _AUXDATA.unpack_from(value)
            if status & _HAS_TAG:
                return data[:_ADDRESSES] + struct.pack(">HH", _TAG, tci) + data[_ADDRESSES:]
    return data


def _protocol(frame: bytes) -> int:
    """The one in it, behind a tag if there is one."""
    at = _ADDRESSES
    while frame[at : at + 2] == struct.pack(">H", _TAG):
        at += 4
    return int.from_bytes(frame[at : at + 2], "big")


def reflect(wire: Wire) -> None:
    """Swap the addresses of what comes, and send it."""
    print("ready", flush=True)
    while True:
        frame = wire.receive(None)
        if frame is not None:
            wire.send(frame[6:12] + frame[:6] + frame[12:])


def make(wire: Wire, to: bytes, size: int, number: int, vlan: int) -> bytes:
    """The frame of that number, which is in it."""
    tag = struct.pack(">HH", _TAG, vlan) if vlan else b""
    head = to + wire.address + tag + struct.pack(">HI", _PROTOCOL, number)
    start = number * 31 & 0xFF
    return head + _BYTES[start : start + size - len(head)]


def reflected(frame: bytes) -> bytes:
    """What comes back of it."""
    return frame[6:12] + frame[:6] + frame[12:]


def sweep(wire: Wire, to: bytes, sizes: range, vlan: int) -> int:
    """How many came back. A frame that is not as it was sent ends it; a lost one is sent again."""
    frames = [make(wire, to, size, size, vlan) for size in sizes]
    waited = {reflected(frame): frame for frame in frames}
    known = set(waited)
    for _ in range(_TRIALS):
        left = list(waited)
        for at in range(0, len(left), _WINDOW):
            window = set(left[at : at + _WINDOW])
            for back in sorted(window, key=len):
                wire.send(waited[back])
            while window & waited.keys() and (found := wire.receive(_LOST_S)) is not None:
                if found not in known:
                    print(f"strange: {len(found)} bytes, {found[:32].hex()}", file=sys.stderr)
                    return len(known) - len(waited)
                waited.pop(found, None)
    return len(known) - len(waited)


def stream(wire: Wire, to: bytes) -> None:
    """A window at a time; what is lost is left behind."""
    sent = back = 0
    said_s = time.monotonic()
    while True:
        window = {}
        for number in range(sent, sent + _WINDOW):
            frame = make(wire, to, _SIZES[number * 37 % len(_SIZES)], number, 0)
            window[reflected(frame)] = number
            wire.send(frame)
        sent += _WINDOW
        while window and (found := wire.receive(_LOST_S)) is not None:
            back += window.pop(found, None) is not None
        if time.monotonic() - said_s >= _SAY_S:
            said_s = time.monotonic()
            print(f"sent {sent}, back {back}", flush=True)


def main() -> None:
    """One of the three."""
    _, action, interface, *words = sys.argv
    wire = Wire(interface)
    if action == "reflect":
        reflect(wire)
    to = bytes.fromhex(words[0].replace(":", ""))
    if action == "sweep":
        sizes = range(int(words[1]), int(words[2]) + 1)
        print(sweep(wire, to, sizes, int(words[3]) if words[3:] else 0), flush=True)
    else:
        stream(wire, to)


if __name__ == "__main__":
    main()
