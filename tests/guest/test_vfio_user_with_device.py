"""The vfio-user client and the device, each the other's real other side."""

from __future__ import annotations

import dataclasses
import os
import select
from typing import TYPE_CHECKING

import pytest

from driver.state_area import DEVICE_ID, FIRST_EXTENSION_WINDOW, MAGIC, VENDOR_ID, Register
from guest.errors import DeviceGoneError, VhostPciError
from guest.function import Area, Identity, Irq, Region
from guest.vfio_user import VfioUserFunction
from tests.device.device_host import DeviceHost, wait_until
from tests.device.vm1_memory import MIB, region, state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def host(tmp_path: Path) -> Iterator[DeviceHost]:
    with DeviceHost(tmp_path / "s") as host:
        yield host


@pytest.fixture
def function(host: DeviceHost) -> Iterator[VfioUserFunction]:
    with VfioUserFunction(str(host.path), 30) as function:
        yield function


def test_one_client_at_a_time(host: DeviceHost, function: VfioUserFunction) -> None:
    assert function.region_count() > FIRST_EXTENSION_WINDOW
    with pytest.raises(VhostPciError, match="in use by another process"):
        VfioUserFunction(str(host.path), 30)
    function.close()
    host.wait_detached()
    VfioUserFunction(str(host.path), 30).close()


def test_identity_and_registers(function: VfioUserFunction) -> None:
    assert function.identity() == Identity(VENDOR_ID, DEVICE_ID, 0x020000, 1, VENDOR_ID, DEVICE_ID)
    assert function.read(0, Register.MAGIC, 4) == MAGIC.to_bytes(4, "little")
    assert len(function.read(Region.CONFIG, 0, 4096)) == 4096
    with pytest.raises(VhostPciError, match="the server refuses"):
        function.read(Region.CONFIG, 4095, 4)
    state_offset = int.from_bytes(function.read(0, Register.STATE_OFFSET, 4), "little")
    state_size = int.from_bytes(function.read(0, Register.STATE_SIZE, 4), "little")
    area = Area(state_offset, state_size)
    assert function.region(0).areas == (area,)
    with function.map_area(0, area, writable=True) as mapping:
        assert int(mapping.array("<u4", 0, 1)[0]) == MAGIC


def test_windows_come_and_go(host: DeviceHost, function: VfioUserFunction) -> None:
    assert function.region(2).size == 0
    file = host.vm1.file(8 * MIB)
    os.pwrite(file.fd, b"VM1 was here", 2 * MIB)
    host.publish(state(region(file, 0, MIB), region(file, 4 * MIB, 2 * MIB, 2 * MIB)))
    window = function.region(2)
    assert [area.size for area in window.areas] == [MIB, 2 * MIB]
    with function.map_area(2, window.areas[1], writable=True) as mapping:
        assert bytes(mapping.array("u1", 0, 12)) == b"VM1 was here"
        mapping.array("u1", 0, 3)[:] = list(b"VM2")
    assert os.pread(file.fd, 12, 2 * MIB) == b"VM2 was here"
    host.publish(state())
    assert function.region(2).areas == ()
    with pytest.raises(VhostPciError, match="cannot be mapped"):
        function.map_area(2, window.areas[1], writable=True)


def test_doorbells_are_vm1s_own(host: DeviceHost, function: VfioUserFunction) -> None:
    with pytest.raises(VhostPciError, match="no eventfd for 0x800"):
        function.doorbells(0, [0x800])
    file = host.vm1.file(MIB)
    ring = host.vm1.ring()
    silent = dataclasses.replace(host.vm1.ring(), call_fd=-1)
    host.publish(state(region(file, 0, MIB), rings=(ring, silent)))
    doorbell = function.doorbells(0, [0x800])[0x800]
    os.eventfd_write(doorbell.fd, 1)
    assert os.eventfd_read(ring.call_fd) == 1
    function.write(0, 0x800, bytes(4))
    assert select.select([ring.call_fd], [], [], 30)[0]
    with pytest.raises(VhostPciError, match="no eventfd for 0x804"):
        function.doorbells(0, [0x804])


def test_events_are_vm1s_own(host: DeviceHost, function: VfioUserFunction) -> None:
    """docs/device.md 4: VM1's kick reaches the client with no process between, nothing armed."""
    file = host.vm1.file(MIB)
    ring, other = host.vm1.ring(), host.vm1.ring()
    polled = dataclasses.replace(host.vm1.ring(), kick_fd=-1)
    host.publish(state(region(file, 0, MIB), rings=(ring, polled, other)))
    events = function.events(0, [0x400, 0x404, 0x408])
    assert events.keys() == {0x400, 0x408}
    assert function.doorbells(0, [0x800]).keys() == {0x800}
    os.eventfd_write(ring.kick_fd, 3)
    assert select.select(list(events.values()), [], [], 30)[0] == [events[0x400]]
    assert os.eventfd_read(events[0x400]) == 3
    assert not select.select([ring.kick_fd], [], [], 0)[0]  # one counter, and it was taken
    assert function.events(0, [0x404]) == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(events[0x400])


def test_events_are_for_those_who_want_them(host: DeviceHost) -> None:
    ring = host.vm1.ring()
    host.publish(state(region(host.vm1.file(MIB), 0, MIB), rings=(ring,)))
    with host.attached() as client:
        assert host.device.eventfds() == [(0x800, ring.call_fd)]
        client.close()
    host.wait_detached()
    with VfioUserFunction(str(host.path), 30):
        assert host.device.eventfds() == [(0x800, ring.call_fd), (0x400, ring.kick_fd)]
    host.wait_detached()
    host.attached(dynamic=False).close()


def test_interrupts(host: DeviceHost, function: VfioUserFunction) -> None:
    assert [function.irq_count(index) for index in Irq] == [0, 8, 0, 1, 0]
    eventfds = [host.vm1.eventfd() for _ in range(8)]
    function.set_irqs(Irq.MSI, eventfds)
    host.publish(state(region(host.vm1.file(MIB), 0, MIB)))  # vector 0: the generation changed
    assert select.select(eventfds, [], [], 30)[0] == [eventfds[0]]
    function.set_irqs(Irq.MSI, [])
    function.reset()
    function.dma_map(0x7F0000000000, 4096, 0x10000, writable=True)
    function.dma_unmap(0x10000, 4096)


def test_the_device_goes_away(tmp_path: Path) -> None:
    with DeviceHost(tmp_path / "s") as host:
        function = VfioUserFunction(str(host.path), 30)
        assert not select.select([function], [], [], 0)[0]
        wait_until(lambda: host.describe()["client"] is not None)
    with function:
        assert select.select([function], [], [], 30)[0] == [function]
        with pytest.raises(DeviceGoneError, match="the server closed the connection"):
            function.region(2)
