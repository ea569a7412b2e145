"""udevd's voice, in a network namespace of its own: nobody else on the machine hears it.

Its messages are those of systemd's libudev: a header with hashes for the listeners' socket filters,
then the properties (systemd, src/libsystemd/sd-device/device-monitor.c).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NETLINK_KOBJECT_UEVENT = 15  # linux/netlink.h
_GROUP_UDEV = 2
_MAGIC = 0xFEEDCAFE
# Prefix, magic, header's size, properties' offset and size, hashes of subsystem and device type,
# bloom filter of the tags.
_HEADER = struct.Struct("=8s4sIII4s4s4s4s")


def in_new_namespace(work: Callable[[], _Result]) -> _Result:
    """Run work on a thread that has a network namespace of its own; needs root."""

    def run() -> _Result:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        return work()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(run).result()


class FakeUdevd:
    """Tells the listeners of this namespace what it is told to."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT)
        self._socket.bind((0, 0))
        self._number = 0

    def say(
        self, action: str, address: str, pci_id: str = "1AF4:10F0", subsystem: str = "pci"
    ) -> None:
        """One uevent."""
        self._number += 1
        properties = {
            "ACTION": action,
            "DEVPATH": f"/devices/pci0000:00/{address}",
            "SUBSYSTEM": subsystem,
            "PCI_ID": pci_id,
            "PCI_SLOT_NAME": address,
            "SEQNUM": str(self._number),
        }
        body = b"".join(f"{key}={value}\0".encode() for key, value in properties.items())
        header = _HEADER.pack(
            b"libudev\0",
            _MAGIC.to_bytes(4, "big"),
            _HEADER.size,
            _HEADER.size,
            len(body),
            _murmur(subsystem.encode()).to_bytes(4, "big"),
            bytes(4),
            bytes(4),
            bytes(4),
        )
        self._socket.sendto(header + body, (0, _GROUP_UDEV))

    def close(self) -> None:
        """Fall silent."""
        self._socket.close()


def _murmur(data: bytes) -> int:
    """MurmurHash2 with seed 0, by which the listeners' filters know a subsystem."""
    factor, mask = 0x5BD1E995, 0xFFFFFFFF
    value = len(data)
    whole = len(data) & ~3
    for begin in range(0, whole, 4):
        word = int.from_bytes(data[begin : begin + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        value = value * factor & mask ^ word
    if whole < len(data):
        value = (value ^ int.from_bytes(data[whole:], "little")) * factor & mask
    value = (value ^ value >> 13) * factor & mask
    return value ^ value >> 15


def must_be_root() -> str:
    """Why a test cannot have a namespace, or an empty string."""
    return "" if os.geteuid() == 0 else "a network namespace needs root"
