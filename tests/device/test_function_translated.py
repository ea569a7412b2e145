"""The function of a VM1 that is behind an IOMMU (docs/device.md 5.8)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from driver.state_area import MEMORY, MISS, RING, Register, Status
from tests.device.test_function import STATE, header, table
from tests.device.vfio_user_raw import RESET
from tests.device.vm1_memory import MIB, region, state
from tools.device.vm1_state import Span, Translation, Vm1State

if TYPE_CHECKING:
    from tests.device.device_host import DeviceHost
    from tests.device.vm1_memory import Vm1

ACCESS_PLATFORM = 1 << 33
MARKS_ONLY, TRANSLATES = 1, 3


def translated(vm1: Vm1) -> Vm1State:
    """VM1 behind an IOMMU that knows two pages of it, and refused a third."""
    file = vm1.file(4 * MIB)
    known = (
        Translation(0x7000_0000, 4096, 0x1000, file, 0x1000, 1),
        Translation(0x7000_1000, 8192, 0x8000, file, 0x8000, 3),
    )
    shown = state(region(file, 0, 4 * MIB), rings=(vm1.ring(),), features=ACCESS_PLATFORM)
    refused = (Span(0x7000_4000, 4096, 2),)
    return dataclasses.replace(shown, translations=known, refused=refused)


def test_translations_are_the_memory_table(host: DeviceHost, vm1: Vm1) -> None:
    with host.attached() as client:
        client.write32(Register.DRIVER_FEATURES, TRANSLATES)
        assert client.read32(Register.DRIVER_FEATURES) == TRANSLATES
        host.publish(translated(vm1))
        shown = header(client)
        assert shown["status"] == Status.CONNECTED | Status.RUNNING
        assert table(client, "memory", MEMORY) == [
            (0x7000_0000, 4096, 0x1000, 2, 1), (0x7000_1000, 8192, 0x8000, 2, 3)
        ]  # fmt: skip
        start, count = int(shown["refused_offset"]), int(shown["refused_count"])
        data = client.read(0, STATE + start, count * MISS.itemsize).payload[16:]
        assert MISS.rows(data, count, MISS.itemsize) == [(0x7000_4000, 4096, 2)]
        # Windows show the memory itself, and stay.
        (area,) = host.device.region(2).info.areas
        assert (area.offset, area.size) == (0, 4 * MIB)
        host.publish(dataclasses.replace(translated(vm1), translations=()))


def test_windows_have_a_serial(host: DeviceHost, vm1: Vm1) -> None:
    first = translated(vm1)
    with host.attached() as client:
        client.write32(Register.DRIVER_FEATURES, TRANSLATES)
        host.publish(first)
        before = header(client)["window_serial"]
        assert before
        host.publish(dataclasses.replace(first, translations=(first.translations or ())[1:]))
        assert header(client)["window_serial"] == before
        host.publish(dataclasses.replace(first, memory=()))
        assert header(client)["window_serial"] != before


@pytest.mark.parametrize("first", [True, False], ids=["driver_first", "vm1_first"])
def test_a_driver_that_does_not_translate_sees_no_rings(
    host: DeviceHost, vm1: Vm1, first: bool
) -> None:
    with host.attached() as client:
        if first:
            client.write32(Register.DRIVER_FEATURES, MARKS_ONLY)
        host.publish(translated(vm1))
        if not first:
            client.write32(Register.DRIVER_FEATURES, MARKS_ONLY)
        shown = header(client)
        assert shown["status"] == Status.CONNECTED | Status.UNTRANSLATED
        assert shown["memory_count"] == 0
        assert all(row[0] == 0 for row in table(client, "ring", RING))
        client.write32(Register.DRIVER_FEATURES, TRANSLATES)
        assert header(client)["status"] == Status.CONNECTED | Status.RUNNING
        # The next one is asked anew.
        assert client.ask(RESET).error == 0
        assert header(client)["status"] == Status.CONNECTED | Status.UNTRANSLATED


def test_misses_are_read_once_and_judged(host: DeviceHost, vm1: Vm1) -> None:
    with host.attached() as client:
        host.publish(translated(vm1))
        start = int(header(client)["miss_offset"])
        told = [(0x1234, 100, 1), (0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 2), (0, 8, 4)]
        client.write(0, STATE + start, MISS.packed(told))
        client.write32(Register.MISS, 3)
        assert host.misses == [[Span(*row) for row in told[:2]]]
        client.write32(Register.MISS, 0xFFFF_FFFF)
        assert host.misses[1] == host.misses[0]
