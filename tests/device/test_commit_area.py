"""The commit area as the function shows it in BAR 4 (docs/device.md 5.6)."""

from __future__ import annotations

import dataclasses
import os
import struct
from typing import TYPE_CHECKING

from driver.state_area import Status
from tests.device.vm1_memory import MIB, region, state
from tools.device.commit_area import CommitArea
from tools.device.vm1_state import RingState

if TYPE_CHECKING:
    from tests.device.device_host import DeviceHost
    from tests.device.vfio_user_raw import RawClient
    from tests.device.vm1_memory import Vm1

PACKED = 1 << 34
STATUS = 0x1000 + 0x0C


def words(client: RawClient, ring: int) -> tuple[int, ...]:
    return struct.unpack("<II", client.read(4, 8 * ring, 8).payload[16:])


def test_words_of_a_ring(host: DeviceHost, vm1: Vm1) -> None:
    """Set when a packed ring starts, kept over anything the driver does or suffers."""
    memory = region(vm1.file(MIB), 0, MIB)
    ring = dataclasses.replace(vm1.ring(), base=0x8005_8005)
    running = state(memory, rings=(RingState(), ring), features=PACKED)
    with host.attached() as client:
        assert client.read32(0x1000 + 0x48) == 8192
        host.publish(running)
        assert words(client, 0) == (0, 0)
        assert words(client, 1) == (0x8005, 0x8005)
        client.write(4, 8, struct.pack("<II", 0x8007, 0x8009))
        host.publish(dataclasses.replace(running, memory=()))  # a change that stops no ring
        assert host.call(lambda: host.device.commits.words(1)) == (0x8007, 0x8009)
    host.wait_detached()
    with host.attached() as client:
        client.ask(13)
        assert words(client, 1) == (0x8007, 0x8009)
        host.publish(state(memory, features=PACKED))
        assert words(client, 1) == (0x8007, 0x8009)
        stopped = dataclasses.replace(ring, base=3)
        host.publish(dataclasses.replace(running, rings=(RingState(), stopped)))
        assert words(client, 1) == (3, 3)


def test_split_rings_have_none(host: DeviceHost, vm1: Vm1) -> None:
    with host.attached() as client:
        ring = dataclasses.replace(vm1.ring(), base=7)
        host.publish(state(region(vm1.file(MIB), 0, MIB), rings=(ring,)))
        assert words(client, 0) == (0, 0)


def test_region_is_one_mappable_area(host: DeviceHost) -> None:
    with host.attached() as client:
        answer = client.region_info(4, 64)
        assert struct.unpack_from("<IIIIQQ", answer.payload)[4:] == (8192, 0)
        assert struct.unpack("<QQ", answer.payload[-16:]) == (0, 8192)
        (fd,) = answer.fds
        os.pwrite(fd, struct.pack("<II", 1, 2), 8)
        os.close(fd)
        assert words(client, 1) == (1, 2)


def test_another_file_needs_a_static_client_plugged_anew(host: DeviceHost, vm1: Vm1) -> None:
    """The front-end brought that of an earlier device; QEMU has mapped this one's."""
    memory, ring = region(vm1.file(MIB), 0, MIB), vm1.ring()
    packed = state(memory, rings=(ring,), features=PACKED)
    other = CommitArea()
    host.publish(packed)
    with host.attached(dynamic=False) as client:
        for fd in (*client.region_info(2, 64).fds, *client.region_info(4, 64).fds):
            os.close(fd)
        former = host.call(lambda: host.device.commits.adopt(other.fd))
        vm1.fds.append(former)
        assert host.device.commits.serial == 1
        host.publish(dataclasses.replace(packed, commit_serial=1))
        assert client.read32(STATUS) & (Status.REPLUG | Status.RUNNING) == Status.REPLUG
        host.publish(state(memory, rings=(ring,)))
        assert client.read32(STATUS) & (Status.REPLUG | Status.RUNNING) == Status.RUNNING
        host.publish(packed)
    host.wait_detached()
    with host.attached(dynamic=False) as client:
        assert client.read32(STATUS) & (Status.REPLUG | Status.RUNNING) == Status.RUNNING
