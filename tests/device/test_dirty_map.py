"""What a driver marks is in VM1's log when VM1 is answered, and soon while it writes."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import TYPE_CHECKING

import pytest

from driver.state_area import HEADER, Register
from tests.device.device_host import TIMEOUT_S, DeviceHost, wait_until
from tests.device.test_function import header
from tests.device.vm1_memory import MIB, Vm1, region, state
from tools.device.dirty_log import Log
from tools.device.dirty_map import PERIOD_S, choose_shift
from tools.device.vm1_state import RingState, Translation, Vm1State

if TYPE_CHECKING:
    from tests.device.vfio_user_raw import RawClient

STATE = 4096
SIZE = 64 * MIB
BYTES = SIZE >> 15
MARKS, ACTIVE = 1, 1
FEATURES, STATUS, ACK = Register.DRIVER_FEATURES, Register.DRIVER_STATUS, Register.ACK


@pytest.fixture
def vm1(host: DeviceHost) -> Vm1:
    return host.vm1


class Migrating:
    """VM1 with its log."""

    def __init__(self, vm1: Vm1, **changes: object) -> None:
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)
        vm1.fds.append(self.fd)
        os.ftruncate(self.fd, BYTES + 8)
        quiet = state(region(vm1.file(SIZE), 0, SIZE))
        self.quiet = dataclasses.replace(quiet, **changes)  # type: ignore[arg-type]
        self.state: Vm1State = dataclasses.replace(
            self.quiet, logging=True, log=Log(self.fd, 4, BYTES)
        )

    def logged(self) -> list[int]:
        """The log's bytes that have bits; they have none any more."""
        data = os.pread(self.fd, BYTES + 8, 0)
        assert data[:4] + data[-4:] == bytes(8), "written outside the log"
        os.pwrite(self.fd, bytes(BYTES), 4)
        found = {at: value for at, value in enumerate(data[4:-4]) if value}
        assert set(found.values()) <= {0xFF}
        return list(found)


def activate(client: RawClient, features: int = MARKS) -> None:
    client.write32(FEATURES, features)
    client.write32(STATUS, ACTIVE)


def publish(host: DeviceHost, client: RawClient, shown: Vm1State) -> None:
    """Publish, with a driver that follows."""
    told = host.publish_soon(shown)
    wait_until(lambda: told.done() or acknowledge(client))
    told.result(0)


def acknowledge(client: RawClient) -> bool:
    client.write32(ACK, int(header(client)["generation"]))
    return False


def mark(host: DeviceHost, client: RawClient, *numbers: int) -> None:
    """As a driver does, through its mapping."""
    start = int(header(client)["dirty_offset"])
    assert start
    for number in numbers:
        os.pwrite(host.device.region(0).fd, b"\1", STATE + start + number)


def test_header_says_where_marks_go_only_while_vm1_asks(host: DeviceHost, vm1: Vm1) -> None:
    vm = Migrating(vm1)
    with host.attached() as client:
        host.publish(vm.quiet)
        assert header(client)["dirty_offset"] == 0
        host.publish(vm.state)
        shown = header(client)
        assert shown["dirty_offset"] >= HEADER.itemsize
        assert shown["dirty_offset"] + shown["dirty_size"] <= client.read32(Register.STATE_SIZE)
        assert (shown["dirty_size"], shown["dirty_shift"]) == (512 << 10, 15)
        host.publish(vm.quiet)
        assert header(client)["dirty_offset"] == 0


def test_marks_are_in_the_log_before_vm1_is_answered(host: DeviceHost, vm1: Vm1) -> None:
    vm = Migrating(vm1, rings=(vm1.ring(), RingState()))
    with host.attached() as client:
        activate(client)
        publish(host, client, vm.state)
        vm.logged()
        mark(host, client, 3, 4, 5, 9, BYTES - 1)
        # GET_VRING_BASE: the ring runs no more.
        publish(host, client, dataclasses.replace(vm.state, rings=(RingState(), RingState())))
        # 0: the used ring of `Vm1.ring` is at 0x2000.
        assert vm.logged() == [0, 3, 4, 5, 9, BYTES - 1]
        publish(host, client, vm.state)
        assert vm.logged() == [0]  # each mark once


def test_marks_come_to_the_log_while_nothing_else_happens(host: DeviceHost, vm1: Vm1) -> None:
    vm = Migrating(vm1)
    with host.attached() as client:
        activate(client)
        publish(host, client, vm.state)
        mark(host, client, 7)
        wait_until(lambda: vm.logged() == [7])


def test_marks_of_before_there_is_a_log_are_kept(host: DeviceHost, vm1: Vm1) -> None:
    vm = Migrating(vm1)
    with host.attached() as client:
        activate(client)
        publish(host, client, dataclasses.replace(vm.state, log=None))
        mark(host, client, 7)
        shown = header(client)["generation"]
        publish(host, client, vm.state)
        assert vm.logged() == [7]
        assert header(client)["generation"] == shown  # the log is no business of the driver's


def test_packed_ring_and_a_used_ring_logged_elsewhere(host: DeviceHost, vm1: Vm1) -> None:
    packed = 1 << 34
    far = dataclasses.replace(vm1.ring(), desc=MIB, driver=2 * MIB, device=3 * MIB, log=5 * MIB)
    vm = Migrating(vm1, rings=(far,), features=packed)
    with host.attached() as client:
        activate(client)
        publish(host, client, vm.state)
        publish(host, client, dataclasses.replace(vm.state, rings=(RingState(),)))
        assert vm.logged() == [MIB >> 15, 3 * MIB >> 15, 5 * MIB >> 15]


@pytest.mark.parametrize("how", ["death", "reset", "old driver", "old driver left"])
def test_all_memory_where_a_mark_may_be_missing(host: DeviceHost, vm1: Vm1, how: str) -> None:
    vm = Migrating(vm1)
    with host.attached() as client:
        activate(client, 0 if "old" in how else MARKS)
        publish(host, client, vm.state)
        vm.logged()
        mark(host, client, 7)
        if how == "reset":
            assert client.ask(13).error == 0
        elif how == "old driver left":
            client.write32(STATUS, 0)
        elif how == "old driver":
            publish(host, client, dataclasses.replace(vm.state, mtu=1500))
        if how == "death":
            client.close()
        wait_until(lambda: vm.logged() == list(range(BYTES)))
    times_all = 2 if "old" in how else 1  # an old driver's were all of them from the beginning
    assert host.describe()["dirty"] == {"shift": 15, "marks_taken": 1, "times_all": times_all}


def test_a_driver_that_says_goodbye_has_marked_all(host: DeviceHost, vm1: Vm1) -> None:
    vm = Migrating(vm1)
    with host.attached() as client:
        activate(client)
        publish(host, client, vm.state)
        mark(host, client, 7)
        client.write32(STATUS, 0)
        host.publish(dataclasses.replace(vm.state, mtu=1500))
        assert vm.logged() == [7]


def test_a_mark_is_of_more_where_there_is_more_memory(host: DeviceHost, vm1: Vm1) -> None:
    vm = Migrating(vm1)
    high = 16 << 30
    beyond = region(vm1.file(MIB), high, MIB)
    log = Log(vm.fd, 4, (high + MIB) >> 15)
    os.ftruncate(vm.fd, 4 + log.size)
    more = dataclasses.replace(vm.state, memory=(*vm.state.memory, beyond), log=log)
    with host.attached() as client:
        activate(client)
        publish(host, client, vm.state)
        told = host.publish_soon(more)
        wait_until(lambda: header(client)["dirty_shift"] == 16)
        mark(host, client, 5)  # as the state before had it: it has not acknowledged yet
        time.sleep(3 * PERIOD_S)  # so nobody may look at it meanwhile
        acknowledge(client)
        told.result(TIMEOUT_S)
        data = os.pread(vm.fd, log.size, 4)
        assert data[:BYTES] == b"\xff" * BYTES
        assert data[-32:] == b"\xff" * 32
        assert len(data) == log.size
        os.pwrite(vm.fd, bytes(log.size), 4)
        mark(host, client, 5)
        publish(host, client, dataclasses.replace(more, mtu=1500))
        assert os.pread(vm.fd, 16, 4) == bytes(10) + b"\xff\xff" + bytes(4)


@pytest.mark.parametrize(
    ("end", "shift"),
    [(1 << 12, 15), (1 << 34, 15), ((1 << 34) + 1, 16), (1 << 40, 21), ((1 << 64) - 1, 45)],
)
def test_shift(vm1: Vm1, end: int, shift: int) -> None:
    memory = (region(vm1.file(4096), end - 4096, 4096),)
    assert choose_shift(memory) == shift


def test_behind_an_iommu_all_that_may_be_written_is_logged(host: DeviceHost, vm1: Vm1) -> None:
    """Once as it is shown, once as it is taken back; by its guest-physical address."""
    file = vm1.file(SIZE)
    known = (
        Translation(1 << 40, 4096, 3 << 15, file, 3 << 15, 2),
        Translation((1 << 40) + 4096, 4096, 9 << 15, file, 9 << 15, 1),
    )
    vm = Migrating(vm1, translations=known)
    with host.attached() as client:
        activate(client, MARKS | 2)
        publish(host, client, vm.state)
        assert header(client)["dirty_offset"] == 0
        assert vm.logged() == [3]
        wait_until(lambda: vm.logged() == [3])
        publish(host, client, dataclasses.replace(vm.state, translations=()))
        assert vm.logged() == [3]
        publish(host, client, dataclasses.replace(vm.state, translations=known[1:]))
        assert vm.logged() == []
