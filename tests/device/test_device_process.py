"""The whole device as a process, between a vhost-user front-end and our vfio-user client."""

from __future__ import annotations

import contextlib
import os
import select
import struct
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from driver.state_area import DRIVER, HEADER, MEMORY, RING, Register
from driver.vhost_pci import VhostPci
from guest.errors import VhostPciError
from guest.function import Area, Irq, Region
from guest.vfio_user import VfioUserFunction
from tests.device.device_host import TIMEOUT_S, wait_until
from tests.device.device_process import DeviceProcess
from tests.device.vhost_user_peer import BUS, MIB, USER, FrontEnd, memory
from tests.device.vhost_user_peer import Region as Vm1Region

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from driver.record import Record
    from guest.mapping import Mapping

SIZE = 4 * MIB
STATE = 0x1000


class Driver:
    """A small driver on our client: reads the state by trapped access, acknowledges by hand."""

    def __init__(self, function: VfioUserFunction) -> None:
        self.function = function

    def read32(self, offset: int) -> int:
        return int(struct.unpack("<I", self.function.read(Region.BAR0, offset, 4))[0])

    def write32(self, offset: int, value: int) -> None:
        self.function.write(Region.BAR0, offset, struct.pack("<I", value))

    def header(self) -> np.void:
        data = self.function.read(Region.BAR0, STATE, HEADER.itemsize)
        found: np.void = np.frombuffer(data, HEADER)[0]
        return found

    def status(self) -> int:
        return int(self.header()["status"])

    def rows(self, name: str, record: Record) -> list[tuple[int, ...]]:
        header = self.header()
        size = int(header[f"{name}_count"]) * record.itemsize
        if not size:
            return []
        data = self.function.read(Region.BAR0, STATE + int(header[f"{name}_offset"]), size)
        return cast("list[tuple[int, ...]]", np.frombuffer(data, record).tolist())

    def window(self, index: int = Region.BAR2) -> Mapping:
        (area,) = self.function.region(index).areas
        return self.function.map_area(index, area, writable=True)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DeviceProcess]:
    with DeviceProcess(tmp_path, "--queue-pairs", "2", "-v") as device:
        yield device


@pytest.fixture
def driver(device: DeviceProcess) -> Iterator[Driver]:
    with VfioUserFunction(str(device.vfio_user)) as function:
        yield Driver(function)


@contextlib.contextmanager
def started_vm1(device: DeviceProcess, fd: int) -> Iterator[FrontEnd]:
    """VM1 with its memory at BUS and queue pair 0 running."""
    with FrontEnd(device.vhost_user) as vm1:
        vm1.negotiate()
        assert vm1.set_memory([Vm1Region(BUS, SIZE, USER)], [fd])
        for ring in (0, 1):
            vm1.start_ring(ring, user=USER + 0x10000 * ring)
            vm1.enable_ring(ring)
        vm1.sync()
        yield vm1


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], TIMEOUT_S)[0])


def test_identity_and_nothing_there(driver: Driver) -> None:
    identity = driver.function.identity()
    assert (identity.vendor, identity.device, identity.class_code) == (0x1AF4, 0x10F0, 0x020000)
    assert (identity.revision, identity.subsystem_device) == (1, 0x10F0)
    assert driver.status() == 0
    assert driver.function.region(Region.BAR2).size == 0
    assert driver.function.irq_count(Irq.MSI) == 8
    assert driver.function.irq_count(Irq.MSIX) == 0
    assert driver.read32(Register.QUEUE_COUNT) == 4


def test_vm1s_memory_through_the_window(device: DeviceProcess, driver: Driver) -> None:
    with memory(SIZE) as fd, started_vm1(device, fd) as vm1:
        wait_until(lambda: driver.status() == 0b011)
        assert driver.rows("memory", MEMORY) == [(BUS, SIZE, 0, 2, 3)]
        rows = driver.rows("ring", RING)
        assert [row[:5] for row in rows[:2]] == [
            (256, 0b11011, BUS, BUS + 0x2000, BUS + 0x3000),
            (256, 0b11011, BUS + 0x10000, BUS + 0x12000, BUS + 0x13000),
        ]
        assert [row[0] for row in rows[2:]] == [0, 0]
        os.pwrite(fd, b"from VM1", 0x5000)
        with driver.window() as window:
            view = window.array(np.uint8)
            assert bytes(view[0x5000:0x5008]) == b"from VM1"
            view[0x6000:0x6008] = np.frombuffer(b"from VM2", np.uint8)
            del view
        assert os.pread(fd, 8, 0x6000) == b"from VM2"
        assert driver.function.read(Region.BAR2, 0x5000, 8) == b"from VM1"
        shown = device.state()
        assert shown["function"]["windows"] == [
            {"region": 2, "size": SIZE, "writable": True, "granted": SIZE}
        ]
        assert [ring["ring"] for ring in shown["function"]["rings"]] == [0, 1]
        assert shown["vhost_user"]["connected"] is True
        assert vm1.stop_ring(1) == 0


def test_calls_and_kicks(device: DeviceProcess, driver: Driver) -> None:
    """Doorbell by eventfd and by register; VM1's kick by MSI; the ring's error eventfd."""
    with memory(SIZE) as fd, started_vm1(device, fd) as vm1:
        kick0, call0, kick1, call1 = vm1.eventfds
        wait_until(lambda: driver.status() == 0b011)
        offsets = [Register.DOORBELL, Register.DOORBELL + 4]
        doorbells = driver.function.doorbells(Region.BAR0, offsets)
        assert [doorbells[offset].offset for offset in offsets] == [None, None]
        os.eventfd_write(doorbells[Register.DOORBELL + 4].fd, 1)
        assert os.eventfd_read(call1) == 1
        driver.write32(Register.DOORBELL, 1)
        assert os.eventfd_read(call0) == 1
        assert vm1.acknowledged(14, struct.pack("<Q", 1), [vm1.eventfd()])  # SET_VRING_ERR
        driver.write32(Register.QUEUE_ERROR, 1 << 16 | 1)
        assert readable(vm1.eventfds[-1])
        with contextlib.ExitStack() as stack:
            msi = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(8)]
            for vector in msi:
                stack.callback(os.close, vector)
            driver.function.set_irqs(Irq.MSI, msi)
            driver.write32(Register.KICK_ARM, 1 << 16 | 1)
            os.eventfd_write(kick0, 1)
            os.eventfd_write(kick1, 1)
            assert readable(msi[2])
            assert not select.select([msi[1]], [], [], 0)[0]
            os.eventfd_read(msi[2])
            vm1.enable_ring(0, 0)
            assert readable(msi[0])  # a new generation
            driver.function.set_irqs(Irq.MSI, [])


def test_a_driver_that_sleeps(device: DeviceProcess, driver: Driver) -> None:
    """Natively VM1's kicks come from VM1 itself; a new generation comes as an interrupt."""
    with memory(SIZE) as fd, started_vm1(device, fd) as vm1, VhostPci(driver.function) as pmd:
        wait_until(lambda: driver.status() == 0b011)
        kicks = pmd.kick_fds([0, 1])
        assert not select.select([*kicks.values(), pmd.change_fd], [], [], 0)[0]
        os.eventfd_write(vm1.eventfds[2], 1)  # ring 1's
        assert select.select([*kicks.values(), pmd.change_fd], [], [], TIMEOUT_S)[0] == [kicks[1]]
        vm1.enable_ring(0, 0)
        assert readable(pmd.change_fd)
        shown = device.state()["function"]
        assert (shown["armed_kicks"], shown["kick_interrupts"]) == ([], 0)


def test_windows_change_under_a_driver(device: DeviceProcess, driver: Driver) -> None:
    """VM1 is answered only after the driver acknowledged the generation that takes memory away."""
    with memory(SIZE) as fd, memory(2 * MIB) as other, started_vm1(device, fd) as vm1:
        wait_until(lambda: driver.status() == 0b011)
        driver.write32(Register.DRIVER_STATUS, 1)
        before = int(driver.header()["generation"])
        os.pwrite(other, b"the other file", 0)
        table = struct.pack("<II", 2, 0) + Vm1Region(BUS, SIZE, USER).pack()
        table += Vm1Region(BUS + (1 << 32), 2 * MIB, USER + (1 << 32)).pack()
        vm1.send(5, table, [fd, other], 0x8)  # SET_MEM_TABLE, to be acknowledged
        wait_until(lambda: int(driver.header()["generation"]) == before + 2)
        assert not select.select([vm1.socket], [], [], 0.1)[0]
        driver.write32(Register.ACK, before + 2)
        assert vm1.reply(5) == bytes(8)
        assert [row[3] for row in driver.rows("memory", MEMORY)] == [2, 9]
        with driver.window(9) as window:
            assert bytes(window.array(np.uint8)[:14]) == b"the other file"
        driver.write32(Register.DRIVER_STATUS, 0)
        assert vm1.set_memory([Vm1Region(BUS, SIZE, USER)], [fd])
        assert driver.function.region(9).size == 0
        with pytest.raises(VhostPciError, match="cannot be mapped"):
            driver.function.map_area(9, Area(0, 4096), writable=True)


def test_vm1_goes_and_comes(device: DeviceProcess, driver: Driver) -> None:
    with memory(SIZE) as fd:
        for _ in range(3):
            with started_vm1(device, fd):
                wait_until(lambda: driver.status() == 0b011)
            wait_until(lambda: driver.status() == 0)
            assert driver.rows("memory", MEMORY) == []
            assert driver.function.region(Region.BAR2).size == 0


def test_dead_driver_does_not_stop_vm1(device: DeviceProcess, driver: Driver) -> None:
    with memory(SIZE) as fd, started_vm1(device, fd) as vm1:
        wait_until(lambda: driver.status() == 0b011)
        driver.write32(Register.DRIVER_STATUS, 1)
        assert vm1.stop_ring(0) == 0
        assert select.select([driver.function.fileno()], [], [], TIMEOUT_S)[0]
        with VfioUserFunction(str(device.vfio_user)) as successor:
            assert Driver(successor).status() == 0b011
    device.stop()
    assert any("declared dead" in line for line in device.lines)
    assert any("detached: the driver is dead" in line for line in device.lines)


def test_polling_driver_costs_no_cpu(device: DeviceProcess, driver: Driver) -> None:
    """A heartbeat and unarmed kicks by the thousand do not wake the device."""
    with memory(SIZE) as fd, started_vm1(device, fd) as vm1:
        wait_until(lambda: driver.status() == 0b011)
        (area,) = driver.function.region(Region.BAR0).areas
        with driver.function.map_area(Region.BAR0, area, writable=True) as state:
            heartbeat = state.array(DRIVER, int(driver.header()["driver_offset"]), 1)
            requests = device.state()["vfio_user"]["requests"]
            for beat in range(1, 5001):
                heartbeat["heartbeat"] = beat
                os.eventfd_write(vm1.eventfds[0], 1)
            del heartbeat
        shown = device.state()
        assert shown["function"]["heartbeat"] == 5000
        assert shown["function"]["kick_interrupts"] == 0
        assert shown["vfio_user"]["requests"] == requests


def test_client_that_dies_leaves_vm1_alone(device: DeviceProcess) -> None:
    with memory(SIZE) as fd, started_vm1(device, fd):
        for _ in range(5):
            with VfioUserFunction(str(device.vfio_user)) as function:
                wait_until(lambda: Driver(function).status() == 0b011)
                Driver(function).write32(Register.DRIVER_STATUS, 1)
            wait_until(lambda: device.state()["function"]["client"] is None)
        fds = os.listdir(f"/proc/{device.process.pid}/fd")  # noqa: PTH208 - only counted
        with VfioUserFunction(str(device.vfio_user)):
            pass
        wait_until(lambda: device.state()["function"]["client"] is None)
        assert len(os.listdir(f"/proc/{device.process.pid}/fd")) == len(fds)  # noqa: PTH208
