"""Feature bits of virtio network devices (5.1.3, 6), and which of them this driver accepts."""

from __future__ import annotations

import enum


class Feature(enum.IntFlag):
    """What this driver knows; HOST_*: what the device does with frames that are sent to it."""

    CSUM = 1 << 0
    MTU = 1 << 3
    MAC = 1 << 5
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    RING_RESET = 1 << 40
    HOST_USO = 1 << 56


# 5.1.3.1: what each is worth nothing without.
_NEEDS = {
    Feature.HOST_TSO4: Feature.CSUM,
    Feature.HOST_TSO6: Feature.CSUM,
    Feature.HOST_ECN: Feature.HOST_TSO4 | Feature.HOST_TSO6,  # either of them
    Feature.HOST_USO: Feature.CSUM,
    Feature.HOST_UFO: Feature.CSUM,
    Feature.CTRL_RX: Feature.CTRL_VQ,
    Feature.MQ: Feature.CTRL_VQ,
    Feature.CTRL_MAC_ADDR: Feature.CTRL_VQ,
}
_ALL = Feature(sum(Feature))


def accept(offered: int) -> Feature:
    """What to accept of a device's offer: all that is known here, and consistent.

    An order of use that is no less than the ring's is worth having; thresholds of interrupts are
    not, since a queue is polled but while its lcore sleeps.
    """
    accepted = Feature(offered & _ALL)
    for feature, needs in _NEEDS.items():
        if not accepted & needs:
            accepted &= ~feature
    return accepted
