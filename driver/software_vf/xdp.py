"""The xdp VF: an interface with a kernel driver, by AF_XDP sockets on all its receive queues."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.software_vf import abi
from driver.software_vf.interface import read_interface
from driver.software_vf.vf import PortSpec, Vf
from driver.software_vf.xdp_program import XdpProgram
from driver.software_vf.xdp_socket import CHUNK_BYTES, Statistics, XdpQueue, XdpSocket
from driver.software_vf.xdp_state import SharedState

if TYPE_CHECKING:
    from driver.software_vf.interface import InterfaceFacts

_log = logging.getLogger("pmd")

# Of a received frame that lies in one chunk.
_CHUNK_FRAME_BYTES = CHUNK_BYTES - abi.XDP_HEADROOM_BYTES
# A driver or a kernel that cannot bind a socket in one way may in another.
_ANOTHER_WAY = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class XdpQueues:
    """What a port works with: struct rk_xdp_config. It sends on the first queue.

    state is the address of a `SharedState`. multi_buffer: a frame may lie in several chunks.
    """

    queues: tuple[XdpQueue, ...]
    chunk_bytes: int
    multi_buffer: bool
    state: int


class XdpVf(Vf):
    """An interface, whichever driver it has. All that arrives there comes, promiscuously.

    It has as many queue pairs as the interface has channels; where VM1 has fewer, a port receives
    from several queues. It must be up when it is opened. Later it may go down, or go and come back.

    Args:
        spec: The user's words.
        name: The interface's.
    """

    kind = "xdp"
    look_period_s = 0.5
    opens_slowly = True  # drivers set their queues up anew when a program comes

    def __init__(self, spec: str, name: str) -> None:
        super().__init__(spec)
        self._name = name
        self._state = SharedState()
        self._opened: tuple[socket.socket, XdpProgram, int] | None = None
        self._sockets: tuple[XdpSocket, ...] = ()
        self._counted = Statistics()  # by the sockets of before

    @property
    def queue_pairs_max(self) -> int | None:  # type: ignore[override]
        """See `Vf`: the interface's channels now, None where there is no interface."""
        with contextlib.suppress(OSError), _control_socket() as control:
            return _channels(read_interface(control, self._name))
        return None

    def open(self, queue_pairs: int) -> list[PortSpec]:
        """See `Vf.open`."""
        with self._refusal(self._explained()), contextlib.ExitStack() as undo:
            control = undo.enter_context(_control_socket())
            facts = read_interface(control, self._name)
            self._judge(facts, queue_pairs)
            # Promiscuous while this socket is open.
            request = abi.PACKET_MREQ.pack(facts.index, abi.PACKET_MR_PROMISC, 0, b"")
            control.setsockopt(abi.SOL_PACKET, abi.PACKET_ADD_MEMBERSHIP, request)
            program = undo.enter_context(XdpProgram(self.spec, facts.index, facts.rx_queues))
            sockets, flags = _bind_all(undo, facts, program, queue_pairs)
            for queue, each in enumerate(sockets):
                program.set_socket(queue, each.fileno())
            self._opened = control, program, facts.index
            self._sockets = tuple(sockets)
            undo.callback(self._forget)
            self._state.broken = 0
            self._state.frame_bytes_max = facts.frame_bytes_max if facts.link else 0
            multi_buffer = bool(flags & abi.XDP_USE_SG)
            self._say(facts, program, sockets[0], multi_buffer=multi_buffer)
            self._left = undo.pop_all()
        queues = [each.facts for each in sockets]
        state = ctypes.addressof(self._state)
        return [
            PortSpec(
                self.kind,
                xdp=XdpQueues(tuple(queues[pair::queue_pairs]), CHUNK_BYTES, multi_buffer, state),
            )
            for pair in range(queue_pairs)
        ]

    def _explained(self) -> dict[int, tuple[str, str]]:
        refused = ("no permission", "run as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF")
        occupied = (
            "it has an XDP program or socket of another process",
            f"see: ip link show {self._name}; or use packet:{self._name}",
        )
        missing = ("this kernel has no AF_XDP", f"use packet:{self._name}")
        return {
            errno.EPERM: refused,
            errno.EACCES: refused,
            errno.ENODEV: ("there is no such interface", "see: ip link"),
            errno.EBUSY: occupied,
            errno.EEXIST: occupied,
            errno.EAFNOSUPPORT: missing,
            errno.ENOSYS: missing,
            errno.ENOBUFS: ("no more memory may be locked", "ulimit -l unlimited"),
        }

    def _judge(self, facts: InterfaceFacts, queue_pairs: int) -> None:
        if facts.family != abi.ARPHRD_ETHER:
            raise self._error("it is not an Ethernet interface", "see: ip link")
        if not facts.up:
            raise self._error("the interface is down", f"ip link set {self._name} up")
        if queue_pairs > _channels(facts):
            cause = f"it has {_channels(facts)} channels, not {queue_pairs}"
            raise self._error(cause, f"ethtool -L {self._name} combined {queue_pairs}")

    def _say(
        self, facts: InterfaceFacts, program: XdpProgram, bound: XdpSocket, *, multi_buffer: bool
    ) -> None:
        copy = "zero-copy" if bound.zero_copy else "copy"
        mode = "driver" if program.driver_mode else "generic"
        count = f"{facts.rx_queues} queue{'s' if facts.rx_queues > 1 else ''}"
        woken = ", need_wakeup" if bound.need_wakeup else ""
        self.mode = f"{copy}, {mode} mode, {count}{woken}"
        _log.info("VF %s: %s", self.spec, self.mode)
        if facts.takes_tags:
            remedy = f"if its driver lets you: ethtool -K {self._name} rxvlan off"
            _log.warning("VF %s: received frames lose their VLAN tags; %s", self.spec, remedy)
        if not multi_buffer and facts.frame_bytes_max > _CHUNK_FRAME_BYTES:
            text = "VF %s: received frames of more than %d bytes are lost"
            _log.warning(text, self.spec, _CHUNK_FRAME_BYTES)

    def look(self) -> str:
        """See `Vf.look`; an interface that went away is waited for."""
        if self._opened is None:
            return ""
        if self._state.broken:
            return "its rings make no sense"
        control, program, index = self._opened
        try:
            facts = read_interface(control, self._name)
            here = program.interface == facts.index == index
        except OSError:
            facts, here = None, False
        self._state.frame_bytes_max = facts.frame_bytes_max if facts and here and facts.link else 0
        return "its interface came back" if facts and facts.up and not here else ""

    def counters(self) -> dict[str, int]:
        """See `Vf.counters`: what the kernel counted of its sockets (linux/if_xdp.h)."""
        total = self._counted
        with contextlib.suppress(OSError):  # closed on another thread
            for each in self._sockets:
                total += each.statistics()
        return total._asdict()

    def _forget(self) -> None:
        self._counted = Statistics(**self.counters())
        self._sockets = ()
        self._opened = None
        self._state.frame_bytes_max = 0


def _control_socket() -> socket.socket:
    """A packet socket that gets no frame (protocol 0): for ioctls, and to be promiscuous by."""
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)


def _channels(facts: InterfaceFacts) -> int:
    return min(facts.rx_queues, facts.tx_queues)


def _bind_all(
    undo: contextlib.ExitStack, facts: InterfaceFacts, program: XdpProgram, senders: int
) -> tuple[list[XdpSocket], int]:
    """A socket on each receive queue, of which the first ones send; the flags of all."""
    ways = _ways(facts, program)
    while True:
        flags = ways.pop(0) | abi.XDP_USE_NEED_WAKEUP
        try:
            with contextlib.ExitStack() as stack:
                sockets = [
                    stack.enter_context(XdpSocket(facts.index, queue, flags, sends=queue < senders))
                    for queue in range(facts.rx_queues)
                ]
                undo.push(stack.pop_all())
                return sockets, flags
        except OSError as error:
            if not ways or error.errno not in _ANOTHER_WAY:
                raise


def _ways(facts: InterfaceFacts, program: XdpProgram) -> list[int]:
    """How a socket may be bound, the best first."""
    short = facts.frame_bytes_max <= _CHUNK_FRAME_BYTES
    ways = []
    if program.driver_mode:
        # Better a copy than frames that cannot come.
        ways += [abi.XDP_ZEROCOPY | abi.XDP_USE_SG, *([abi.XDP_ZEROCOPY] if short else [])]
    ways += [abi.XDP_COPY | abi.XDP_USE_SG, abi.XDP_COPY]
    return [way for way in ways if program.multi_buffer or not way & abi.XDP_USE_SG]
