"""The commit area as the device keeps it (docs/device.md 5.6)."""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING

from tests.device.device_host import RING_COUNT
from tests.device.vm1_memory import MIB, region, state
from tools.device.vm1_state import RingState

if TYPE_CHECKING:
    from tests.device.device_host import DeviceHost
    from tests.device.vm1_memory import Vm1

STATE = 0x1000
PACKED = 1 << 34


def commit_words(host: DeviceHost, ring: int) -> tuple[int, int]:
    """As the device reads them."""
    return host.call(lambda: host.device.commits.words(ring))


def test_commit_area(host: DeviceHost, vm1: Vm1) -> None:
    """5.6: set when a packed ring starts, kept over anything the driver does or suffers."""
    memory = region(vm1.file(MIB), 0, MIB)
    ring = dataclasses.replace(vm1.ring(), base=0x8005_8005)
    running = state(memory, rings=(RingState(), ring), features=PACKED)
    with host.attached() as client:
        offset = client.read32(STATE + 0x48)
        assert offset % 4096 == 0
        assert offset + 8 * RING_COUNT <= client.read32(STATE + 0x34)
        host.publish(running)
        place = STATE + offset + 8
        assert client.read(0, place, 8).payload[16:] == struct.pack("<II", 0x8005, 0x8005)
        assert commit_words(host, 0) == (0, 0)
        client.write(0, place, struct.pack("<II", 0x8007, 0x8009))
        host.publish(dataclasses.replace(running, memory=()))  # a change that stops no ring
        assert commit_words(host, 1) == (0x8007, 0x8009)
    host.wait_detached()
    with host.attached() as client:
        client.ask(13)
        assert commit_words(host, 1) == (0x8007, 0x8009)
    host.publish(state(memory, features=PACKED))
    assert commit_words(host, 1) == (0x8007, 0x8009)
    again = dataclasses.replace(running, rings=(RingState(), dataclasses.replace(ring, base=3)))
    host.publish(again)
    assert commit_words(host, 1) == (3, 3)


def test_commit_area_is_not_for_split_rings(host: DeviceHost, vm1: Vm1) -> None:
    host.publish(state(region(vm1.file(MIB), 0, MIB), rings=(vm1.ring(),)))
    assert commit_words(host, 0) == (0, 0)
