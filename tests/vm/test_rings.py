"""Linux's virtio-net with whatever features QEMU gives it, six network cards at a time.

Debian's kernel has no VIRTIO_F_IN_ORDER, and QEMU offers no UDP segmentation by vhost-user: DPDK's
driver and the embedded VM1 have those (tests/system). RX checksums cannot be switched by a driver
of virtio 1.3, 5.1.6.
"""

from __future__ import annotations

import itertools
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.vm.killed import outlives_its_device
from tests.vm.links import Links
from tools.lab.nic import Nic
from tools.lab.picture import STEP_TIMEOUT_S
from tools.vhost_user_abi import Feature

if TYPE_CHECKING:
    from tests.vm.conftest import Ingredients, Stage
    from tests.vm.links import Link

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

IP_AND_ICMP_BYTES = 28
ORDINARY_MTU = 1500
IPERF_BYTES = "1M"
JUMBO_MTU = 9000
QUEUE_PAIRS = 4
FLOWS = 64  # by whose hash VM1 chooses a pair: none is left out, but for once in 10 million runs
LONG_RING = 1024
ORDINARY_RING = 256  # QEMU's, unless told otherwise


NOTHING = Feature(0)


@dataclass(frozen=True, slots=True)
class Choice:
    """What VM1 may have or not: properties of its card either way, and features that say it."""

    there: dict[str, object]
    away: dict[str, object]
    features: Feature


def switch(features: Feature, *names: str) -> Choice:
    return Choice(dict.fromkeys(names, True), dict.fromkeys(names, False), features)


CHOICES = {
    "packed": switch(Feature.RING_PACKED, "packed"),
    "mergeable": switch(Feature.NET_MRG_RXBUF, "mrg_rxbuf"),
    "event index": switch(Feature.EVENT_IDX, "event_idx"),
    "indirect": switch(Feature.INDIRECT_DESC, "indirect_desc"),
    "host offloads": switch(
        Feature.NET_CSUM
        | Feature.NET_HOST_TSO4
        | Feature.NET_HOST_TSO6
        | Feature.NET_HOST_ECN
        | Feature.NET_HOST_UFO,
        *("csum", "host_tso4", "host_tso6", "host_ecn", "host_ufo"),
    ),
    "guest offloads": switch(
        Feature.NET_GUEST_CSUM
        | Feature.NET_GUEST_TSO4
        | Feature.NET_GUEST_TSO6
        | Feature.NET_GUEST_ECN
        | Feature.NET_GUEST_UFO,
        *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"),
    ),
    "MTU": Choice({"host_mtu": JUMBO_MTU}, {}, Feature.NET_MTU),
    "queue pairs": Choice({}, {}, Feature.NET_MQ),
    "long rings": Choice({"rx_queue_size": LONG_RING, "tx_queue_size": LONG_RING}, {}, NOTHING),
}
CARDS = 6  # as many as a machine has root ports
# Each feature is away on three of the five cards after the first, and no two on the same three: of
# any two of up to ten both, either and neither are seen (D. J. Kleitman and J. Spencer, "Families
# of k-independent sets", 1973).
AWAY = dict(zip(CHOICES, itertools.combinations(range(1, CARDS), 3), strict=False))


def wanted(card: int) -> frozenset[str]:
    """What VM1 has on that card; on the first it has everything."""
    return frozenset(name for name, away in AWAY.items() if card not in away)


def nic(has: frozenset[str]) -> Nic:
    properties: dict[str, object] = {}
    for name, choice in CHOICES.items():
        properties |= choice.there if name in has else choice.away
    return Nic(properties, QUEUE_PAIRS if "queue pairs" in has else 1)


def test_any_two_meet_in_every_way() -> None:
    for two in itertools.combinations(CHOICES, 2):
        met = {frozenset(two) & wanted(card) for card in range(CARDS)}
        assert len(met) == 4, two


@pytest.fixture(scope="module")
def links(ingredients: Ingredients, stage: Stage) -> Links:
    return Links(ingredients, stage)


def see_negotiated(link: Link, has: frozenset[str]) -> None:
    """What is wanted is what VM1 has, by its own word, and what the device has seen."""
    bits = Feature(link.negotiated())
    features = set(link.device.state()["vhost_user"]["features"])
    for name, choice in CHOICES.items():
        expected = choice.features if name in has else NOTHING
        assert bits & choice.features == expected, name
        names = {feature.name for feature in choice.features}
        assert features & names == (names if name in has else set()), name
    said = link.ethtool("-k")
    for setting, name in (
        ("tx-checksumming", "host offloads"),
        ("tcp-segmentation-offload", "host offloads"),
        ("rx-gro-hw", "guest offloads"),
    ):
        assert f"{setting}: {'on' if name in has else 'off'}" in said
    pairs = QUEUE_PAIRS if "queue pairs" in has else 1
    assert link.ethtool("-l").split("Combined:")[1].split()[0] == str(pairs)
    size = LONG_RING if "long rings" in has else ORDINARY_RING
    rings = [ring for ring in link.device.state()["function"]["rings"] if ring["started"]]
    assert [ring["size"] for ring in rings] == 2 * pairs * [size]


def see_traffic(link: Link, has: frozenset[str]) -> None:
    link.ping(18, 700, ORDINARY_MTU - IP_AND_ICMP_BYTES)
    there, back = link.transfer()
    assert there.sent_longer_than(ORDINARY_MTU) == ("host offloads" in has)
    assert back.received_longer_than(ORDINARY_MTU) == ("guest offloads" in has)
    # Without these VM1's buffers have room for 1518 bytes, whatever MTU is set.
    if has & {"mergeable", "guest offloads", "MTU"}:
        link.set_mtu(JUMBO_MTU)
        link.ping(JUMBO_MTU - IP_AND_ICMP_BYTES)


@pytest.mark.usefixtures("cleared")
def test_every_pair_of_features(links: Links) -> None:
    for card in range(CARDS):
        has = wanted(card)
        link = links.add(nic(has))
        see_negotiated(link, has)
        see_traffic(link, has)
    links.remove_all()


# Under traffic; what one takes away a later one gives back. Scatter-gather goes with tx.
CHANGES = (
    *(("-L", "combined", str(pairs)) for pairs in (1, QUEUE_PAIRS, 2)),
    *(
        ("-K", setting, to)
        for setting in ("tso", "gso", "tx", "gro", "rx-gro-hw")
        for to in ("off", "on")
    ),
    ("-L", "combined", str(QUEUE_PAIRS)),
)
PLACES_OF_MANY_FLOWS = range(2)
MOVED_BYTES = 100_000
CHANGES_TIMEOUT_S = 2 * STEP_TIMEOUT_S
# What virtio_net and virtio_ring say of a device that does wrong, and the kernel of a queue that
# stands still.
COMPLAINTS = ("is not a head", "out of range", "NETDEV WATCHDOG", "TX timeout", "virtio_net")


@pytest.mark.usefixtures("cleared")
def test_ethtool_under_traffic(links: Links) -> None:
    everything = frozenset(CHOICES)
    sets = everything, everything - {"packed"}
    assert len(sets) == len(PLACES_OF_MANY_FLOWS)
    both = [links.add(nic(has)) for has in sets]
    for link in both:
        assert link.iperf("--bytes", IPERF_BYTES).sent_longer_than(ORDINARY_MTU)
        assert link.iperf("--bytes", IPERF_BYTES, "--reverse").received_longer_than(ORDINARY_MTU)
        link.set_mtu(JUMBO_MTU)
    for job in [link.start_flows(FLOWS) for link in both]:
        assert job.wait(STEP_TIMEOUT_S) == 0, job.text
    clients = [link.start_iperf("--bidir", "--time", "3600") for link in both]
    for job in [link.start_changes(CHANGES, MOVED_BYTES) for link in both]:
        assert job.wait(CHANGES_TIMEOUT_S) == 0, job.text
    for client in clients:
        assert client.status is None, client.text
        client.signal(signal.SIGINT)
        client.wait(STEP_TIMEOUT_S)
    for link, has in zip(both, sets, strict=True):
        see_negotiated(link, has)
        link.ping(700)
        link.transfer()
    said = links.site.vm1.agent.run("dmesg")
    assert not [line for line in said.splitlines() if any(each in line for each in COMPLAINTS)]
    links.remove_all(unsent=QUEUE_PAIRS * LONG_RING)


def one_whose_server_was_killed(links: Links) -> Link | None:
    """None where VM2 went with it."""
    link = links.add(nic(frozenset(CHOICES)))
    link.transfer()
    links.count(link)
    outlives = outlives_its_device(link.device, links.pmd, link.vm2, link.unplug_function)
    return link if outlives else None


@pytest.mark.usefixtures("cleared")
def test_packed_rings_start_anew_after_the_device_server_was_killed(links: Links) -> None:
    """docs/device.md 5.6: QEMU keeps no inflight region, so its VM1's driver begins again."""
    link = one_whose_server_was_killed(links)
    if link is None:
        links.begin()
        link = one_whose_server_was_killed(links)
    assert link is not None
    link.start_device()
    link.wait_until_connected()
    link.rebind()
    links.serve(link)
    link.transfer()
    links.remove_all()


IDENTITY = """\
cd $(readlink -f /sys/class/net/{0}/device/..)
device=$(basename $PWD)
echo $device > driver/unbind
echo identity > iommu_group/type
echo $device > /sys/bus/pci/drivers_probe
"""
STRICT_BYTES = 32 << 10


@pytest.mark.usefixtures("cleared")
def test_vm1_behind_an_iommu(links: Links) -> None:
    """Strict, as Linux has it where QEMU's IOMMU caches; then passed through."""
    link = links.add(Nic({"iommu_platform": True}))
    assert Feature(link.negotiated()) & Feature.ACCESS_PLATFORM
    assert "ACCESS_PLATFORM" in link.device.state()["vhost_user"]["features"]
    link.ping(18, ORDINARY_MTU - IP_AND_ICMP_BYTES)
    link.transfer(STRICT_BYTES)
    # Each frame's memory is mapped for it, and taken back.
    strict = link.device.state()["function"]["generation"]
    assert strict > STRICT_BYTES // ORDINARY_MTU
    links.count(link)
    link.vm1.agent.shell(IDENTITY.format(link.interface), timeout_s=STEP_TIMEOUT_S)
    link.bring_up()
    link.bring_tap_up()
    link.ping(18)
    link.transfer(8 * STRICT_BYTES)
    links.remove_all()


@pytest.mark.usefixtures("cleared")
def test_pmd_counted_what_vm1_counted(links: Links) -> None:
    """The last one: of all the traffic above nothing was dropped, made up or counted wrong."""
    for place, channel in enumerate(links.end_pmd()):
        assert channel["vf"] == f"tap:vp{place}"
        assert channel["quarantines"] == 0
        there, back = channel["vm1_to_vf"], channel["vf_to_vm1"]
        counted = links.counters[place]
        # What was in a ring as VM1 switched it off is returned unsent, and VM1 counts it as sent.
        unsent = there["drops"].pop("disabled", 0)
        assert there["drops"] == back["drops"] == {}
        assert there["packets"] + unsent == counted.sent
        assert unsent or there["bytes"] == counted.sent_bytes
        assert (back["packets"], back["bytes"]) == (counted.received, counted.received_bytes)
        # VF and VM1 keep a flow on the pair that it came from: there what is answered comes back.
        carried = [
            pair["vm1_to_vf"]["packets"] > 0 < pair["vf_to_vm1"]["packets"]
            for pair in channel["queue_pairs"]
        ]
        if place in PLACES_OF_MANY_FLOWS:
            assert carried == QUEUE_PAIRS * [True], channel["queue_pairs"]
