"""A network namespace of one test, with this thread inside it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNET = 0x40000000  # linux/sched.h
ETH_P_ALL = 3  # linux/if_ether.h
SOL_PACKET = 263  # linux/socket.h
PACKET_IGNORE_OUTGOING = 23  # linux/if_packet.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SIOCETHTOOL = 0x8946  # linux/sockios.h
ETHTOOL_SFLAGS = 0x26  # linux/ethtool.h


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """This thread, and what it starts, in a new network namespace that goes with it."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare came with Python 3.12
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")
        try:
            # No neighbour discovery: the only frames are the test's.
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
            yield
        finally:
            if libc.setns(before, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "setns")
    finally:
        os.close(before)


def run(*words: str) -> str:
    """Runs a command in the thread's namespace; what it says."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def ip(words: str) -> str:
    """Runs ip in the thread's namespace; what it says."""
    return run("ip", *words.split())


def flags_off(interface: str) -> None:
    """As `ethtool -K interface rxvlan off txvlan off lro off ntuple off rxhash off`."""
    value = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_SFLAGS, 0))
    request = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)


def answerer(interface: str) -> socket.socket:
    """A packet socket on interface: the machine's own side of it."""
    result = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    result.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    result.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    result.bind((interface, ETH_P_ALL))
    result.settimeout(30)
    return result


def frame(number: int, size: int = 64, kind: int = 0x88B5) -> bytes:
    """An Ethernet frame of the local experimental type, with a number in it."""
    start = bytes.fromhex("020000000002020000000001") + kind.to_bytes(2, "big")
    body = number.to_bytes(4, "big") + bytes(i & 0xFF for i in range(size))
    return (start + body)[:size]
