"""The front-end's half of vhost-user: bring-up, the end, and whether the back-end is there.

The ladder, upwards: owner, features, protocol features, memory table, inflight region, then for
each ring number, base, address, call, error; enable, kick. Down: disable, GET_VRING_BASE.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError, errno_text
from tools import vhost_user_abi as abi
from tools import vhost_user_wire as wire
from tools.vhost_user_abi import Feature, ProtocolFeature, Request
from tools.vm1.options import Leave

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from tools.vm1.memory import Memory
    from tools.vm1.options import RingOptions
    from tools.vm1.rings import Ring

_REPLY_TIMEOUT_S = 10.0
_PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.INFLIGHT_SHMFD
_INFLIGHT_BYTES = 24  # what QEMU sends and some back-ends insist on: a padded structure


def wanted_features(options: RingOptions) -> tuple[Feature, Feature]:
    """The feature bits a run needs, and those it takes where they are offered."""
    needed, taken = Feature(0), Feature.PROTOCOL_FEATURES
    for wanted, feature in (
        (not options.legacy, Feature.VERSION_1),
        (options.packed, Feature.RING_PACKED),
        (options.indirect, Feature.INDIRECT_DESC),
        (options.pairs > 1, Feature.NET_MQ | Feature.PROTOCOL_FEATURES),
        (options.leave != Leave.NOTHING, Feature.NET_CSUM),
        (options.leave == Leave.TSO, Feature.NET_HOST_TSO4),
        (options.leave == Leave.USO, Feature.NET_HOST_USO),
        (options.leave == Leave.UFO, Feature.NET_HOST_UFO),
    ):
        needed |= feature if wanted else Feature(0)
    if options.mergeable:
        taken |= Feature.NET_MRG_RXBUF
    if options.event_idx:
        taken |= Feature.EVENT_IDX
    if options.guest_csum:
        taken |= Feature.NET_GUEST_CSUM
    if options.offloads:
        taken |= Feature.NET_CSUM | Feature.NET_GUEST_CSUM
        taken |= Feature.NET_HOST_TSO4 | Feature.NET_HOST_TSO6
        # 5.1.6.3.1: unmerged, each receive buffer would have to hold 65562 bytes.
        if options.mergeable:
            taken |= Feature.NET_GUEST_TSO4 | Feature.NET_GUEST_TSO6
    # 2.7.9.1: in order, a split ring's descriptors go round the table, so chains must divide it.
    chains = (options.chain, options.receive_chain)
    even = options.indirect or options.packed or all(chain & (chain - 1) == 0 for chain in chains)
    if options.in_order and even and not options.legacy:
        taken |= Feature.IN_ORDER
    return needed, taken


def _consistent(features: Feature) -> Feature:
    """Without those that need another one which is not there (5.1.3.1)."""
    if not features & Feature.NET_CSUM:
        features &= ~(Feature.NET_HOST_TSO4 | Feature.NET_HOST_TSO6)
    if not features & Feature.NET_GUEST_CSUM or not features & Feature.NET_MRG_RXBUF:
        features &= ~(Feature.NET_GUEST_TSO4 | Feature.NET_GUEST_TSO6)
    return features


@dataclass(frozen=True, slots=True)
class Inflight:
    """The region in which a back-end keeps what the next one must know, by its description.

    Whoever holds it owns fd. description: the payload of the reply to GET_INFLIGHT_FD.
    """

    fd: int
    description: bytes


class FrontEnd(Closing):
    """A vhost-user session over one connection, which it owns.

    Thread rule: one thread. Every call may raise VhostPciError: the back-end refused, went away,
    or did not answer within 10 s.
    """

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._connection = connection
        self._name = name
        self._acknowledged = False
        self._protocol = ProtocolFeature(0)
        self.features = Feature(0)
        connection.settimeout(_REPLY_TIMEOUT_S)

    def negotiate(self, options: RingOptions, fixed: Feature | None = None) -> Feature:
        """Agree on features, which it returns; fixed are those of an earlier back-end."""
        self._send(Request.SET_OWNER)
        offered = Feature(self._ask_u64(Request.GET_FEATURES))
        needed, taken = wanted_features(options)
        if fixed is not None:
            needed |= fixed
        missing = needed & ~offered
        if missing:
            names = ", ".join(str(flag.name) for flag in missing)
            remedy = "start it with them, or do without"
            raise VhostPciError("use", self._name, f"the back-end does not offer {names}", remedy)
        self.features = fixed if fixed is not None else _consistent((needed | taken) & offered)
        if self.features & Feature.PROTOCOL_FEATURES:
            self._negotiate_protocol(options.pairs)
        self._set(Request.SET_FEATURES, abi.U64.pack(self.features))
        return self.features

    def _negotiate_protocol(self, pairs: int) -> None:
        offered = ProtocolFeature(self._ask_u64(Request.GET_PROTOCOL_FEATURES))
        accepted = offered & _PROTOCOL
        self._protocol = accepted
        self._send(Request.SET_PROTOCOL_FEATURES, abi.U64.pack(accepted))
        self._acknowledged = bool(accepted & ProtocolFeature.REPLY_ACK)
        most = self._ask_u64(Request.GET_QUEUE_NUM) if accepted & ProtocolFeature.MQ else 1
        if most < pairs:
            cause = f"the back-end has {most} queue pairs, not {pairs}"
            raise VhostPciError("use", self._name, cause, "lower --queue-pairs")

    def share_memory(self, memory: Memory) -> None:
        """Send the memory table with the file's descriptor for each region."""
        regions = memory.regions
        payload = abi.MEMORY_HEADER.pack(len(regions), 0)
        for region in regions:
            payload += abi.MEMORY_REGION.pack(
                region.bus, region.size_bytes, region.user, region.offset
            )
        self._set(Request.SET_MEM_TABLE, payload, (memory.fd,) * len(regions))

    def share_inflight(self, kept: Inflight | None, rings: int, size: int) -> Inflight | None:
        """Give the back-end the region that an earlier one kept, or ask it for one.

        The region to keep, which the caller owns; None where the back-end has no use for one.
        """
        if not self._protocol & ProtocolFeature.INFLIGHT_SHMFD:
            return kept
        if kept is None:
            kept = self._get_inflight(rings, size)
        try:
            self._set(Request.SET_INFLIGHT_FD, kept.description, (kept.fd,))
        except VhostPciError:
            os.close(kept.fd)
            raise
        return kept

    def _get_inflight(self, rings: int, size: int) -> Inflight:
        request = Request.GET_INFLIGHT_FD
        self._send(request, abi.INFLIGHT.pack(0, 0, rings, size).ljust(_INFLIGHT_BYTES, b"\0"))
        message = self._receive_message(request)
        with wire.Descriptors(message.fds) as fds:
            whole = abi.INFLIGHT.size <= len(message.payload) <= _INFLIGHT_BYTES
            if message.request != request or not message.is_reply or not whole or len(fds) != 1:
                cause = f"the answer has {len(message.payload)} bytes and {len(fds)} descriptors"
                raise self._error(request, cause)
            return Inflight(fds.take(), message.payload.ljust(_INFLIGHT_BYTES, b"\0"))

    def start(self, rings: Sequence[Ring], bases: Sequence[int]) -> None:
        """Set every ring up from its base, and enable it."""
        for index, (ring, base) in enumerate(zip(rings, bases, strict=True)):
            self._set_state(Request.SET_VRING_NUM, index, ring.shape.size)
            self._set_state(Request.SET_VRING_BASE, index, base)
            # vhost-user wants addresses of this process here, descriptors hold bus addresses.
            address = abi.VRING_ADDRESS.pack(
                index, 0, ring.desc.host, ring.used.host, ring.avail.host, 0
            )
            self._set(Request.SET_VRING_ADDR, address)
            number = abi.U64.pack(index)
            self._set(Request.SET_VRING_CALL, number, (ring.call_fd,))
            self._set(Request.SET_VRING_ERR, number, (ring.error_fd,))
        # The kick starts a ring, and a started ring that is not enabled has its transmit buffers
        # discarded ("ring states"); ours hold frames from the start.
        self._enable(len(rings), 1)
        for index, ring in enumerate(rings):
            self._set(Request.SET_VRING_KICK, abi.U64.pack(index), (ring.kick_fd,))
        # A back-end without REPLY_ACK shows by this answer that it took all of it.
        self._ask_u64(Request.GET_FEATURES)

    def stop(self, count: int) -> list[int]:
        """Disable and stop the rings; what the back-end says their bases are."""
        self._enable(count, 0)
        bases = []
        for index in range(count):
            payload = abi.VRING_STATE.pack(index, 0)
            answer = self._ask(Request.GET_VRING_BASE, payload, abi.VRING_STATE.size)
            which, base = abi.VRING_STATE.unpack(answer)
            if which != index:
                raise VhostPciError("stop", f"ring {index}", f"the answer is of ring {which}")
            bases.append(base)
        return bases

    def hung_up(self) -> bool:
        """Whether the back-end closed the connection."""
        return wire.hung_up(self._connection)

    def _enable(self, count: int, enable: int) -> None:
        # Without PROTOCOL_FEATURES rings are enabled by their start ("ring states").
        if self.features & Feature.PROTOCOL_FEATURES:
            for index in range(count):
                self._set_state(Request.SET_VRING_ENABLE, index, enable)

    def _set_state(self, request: Request, index: int, value: int) -> None:
        self._set(request, abi.VRING_STATE.pack(index, value))

    def _set(self, request: Request, payload: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send, and where the back-end can, have it say that it was done."""
        if not self._acknowledged:
            self._send(request, payload, fds)
            return
        self._send(request, payload, fds, abi.HeaderFlag.NEED_REPLY)
        answer = abi.U64.unpack(self._receive(request, abi.U64.size))[0]
        if answer:
            raise self._error(request, f"the back-end refused it with {answer}")

    def _ask_u64(self, request: Request) -> int:
        return int(abi.U64.unpack(self._ask(request, b"", abi.U64.size))[0])

    def _ask(self, request: Request, payload: bytes, size: int) -> bytes:
        self._send(request, payload)
        return self._receive(request, size)

    def _send(
        self, request: Request, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0
    ) -> None:
        message = wire.Message(request, abi.VERSION | flags, payload, fds)
        try:
            wire.send(self._connection, message)
        except OSError as error:
            raise self._error(request, errno_text(error)) from error

    def _receive_message(self, request: Request) -> wire.Message:
        try:
            message = wire.receive(self._connection)
        except TimeoutError as error:
            raise self._error(request, f"no answer within {_REPLY_TIMEOUT_S:g} s") from error
        except OSError as error:
            raise self._error(request, errno_text(error)) from error
        except wire.WireError as error:
            raise self._error(request, str(error)) from error
        if message is None:
            raise self._error(request, "the back-end closed the connection")
        return message

    def _receive(self, request: Request, size: int) -> bytes:
        message = self._receive_message(request)
        for fd in message.fds:
            os.close(fd)
        if message.request != request or not message.is_reply or len(message.payload) != size:
            cause = f"the answer is request {message.request} with {len(message.payload)} bytes"
            raise self._error(request, cause)
        return message.payload

    def _error(self, request: Request, cause: str) -> VhostPciError:
        return VhostPciError(f"send {request.name} to", self._name, cause)

    def close(self) -> None:
        """Close the connection. Twice is fine."""
        self._connection.close()
