"""A network interface by its name, as the kernel's ioctls show it now: netdevice(7), ethtool.h."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.software_vf import abi

if TYPE_CHECKING:
    import socket

_HEADER_BYTES = 14
_TAG_BYTES = 4


@dataclass(frozen=True, slots=True)
class InterfaceFacts:
    """An interface at the moment of asking.

    Attributes:
        index: Its number, which no later one has.
        family: ARPHRD_*.
        up: Administratively.
        link: Up, and with a carrier.
        frame_bytes_max: What it sends and receives: its MTU, an Ethernet header and one tag.
        rx_queues: Channels that receive; 1 where its driver does not tell.
        tx_queues: Channels that send.
        takes_tags: It takes VLAN tags out of received frames.
    """

    index: int
    family: int
    up: bool
    link: bool
    frame_bytes_max: int
    rx_queues: int
    tx_queues: int
    takes_tags: bool


def read_interface(any_socket: socket.socket, name: str) -> InterfaceFacts:
    """The facts, by a socket of any family that has the device's ioctls.

    Raises:
        OSError: ENODEV where there is none of that name.
    """
    index = _ask(any_socket, name, abi.SIOCGIFINDEX)
    flags = _ask(any_socket, name, abi.SIOCGIFFLAGS) & 0xFFFF
    rx, tx = _channels(any_socket, name)
    return InterfaceFacts(
        index=index,
        family=_ask(any_socket, name, abi.SIOCGIFHWADDR) & 0xFFFF,
        up=bool(flags & abi.IFF_UP),
        link=bool(flags & abi.IFF_UP) and _has_carrier(any_socket, name, flags),
        frame_bytes_max=_ask(any_socket, name, abi.SIOCGIFMTU) + _HEADER_BYTES + _TAG_BYTES,
        rx_queues=rx,
        tx_queues=tx,
        takes_tags=_takes_tags(any_socket, name),
    )


def _ask(any_socket: socket.socket, name: str, request: int) -> int:
    """The first word of what follows the name in struct ifreq."""
    argument = abi.IFREQ_INDEX.pack(os.fsencode(name), 0)
    return int(abi.IFREQ_INDEX.unpack(fcntl.ioctl(any_socket, request, argument))[1])


def _ethtool(any_socket: socket.socket, name: str, command: bytes) -> bytes | None:
    """The answer in the command's place; None where the driver has none."""
    buffer = ctypes.create_string_buffer(command, len(command))
    argument = abi.IFREQ_POINTER.pack(os.fsencode(name), ctypes.addressof(buffer))
    try:
        fcntl.ioctl(any_socket, abi.SIOCETHTOOL, argument)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return None
    return buffer.raw


def _channels(any_socket: socket.socket, name: str) -> tuple[int, int]:
    command = abi.ETHTOOL_CHANNELS.pack(abi.ETHTOOL_GCHANNELS, *[0] * 8)
    answer = _ethtool(any_socket, name, command)
    if answer is None:
        return 1, 1
    rx, tx, _, combined = abi.ETHTOOL_CHANNELS.unpack(answer)[5:]
    return max(1, rx + combined), max(1, tx + combined)


def _ethtool_value(any_socket: socket.socket, name: str, command: int) -> int | None:
    answer = _ethtool(any_socket, name, abi.ETHTOOL_VALUE.pack(command, 0))
    return None if answer is None else int(abi.ETHTOOL_VALUE.unpack(answer)[1])


def _has_carrier(any_socket: socket.socket, name: str, flags: int) -> bool:
    link = _ethtool_value(any_socket, name, abi.ETHTOOL_GLINK)
    # IFF_RUNNING comes up to a second after the carrier.
    return bool(flags & abi.IFF_RUNNING if link is None else link)


def _takes_tags(any_socket: socket.socket, name: str) -> bool:
    return bool((_ethtool_value(any_socket, name, abi.ETHTOOL_GFLAGS) or 0) & abi.ETH_FLAG_RXVLAN)
