"""What the kernel is told of a ring: flags from features, by the ring's direction."""

from __future__ import annotations

from driver.memory_map import BusAddress
from driver.ring import Feature, Ring
from driver.state_area import RingFlag
from guest.function import Doorbell
from pmd.kernel import RingFlags
from pmd.ring_config import ring_config

PARTS = BusAddress(0x1000), BusAddress(0x2000), BusAddress(0x3000)
TRANSMIT = Ring(1, 256, RingFlag.STARTED | RingFlag.ENABLED, *PARTS, 0, 0)
RECEIVE = TRANSMIT._replace(index=2)
EVERYTHING = sum(Feature)


def test_a_split_ring_without_features() -> None:
    config = ring_config(TRANSMIT, 0, None, 0)
    assert (config.desc, config.avail, config.used, config.size) == (0x1000, 0x2000, 0x3000, 256)
    assert config.flags == RingFlags.ENABLED
    assert (config.header_bytes, config.call_fd, config.call_offset) == (10, -1, -1)


def test_a_packed_ring_with_all_of_them() -> None:
    ring = TRANSMIT._replace(flags=RingFlag.STARTED | RingFlag.PACKED)
    config = ring_config(ring, EVERYTHING, Doorbell(7, 0x804), 4096, combining=True)
    assert config.flags == sum(RingFlags) - RingFlags.ENABLED
    assert (config.header_bytes, config.call_fd, config.call_offset) == (12, 7, 0x804)
    assert config.commit == 4096


def test_the_mtu_is_of_what_vm1_receives_and_was_accepted() -> None:
    for ring, features, mtu, found in (
        (RECEIVE, Feature.NET_MTU, 1500, 1500),
        (RECEIVE, Feature.NET_MTU, 0, 0),
        (RECEIVE, 0, 1500, 0),
        (TRANSMIT, Feature.NET_MTU, 1500, 0),
    ):
        assert ring_config(ring, features, None, mtu=mtu).mtu == found


def test_offloads_are_those_of_the_direction() -> None:
    sent = {
        Feature.NET_CSUM: RingFlags.CSUM,
        Feature.NET_GSO: RingFlags.TSO4 | RingFlags.TSO6 | RingFlags.ECN | RingFlags.UFO,
        Feature.NET_HOST_TSO4: RingFlags.TSO4,
        Feature.NET_HOST_TSO6: RingFlags.TSO6,
        Feature.NET_HOST_ECN: RingFlags.ECN,
        Feature.NET_HOST_USO: RingFlags.USO,
        Feature.NET_HOST_UFO: RingFlags.UFO,
    }
    told = {
        Feature.NET_GUEST_CSUM: RingFlags.CSUM,
        Feature.NET_GUEST_TSO4: RingFlags.TSO4,
        Feature.NET_GUEST_TSO6: RingFlags.TSO6,
        Feature.NET_GUEST_ECN: RingFlags.ECN,
        Feature.NET_GUEST_USO4: RingFlags(0),
        Feature.NET_GUEST_USO6: RingFlags(0),
        Feature.NET_GUEST_USO4 | Feature.NET_GUEST_USO6: RingFlags.USO,
        Feature.NET_GUEST_UFO: RingFlags.UFO,
    }
    for ring, own, other in ((TRANSMIT, sent, told), (RECEIVE, told, sent)):
        for features, flag in own.items():
            assert ring_config(ring, features, None, 0).flags == RingFlags.ENABLED | flag
        for features in other:
            assert ring_config(ring, features, None, 0).flags == RingFlags.ENABLED
