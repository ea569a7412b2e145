"""The packet VF: an existing network interface, one packet socket for each queue pair."""

from __future__ import annotations

import _socket as socket  # `socket` itself takes long to begin with: guest/hotplug.py
import contextlib
import errno
import fcntl
import os

from driver.software_vf import abi
from driver.software_vf.vf import PortSpec, Vf

_SEND_BUFFER_BYTES = 4 << 20
_RECEIVE_BUFFER_BYTES = 16 << 20  # for frames longer than a slot of the ring


class PacketVf(Vf):
    """An interface as the wire sees it: all that arrives there comes, promiscuously.

    Several queue pairs share the arriving frames by flow (PACKET_FANOUT_HASH). Frames that this
    machine sends out of the interface are not seen (PACKET_IGNORE_OUTGOING).

    Args:
        spec: The user's words.
        name: The interface's.
    """

    kind = "packet"

    def __init__(self, spec: str, name: str) -> None:
        super().__init__(spec)
        self._name = name

    def open(self, queue_pairs: int) -> list[PortSpec]:
        """See `Vf.open`."""
        refused = ("no permission", "run as root, or with CAP_NET_RAW")
        explained = {
            errno.EPERM: refused,
            errno.EACCES: refused,
            errno.ENODEV: ("there is no such interface", "see: ip link"),
        }
        with self._refusal(explained), contextlib.ExitStack() as undo:
            sockets = [
                undo.enter_context(contextlib.closing(self._socket())) for _ in range(queue_pairs)
            ]
            if queue_pairs > 1:
                _share(sockets)
            undo.pop_all()
            return [PortSpec(self.kind, each.detach()) for each in sockets]

    def _socket(self) -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with contextlib.ExitStack() as undo:
            # Protocol 0: nothing of other interfaces arrives before the bind.
            made = socket.socket(socket.AF_PACKET, kind, 0)
            result = undo.enter_context(contextlib.closing(made))
            self._judge(result)
            result.setsockopt(abi.SOL_PACKET, abi.PACKET_IGNORE_OUTGOING, 1)
            # A full device queue then says so (ENOBUFS), and the frame waits in VM1's ring instead
            # of a queueing discipline's.
            result.setsockopt(abi.SOL_PACKET, abi.PACKET_QDISC_BYPASS, 1)
            enlarge(result, abi.SO_SNDBUFFORCE, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            enlarge(result, abi.SO_RCVBUFFORCE, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            result.bind((self._name, abi.ETH_P_ALL))
            asked = abi.IFREQ_INDEX.pack(os.fsencode(self._name), 0)
            index = abi.IFREQ_INDEX.unpack(fcntl.ioctl(result, abi.SIOCGIFINDEX, asked))[1]
            request = abi.PACKET_MREQ.pack(index, abi.PACKET_MR_PROMISC, 0, b"")
            result.setsockopt(abi.SOL_PACKET, abi.PACKET_ADD_MEMBERSHIP, request)
            undo.pop_all()
            return result

    def _judge(self, any_socket: socket.socket) -> None:
        """Raises unless the interface exists, carries Ethernet frames and is up."""
        request = abi.IFREQ.pack(os.fsencode(self._name), 0)
        family = abi.IFREQ.unpack(fcntl.ioctl(any_socket, abi.SIOCGIFHWADDR, request))[1]
        if family not in (abi.ARPHRD_ETHER, abi.ARPHRD_LOOPBACK):
            raise self._error("it is not an Ethernet interface", "see: ip link")
        flags = abi.IFREQ.unpack(fcntl.ioctl(any_socket, abi.SIOCGIFFLAGS, request))[1]
        if not flags & abi.IFF_UP:
            raise self._error("the interface is down", f"ip link set {self._name} up")


def _share(sockets: list[socket.socket]) -> None:
    """Make the bound sockets one fanout group, under a number the kernel chooses.

    The group's own flag is needed: it no longer looks at the sockets' PACKET_IGNORE_OUTGOING.
    """
    mode = abi.PACKET_FANOUT_HASH | abi.PACKET_FANOUT_FLAG_IGNORE_OUTGOING
    first = (mode | abi.PACKET_FANOUT_FLAG_UNIQUEID) << 16
    sockets[0].setsockopt(abi.SOL_PACKET, abi.PACKET_FANOUT, first)
    group = sockets[0].getsockopt(abi.SOL_PACKET, abi.PACKET_FANOUT) & 0xFFFF
    for each in sockets[1:]:
        each.setsockopt(abi.SOL_PACKET, abi.PACKET_FANOUT, mode << 16 | group)


def enlarge(any_socket: socket.socket, force: int, ask: int, size_bytes: int) -> None:
    """Set a socket buffer's size: beyond the machine's limit where we may, else up to it."""
    try:
        any_socket.setsockopt(socket.SOL_SOCKET, force, size_bytes)
    except PermissionError:
        any_socket.setsockopt(socket.SOL_SOCKET, ask, size_bytes)
