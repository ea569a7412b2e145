"""Attaching to a vhost-pci function and following its state (docs/device.md 2 to 5)."""

from __future__ import annotations

import os
import re
import struct
import threading
from typing import TYPE_CHECKING

import pytest

import driver.vhost_pci
from driver.ring import Feature
from driver.state_area import PAGE_SIZE, Register, RingFlag, Status
from driver.vhost_pci import VhostPci
from guest.errors import DeviceGoneError, VhostPciError
from guest.function import Area, Doorbell
from tests.driver.fake_function import DRIVER_OFFSET, STATE_SIZE, FakeFunction

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = 16 * PAGE_SIZE
STARTED = RingFlag.STARTED | RingFlag.ENABLED


@pytest.fixture
def function() -> Iterator[FakeFunction]:
    with FakeFunction() as fake:
        yield fake
        assert fake.map_count == 0, "a mapping was left behind"


def _connect(function: FakeFunction, generation: int = 4) -> None:
    """VM1 with two rings and 16 pages, in two regions with a hole between them."""
    function.add_window(2, Area(0, 8 * PAGE_SIZE), Area(12 * PAGE_SIZE, 4 * PAGE_SIZE))
    function.header |= {"status": 3, "features": Feature.VERSION_1 | Feature.EVENT_IDX}
    function.memory = [
        (0, 8 * PAGE_SIZE, 0, 2, 3),
        (0x100000, 4 * PAGE_SIZE, 12 * PAGE_SIZE, 2, 3),
    ]
    function.rings = [
        (256, int(STARTED), 0, 0x1000, 0x2000, 7, 1),
        (128, int(STARTED | RingFlag.CALLABLE), 0x3000, 0x3800, 0x3C00, 0, 2),
    ]
    function.publish(generation)


@pytest.mark.parametrize("bar", [0, 1, 3, 4, 5, 7, -1])
def test_only_bar_2_is_the_window(function: FakeFunction, bar: int) -> None:
    with pytest.raises(VhostPciError, match=f"BAR {bar} is not the window: ") as caught:
        VhostPci(function, bar)
    assert caught.value.exit_status == 1


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"vendor": 0x8086}, "it is 8086:10f0 class 020000"),
        ({"device": 0x1041}, "it is 1af4:1041 class 020000"),
        ({"class_code": 0x010000}, "it is 1af4:10f0 class 010000"),
        ({"revision": 2}, "the device speaks version 2, this driver version 1"),
    ],
)
def test_another_function_is_named(
    function: FakeFunction, change: dict[str, int], cause: str
) -> None:
    function.identity_now = function.identity_now._replace(**change)
    with pytest.raises(VhostPciError, match=cause):
        VhostPci(function)
    assert function.command == 0x0400


@pytest.mark.parametrize(
    ("register", "value", "cause"),
    [
        (Register.MAGIC, 0, "its magic register is 0x0, not 0x49435056"),
        (Register.VERSION, 0x00020000, "the device speaks version 2"),
        (Register.STATE_OFFSET, 0x1800, "not mappable"),
        (Register.STATE_OFFSET, 0, "not mappable"),
        (Register.STATE_SIZE, 0, "not mappable"),
        (Register.STATE_SIZE, STATE_SIZE + 1, "not mappable"),
    ],
)
def test_registers_that_cannot_be(
    function: FakeFunction, register: Register, value: int, cause: str
) -> None:
    function.registers[register] = value
    with pytest.raises(VhostPciError, match=cause):
        VhostPci(function)
    assert function.command == 0x0400, "the command register was not given back"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"magic": 1}, "its magic is 0x1"),
        ({"major": 2}, "the device speaks version 2"),
        ({"ring_count": 513}, "it has 513 rings"),
        ({"ring_count": 512, "ring_offset": 0x1000}, "its ring table is 512 entries of 80 bytes"),
        ({"ring_offset": 0xFFFFFFFF, "ring_count": 1}, "its ring table is 1 entries"),
        ({"ring_stride": 63}, "its ring table is 0 entries of 63 bytes"),
        ({"memory_stride": 0}, "its memory table is 128 entries of 0 bytes"),
        ({"memory_offset": STATE_SIZE - 32}, "its memory table is 128 entries"),
        ({"memory_count": 129}, "longer than its capacity"),
        ({"driver_offset": 0x7800}, "its driver area is 4096 bytes at 0x7800"),
        ({"driver_offset": STATE_SIZE}, "its driver area is"),
        ({"driver_size": 4095}, "its driver area is 4095 bytes"),
        ({"commit_size": 15, "ring_count": 2}, "its commit area has 15 bytes"),
        ({"commit_size": (1 << 20) + 1}, "its commit area has 1048577 bytes"),
    ],
)
def test_headers_that_cannot_be(function: FakeFunction, change: dict[str, int], cause: str) -> None:
    function.header |= change
    function.publish(4)
    with pytest.raises(VhostPciError, match=re.escape(cause)):
        VhostPci(function)
    assert function.command == 0x0400
    assert function.map_count == 0


def test_attach_turns_decoding_and_mastering_on_and_close_gives_back(
    function: FakeFunction,
) -> None:
    with VhostPci(function) as device:
        assert function.command == 0x0406
        assert function.map_count == 1
    device.close()
    assert function.command == 0x0400
    assert function.writes == []


def test_commit_words_are_in_bar_4(function: FakeFunction) -> None:
    """docs/device.md 5.6; 0 where a device of minor 0 has none, or no ring is packed."""
    _connect(function)
    function.add_window(4, Area(0, PAGE_SIZE))
    with VhostPci(function) as device:
        device.state()
        assert device.commit_address(1) == 0
        function.header |= {"commit_size": 512, "features": Feature.RING_PACKED}
        function.publish(6)
        device.state()
        assert device.commit_address(1) == function.mappings[-1].address + 8
        assert len(device.mappings) == 2  # windows only: the VF must not reach it
        function.header["commit_size"] = PAGE_SIZE + 1
        function.publish(8)
        with pytest.raises(VhostPciError, match="not a mappable area"):
            device.state()
        assert device.commit_address(1) == 0


def test_inside_vm2_bar_0_is_one_area() -> None:
    with FakeFunction(whole_bar0=True) as function, VhostPci(function) as device:
        function.publish(12)
        assert device.generation() == 12


def test_state_before_vm1_came(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        state = device.state()
        assert (state.generation, state.status, state.rings) == (2, Status(0), ())
        assert len(state.memory) == 0
        assert len(state.regions) == 0
        assert device.mappings == ()


def test_state(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        _connect(function)
        state = device.state()
        assert state.generation == 4
        assert state.status == Status.CONNECTED | Status.RUNNING
        assert state.features == Feature.VERSION_1 | Feature.EVENT_IDX
        receive, transmit = state.rings
        assert (receive.index, receive.size, receive.base, receive.call_serial) == (0, 256, 7, 1)
        assert (receive.desc, receive.avail, receive.used) == (0, 0x1000, 0x2000)
        assert (transmit.index, transmit.transmits, transmit.pair) == (1, True, 0)
        assert RingFlag.CALLABLE in transmit.flags
        for ring in state.rings:
            ring.check(state.memory, state.features)
        first, second = device.mappings
        assert state.regions == [
            (0, 8 * PAGE_SIZE, first.address, 3),
            (0x100000, 4 * PAGE_SIZE, second.address, 3),
        ]
        os.pwrite(function.files[2], b"VM1 was here", 12 * PAGE_SIZE)
        assert bytes(second.array("u1", 0, 12)) == b"VM1 was here"
        assert device.windows[2][1].offset == 12 * PAGE_SIZE


def test_a_new_state_has_new_windows_and_no_old_ones(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        _connect(function)
        device.state()
        assert function.map_count == 3
        function.add_window(9, Area(0, PAGE_SIZE))
        function.memory = [(0, PAGE_SIZE, 0, 9, 3)]
        function.publish(6)
        state = device.state()
        assert state.generation == 6
        assert list(device.windows) == [9]
        assert function.map_count == 2, "window 2 is named by no entry any more"
        function.memory = []
        function.publish(8)
        device.state()
        assert function.map_count == 1


def test_a_read_only_window_is_mapped_read_only(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        function.add_window(9, Area(0, PAGE_SIZE), writable=False)
        function.memory = [(0, PAGE_SIZE, 0, 9, 1)]
        function.publish(4)
        device.state()
        assert [mapping.writable for mapping in device.mappings] == [False]


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ((0, PAGES + 1, 0, 2, 3), "which has 0x10000 bytes"),
        ((0, 16, 0, 0, 3), "window 0 does not exist"),
        ((0, 16, 0, 7, 3), "window 7 does not exist"),
        ((0, 16, 0, 4, 3), "window 4 does not exist"),
        ((0, 16, 0, 9, 3), "window 9 does not exist"),
        ((0, 16, 0, 65535, 3), "window 65535 does not exist"),
        ((0, PAGES, 0, 2, 3), "only 32768 of them can be mapped"),
    ],
)
def test_memory_tables_that_cannot_be(
    function: FakeFunction, entry: tuple[int, ...], cause: str
) -> None:
    with VhostPci(function) as device:
        _connect(function)
        function.memory = [entry]
        function.publish(6)
        with pytest.raises(VhostPciError, match=cause):
            device.state()
        assert device.mappings == ()
        assert device.windows == {}
        _connect(function, 8)
        assert device.state().generation == 8


def test_a_generation_that_changes_between_table_and_windows(function: FakeFunction) -> None:
    """The table of generation 4 does not fit the windows of 6: both must be taken again."""

    def replace_memory(_: int) -> None:
        function.on_region = None
        function.add_window(2, Area(0, PAGE_SIZE))
        function.memory = [(0x40000, PAGE_SIZE, 0, 2, 3)]
        function.rings = []
        function.publish(6)

    with VhostPci(function) as device:
        _connect(function)
        function.on_region = replace_memory
        state = device.state()
        assert state.generation == 6
        assert state.regions == [(0x40000, PAGE_SIZE, device.mappings[0].address, 3)]


def test_a_generation_that_changes_though_all_fits(function: FakeFunction) -> None:
    def bump(_: int) -> None:
        function.on_region = None
        function.publish(6)

    with VhostPci(function) as device:
        _connect(function)
        function.on_region = bump
        assert device.state().generation == 6
        assert function.map_count == 3


def test_an_odd_generation_is_waited_for(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        _connect(function, 5)
        writer = threading.Timer(0.05, _connect, (function, 6))
        writer.start()
        assert device.state().generation == 6
        writer.join()


def test_waiting_is_bounded(function: FakeFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver.vhost_pci, "STATE_DEADLINE_S", 0.05)
    with VhostPci(function) as device:
        _connect(function, 5)
        with pytest.raises(VhostPciError, match="the device does not stop changing it"):
            device.state()


def test_endless_change_is_bounded_too(
    function: FakeFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver.vhost_pci, "STATE_DEADLINE_S", 0.05)
    with VhostPci(function) as device:
        _connect(function)
        function.on_region = lambda _: function.publish(device.generation() + 2)
        with pytest.raises(VhostPciError, match="the device does not stop changing it"):
            device.state()
        assert function.map_count == 1


def test_a_device_that_is_gone(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        function.gone = True
        with pytest.raises(DeviceGoneError, match="the device is gone"):
            device.state()
    with pytest.raises(DeviceGoneError):
        VhostPci(function)


def test_activate_and_close(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        device.activate()
        begun = [(Register.DRIVER_FEATURES, 3), (Register.DRIVER_STATUS, 1)]
        assert function.writes == begun
        pid = struct.unpack("<I", function.state_area(DRIVER_OFFSET + 8, 4))[0]
        assert pid == os.getpid()
    assert function.writes == [*begun, (Register.DRIVER_STATUS, 0)]
    with VhostPci(function) as device:
        device.activate()
        device.deactivate()
    assert len(function.writes) == 6


def test_registers_written(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        device.acknowledge(0xFFFFFFFE)
        device.report_queue_error(3, 2)
    assert function.writes == [
        (Register.ACK, 0xFFFFFFFE),
        (Register.QUEUE_ERROR, 0x00020003),
    ]


def test_doorbells_by_ring(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        assert device.doorbells([1, 3]) == {
            1: Doorbell(function.fileno(), 0x804),
            3: Doorbell(function.fileno(), 0x80C),
        }
        assert device.doorbells([]) == {}


def test_addresses_for_the_kernel(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        state_area = function.mappings[0]
        assert device.generation_address == state_area.address + 8
        assert device.heartbeat_address == state_area.address + DRIVER_OFFSET
