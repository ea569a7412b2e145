"""What the kernel is told of a ring: `RingConfig` from the device's entry and VM1's features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.ring import Feature, header_bytes
from pmd.kernel import RingConfig, RingFlags

if TYPE_CHECKING:
    from driver.device_state import DirtyMap
    from driver.ring import Ring
    from guest.function import Doorbell

_ALIKE = (
    (Feature.INDIRECT_DESC, RingFlags.INDIRECT),
    (Feature.EVENT_IDX, RingFlags.EVENT_IDX),
    (Feature.NET_MRG_RXBUF, RingFlags.MERGEABLE),
    (Feature.IN_ORDER, RingFlags.IN_ORDER),
    (Feature.ACCESS_PLATFORM, RingFlags.TRANSLATED),
)
# What VM1 may ask for of what it sends, and be told of what it receives (virtio 1.3, 5.1.3).
_TRANSMIT = (
    (Feature.NET_CSUM, RingFlags.CSUM),
    # Of legacy drivers, which had one bit for all kinds that there were (5.1.3.2).
    (Feature.NET_GSO, RingFlags.TSO4 | RingFlags.TSO6 | RingFlags.ECN | RingFlags.UFO),
    (Feature.NET_HOST_TSO4, RingFlags.TSO4),
    (Feature.NET_HOST_TSO6, RingFlags.TSO6),
    (Feature.NET_HOST_ECN, RingFlags.ECN),
    (Feature.NET_HOST_USO, RingFlags.USO),
    (Feature.NET_HOST_UFO, RingFlags.UFO),
)
_RECEIVE = (
    (Feature.NET_GUEST_CSUM, RingFlags.CSUM),
    (Feature.NET_GUEST_TSO4, RingFlags.TSO4),
    (Feature.NET_GUEST_TSO6, RingFlags.TSO6),
    (Feature.NET_GUEST_ECN, RingFlags.ECN),
    # One flag for two features: it is told of neither IPv4's nor IPv6's unless of both.
    (Feature.NET_GUEST_USO4 | Feature.NET_GUEST_USO6, RingFlags.USO),
    (Feature.NET_GUEST_UFO, RingFlags.UFO),
)


def ring_config(
    ring: Ring,
    features: int,
    doorbell: Doorbell | None,
    commit: int = 0,
    *,
    combining: bool = False,
    kick_fd: int = -1,
    mtu: int = 0,
    dirty: DirtyMap | None = None,
) -> RingConfig:
    """The kernel's configuration of a ring that `Ring.check` let pass.

    Args:
        ring: The device's entry.
        features: What VM1's driver accepted.
        doorbell: How to call VM1; None: it gave no call eventfd.
        commit: Address of its commit words; 0 for a split ring.
        combining: The windows are mapped write-combining.
        kick_fd: Readable when VM1 kicked; -1: nothing tells.
        mtu: VM1's; 0: it was told none.
        dirty: Where what is written to VM1's buffers is to be marked; None: nobody asks.
    """
    flags = RingFlags(0)
    for needed, flag in (*_ALIKE, *(_TRANSMIT if ring.transmits else _RECEIVE)):
        if features & needed == needed:
            flags |= flag
    if ring.packed:
        flags |= RingFlags.PACKED
    if combining:
        flags |= RingFlags.COMBINING
    if ring.enabled:
        flags |= RingFlags.ENABLED
    call_fd, call_offset = -1, -1
    if doorbell is not None:
        call_fd = doorbell.fd
        call_offset = -1 if doorbell.offset is None else doorbell.offset
    return RingConfig(
        ring.desc,
        ring.avail,
        ring.used,
        ring.size,
        flags,
        header_bytes(features),
        call_fd,
        call_offset,
        kick_fd=kick_fd,
        commit=commit,
        mtu=mtu if not ring.transmits and features & Feature.NET_MTU else 0,
        dirty=None if ring.transmits else dirty,
    )
