"""What brings a quarantined ring back, and what does not."""

from __future__ import annotations

import pytest

from driver.memory_map import BusAddress
from driver.ring import Ring
from driver.state_area import RingFlag
from pmd.quarantine import Quarantine

RING = Ring(
    index=3,
    size=256,
    flags=RingFlag.STARTED | RingFlag.ENABLED,
    desc=BusAddress(0x1000),
    avail=BusAddress(0x2000),
    used=BusAddress(0x3000),
    base=0,
    call_serial=1,
)


def changed(**fields: int) -> Ring:
    return RING._replace(**fields)  # type: ignore[arg-type] # each its own field


@pytest.mark.parametrize(
    "ring",
    [
        RING,
        changed(call_serial=2),
        changed(flags=RingFlag.STARTED),
        changed(flags=RingFlag.STARTED | RingFlag.KICKABLE | RingFlag.CALLABLE),
    ],
)
def test_broken_accounting_lasts_until_the_ring_is_set_up_anew(ring: Ring) -> None:
    quarantine = Quarantine()
    quarantine.add(RING, 4, lasting=True)
    assert not quarantine.admits(ring, 4)
    assert not quarantine.admits(ring, 6)
    assert quarantine.count == 1


@pytest.mark.parametrize(
    "ring",
    [
        changed(size=512),
        changed(flags=RingFlag(0)),
        changed(flags=RingFlag.STARTED | RingFlag.PACKED),
        changed(desc=BusAddress(0x4000)),
        changed(avail=BusAddress(0x4000)),
        changed(used=BusAddress(0x4000)),
        changed(base=7),
    ],
)
def test_another_set_up_ends_it_for_good(ring: Ring) -> None:
    quarantine = Quarantine()
    quarantine.add(RING, 4, lasting=True)
    assert quarantine.admits(ring, 6)
    assert quarantine.admits(RING, 8)
    assert quarantine.count == 1


def test_lost_memory_lasts_until_the_next_generation() -> None:
    quarantine = Quarantine()
    quarantine.add(RING, 4, lasting=False)
    assert not quarantine.admits(RING, 4)
    assert quarantine.admits(RING, 6)
    assert quarantine.admits(RING, 4)


def test_other_rings_are_not_concerned() -> None:
    quarantine = Quarantine()
    quarantine.add(RING, 4, lasting=True)
    assert quarantine.admits(changed(index=2), 4)


def test_another_device_starts_clean() -> None:
    quarantine = Quarantine()
    quarantine.add(RING, 4, lasting=True)
    quarantine.clear()
    assert quarantine.admits(RING, 4)
    assert quarantine.count == 1
