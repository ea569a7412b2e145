"""The function: registers, generations, the wait for the driver, kicks and calls."""

from __future__ import annotations

import dataclasses
import logging
import os
import select
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from driver.state_area import HEADER, MAGIC, MEMORY, RING
from tests.device.device_host import RING_COUNT, wait_until
from tests.device.vm1_memory import MIB, region, state
from tools.device.state_writer import StateWriter
from tools.device.vm1_state import RingState

if TYPE_CHECKING:
    from driver.record import Record
    from tests.device.device_host import DeviceHost
    from tests.device.vfio_user_raw import RawClient
    from tests.device.vm1_memory import Vm1

STATE = 0x1000
DRIVER_STATUS, ACK, QUEUE_ERROR, KICK_ARM, DOORBELL = 0x10, 0x14, 0x18, 0x20, 0x800
PACKED = 1 << 34


def header(client: RawClient) -> np.void:
    found: np.void = np.frombuffer(client.read(0, STATE, HEADER.itemsize).payload[16:], HEADER)[0]
    return found


def generation(client: RawClient) -> int:
    return client.read32(STATE + 8)


def table(client: RawClient, name: str, record: Record) -> list[tuple[int, ...]]:
    shown = header(client)
    size = int(shown[f"{name}_stride"]) * int(shown[f"{name}_count"])
    if not size:
        return []
    data = client.read(0, STATE + int(shown[f"{name}_offset"]), size).payload[16:]
    return cast("list[tuple[int, ...]]", np.frombuffer(data, record).tolist())


def is_signalled(eventfd: int) -> bool:
    return bool(select.select([eventfd], [], [], 0)[0])


def test_registers(host: DeviceHost) -> None:
    with host.attached() as client:
        offsets = range(0, 0x30, 4)
        values = {offset: value for offset in offsets if (value := client.read32(offset))}
        assert values == {0: MAGIC, 4: 0x10004, 8: 0x1000, 0xC: 0xFF000, 0x1C: RING_COUNT}
        assert client.read(0, 0, 8).payload[16:] == bytes(8)
        assert client.read(0, 2, 4).payload[16:] == bytes(4)
        assert client.read(0, 0, 4096 + 4).payload[16:] == bytes(4096) + b"VPCI"
        for offset, data in ((0x10, b"\1"), (0x10, b"\1" + bytes(7)), (0x11, b"\1\0\0\0")):
            client.write(0, offset, data)
            assert client.read32(DRIVER_STATUS) == 0
        client.write32(DRIVER_STATUS, 2)
        assert client.read32(DRIVER_STATUS) == 0
        client.write32(DRIVER_STATUS, 1)
        assert client.read32(DRIVER_STATUS) == 1
        client.write32(0, 0)
        assert client.read32(0) == MAGIC


def test_state_area(host: DeviceHost, vm1: Vm1) -> None:
    file = vm1.file(4 * MIB)
    rings = (vm1.ring(), RingState(), dataclasses.replace(vm1.ring(), enabled=False, kick_fd=-1))
    with host.attached() as client:
        before = generation(client)
        assert header(client)["status"] == 0
        host.publish(
            state(
                region(file, 1 << 32, MIB, 2 * MIB),
                region(file, 0, 2 * MIB),
                rings=rings,
                features=PACKED | 1,
            )
        )
        shown = header(client)
        assert shown["generation"] == before + 2
        assert (shown["magic"], shown["major"], shown["minor"]) == (MAGIC, 1, 4)
        assert (shown["status"], shown["features"]) == (0b11, PACKED | 1)
        assert shown["memory_capacity"] >= 4096
        assert (shown["driver_offset"] % 4096, shown["driver_size"]) == (0, 4096)
        assert table(client, "memory", MEMORY) == [
            (0, 2 * MIB, 0, 2, 3),
            (1 << 32, MIB, 2 * MIB, 2, 3),
        ]
        assert table(client, "ring", RING)[:4] == [
            (256, 0b11111, 0, 0x1000, 0x2000, 7, 3),
            (0, 0, 0, 0, 0, 0, 0),
            (256, 0b10101, 0, 0x1000, 0x2000, 7, 3),
            (0, 0, 0, 0, 0, 0, 0),
        ]
        host.publish(dataclasses.replace(state(), connected=False))
        assert header(client)["status"] == 0
        assert table(client, "memory", MEMORY) == []


def test_driver_cannot_scribble_on_the_state(host: DeviceHost, vm1: Vm1) -> None:
    """Neither by trapped writes nor through its mapping does it last, or reach the device."""
    with host.attached() as client:
        client.write(0, STATE, b"\xff" * 0x3E000)
        assert client.read32(STATE) == MAGIC
        client.write(0, STATE + 0x3E000 - 4, b"\xff" * 4 + struct.pack("<QI", 77, 4242))
        shown = host.describe()
        assert (shown["heartbeat"], shown["driver_pid"]) == (77, 4242)
        fd = host.device.region(0).fd
        os.pwrite(fd, b"\xff" * 0x3E000, STATE)
        host.publish(state(region(vm1.file(MIB), 0, MIB)))
        assert header(client)["generation"] == shown["generation"] + 2
        assert len(table(client, "memory", MEMORY)) == 1
        os.pwrite(fd, b"\xff" * 0x3E000, STATE)
    with host.attached() as successor:
        assert header(successor)["magic"] == MAGIC
        assert len(table(successor, "memory", MEMORY)) == 1


def test_generation_protocol_under_a_concurrent_reader() -> None:
    """A reader that follows 5.2 never sees a table of one generation with a number of another."""
    writer = StateWriter(4)
    rounds = 3000
    stop = threading.Event()
    torn: list[int] = []
    taken = 0

    def read() -> None:
        nonlocal taken
        while not stop.is_set():
            first = int.from_bytes(writer.read(STATE + 8, 4), "little")
            if first & 1 or not first:
                continue
            image = writer.read(STATE, HEADER.itemsize + 4 * RING.itemsize)
            second = int.from_bytes(writer.read(STATE + 8, 4), "little")
            if first == second:
                taken += 1
                sizes = np.frombuffer(image, RING, 4, HEADER.itemsize)["size"]
                features = int(np.frombuffer(image, HEADER, 1)[0]["features"])
                if set(sizes.tolist()) != {first} or features != first:
                    torn.append(first)

    reader = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that the reader comes between the writer's steps
    reader.start()
    rings = np.zeros(4, RING)
    memory = np.zeros(0, MEMORY)
    try:
        for number in range(1, rounds + 1):
            rings["size"] = 2 * number
            assert writer.write(0, 2 * number, rings, memory) == 2 * number
        wait_until(lambda: taken > 0)
    finally:
        stop.set()
        reader.join()
        sys.setswitchinterval(interval)
        writer.close()
    assert torn == []


def test_generation_wraps(host: DeviceHost) -> None:
    writer = host.device._writer
    host.call(lambda: setattr(writer, "generation", 0xFFFFFFFC))
    with host.attached() as client:  # which makes a generation of its own
        host.publish(state())
        assert generation(client) == 0


def test_publish_without_a_driver_returns_at_once(host: DeviceHost) -> None:
    with host.attached():
        host.publish(state())


def test_publish_waits_for_the_acknowledgement(host: DeviceHost, vm1: Vm1) -> None:
    msi = vm1.eventfd()
    with host.attached() as client:
        client.set_irqs(0x24, 1, 0, 1, [msi])
        client.write32(DRIVER_STATUS, 1)
        before = generation(client)
        publishing = host.publish_soon(state(region(vm1.file(MIB), 0, MIB)))
        wait_until(lambda: generation(client) == before + 2)
        assert os.eventfd_read(msi) == 1
        client.write32(ACK, before)  # an old one says nothing
        assert not publishing.done()
        client.write32(ACK, before + 2)
        publishing.result(30)
        assert host.describe()["acknowledged"] == before + 2


@pytest.mark.parametrize("how", ["deactivates", "resets", "disconnects"])
def test_publish_does_not_wait_for_a_driver_that_leaves(host: DeviceHost, how: str) -> None:
    with host.attached() as client:
        client.write32(DRIVER_STATUS, 1)
        before = generation(client)
        publishing = host.publish_soon(state())
        wait_until(lambda: generation(client) != before)
        assert not publishing.done()
        if how == "deactivates":
            client.write32(DRIVER_STATUS, 0)
        elif how == "resets":
            client.ask(13)
        else:
            client.close()
        publishing.result(30)


def test_driver_without_heartbeat_is_dead(
    host: DeviceHost, caplog: pytest.LogCaptureFixture
) -> None:
    with host.attached() as client:
        client.write32(DRIVER_STATUS, 1)
        host.publish(state())
        client.wait_closed()
    host.wait_detached()
    assert host.describe()["driver_status"] == "detached"
    assert "driver: declared dead: no acknowledgement, and no heartbeat for 2 s" in caplog.messages
    host.attached().close()


def test_driver_with_heartbeat_has_longer_and_is_dead_then(
    host: DeviceHost, caplog: pytest.LogCaptureFixture
) -> None:
    fd = host.device.region(0).fd
    with host.attached() as client:
        client.write32(DRIVER_STATUS, 1)
        started = time.monotonic()
        publishing = host.publish_soon(state())
        beat = 0
        while not publishing.done():
            beat += 1
            os.pwrite(fd, struct.pack("<Q", beat), STATE + 0x3E000)
            time.sleep(0.01)
        publishing.result()
        assert time.monotonic() - started > 4.9
        client.wait_closed()
    assert "driver: declared dead: no acknowledgement for 5 s" in caplog.messages


def test_doorbell_calls_vm1(host: DeviceHost, vm1: Vm1) -> None:
    rings = (vm1.ring(), RingState(size=256), vm1.ring())
    host.publish(state(region(vm1.file(MIB), 0, MIB), rings=rings))
    with host.attached() as client:
        client.write32(DOORBELL + 8, 1)
        client.write32(DOORBELL + 8, 0)
        client.write32(DOORBELL + 4, 1)
        client.write32(DOORBELL + 4 * RING_COUNT, 1)
        client.write(0, DOORBELL, b"\1")  # F14: one byte rings nothing
    assert os.eventfd_read(rings[2].call_fd) == 2
    assert not is_signalled(rings[0].call_fd)


def test_full_call_eventfd_does_not_block(host: DeviceHost, vm1: Vm1) -> None:
    """U08: VM1 filled its counter and takes O_NONBLOCK away."""
    ring = vm1.ring()
    os.eventfd_write(ring.call_fd, (1 << 64) - 2)
    os.set_blocking(ring.call_fd, True)
    host.publish(state(region(vm1.file(MIB), 0, MIB), rings=(ring,)))
    with host.attached() as client:
        client.write32(DOORBELL, 1)
        assert client.read32(0) == MAGIC


def test_queue_error_is_told_and_logged_once(
    host: DeviceHost, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), host.attached() as client:
        for _ in range(100):
            client.write32(QUEUE_ERROR, 2 << 16 | 3)
        client.write32(QUEUE_ERROR, RING_COUNT)
        assert host.queue_errors == [3] * 100
        assert host.describe()["queue_errors"] == 100
    lines = [line for line in caplog.messages if "quarantined" in line]
    assert lines[0] == "driver: ring 3 quarantined, reason 2"
    assert len(lines) < 50


def test_kicks_only_while_armed(host: DeviceHost, vm1: Vm1) -> None:
    rings = tuple(vm1.ring() for _ in range(9))
    host.publish(state(region(vm1.file(MIB), 0, MIB), rings=rings))
    msi = [vm1.eventfd() for _ in range(8)]
    with host.attached() as client:
        client.set_irqs(0x24, 1, 0, 8, msi)
        os.eventfd_write(rings[8].kick_fd, 1)
        client.read32(0)
        assert not any(is_signalled(fd) for fd in msi)
        client.write32(KICK_ARM, 1 << 16 | 8)  # the kick that came before counts
        wait_until(lambda: is_signalled(msi[2]))
        assert os.eventfd_read(msi[2]) == 1
        os.eventfd_write(rings[8].kick_fd, 1)
        wait_until(lambda: is_signalled(msi[2]))
        client.write32(KICK_ARM, 8)
        os.eventfd_read(msi[2])
        os.eventfd_write(rings[8].kick_fd, 1)
        client.write32(KICK_ARM, 1 << 16 | RING_COUNT)
        client.write32(KICK_ARM, 2 << 16)
        assert host.describe()["armed_kicks"] == []
        assert not any(is_signalled(fd) for fd in msi)


def test_kick_eventfd_replaced_while_armed(host: DeviceHost, vm1: Vm1) -> None:
    memory = region(vm1.file(MIB), 0, MIB)
    old, new = vm1.ring(), vm1.ring()
    msi = vm1.eventfd()
    host.publish(state(memory, rings=(old,)))
    with host.attached() as client:
        client.set_irqs(0x24, 1, 1, 1, [msi])
        client.write32(KICK_ARM, 1 << 16)
        host.publish(state(memory, rings=(new,)))
        os.eventfd_write(old.kick_fd, 1)
        client.read32(0)
        assert not is_signalled(msi)
        os.eventfd_write(new.kick_fd, 1)
        wait_until(lambda: is_signalled(msi))


def test_kick_pipe_at_its_end_costs_nothing(host: DeviceHost, vm1: Vm1) -> None:
    """A kick descriptor that stays readable for ever is dropped after the first look."""
    reader, writer = os.pipe()
    os.close(writer)
    vm1.fds.append(reader)
    ring = dataclasses.replace(vm1.ring(), kick_fd=reader)
    host.publish(state(region(vm1.file(MIB), 0, MIB), rings=(ring,)))
    with host.attached() as client:
        client.write32(KICK_ARM, 1 << 16)
        wait_until(lambda: host.call(lambda: not host.device._kicks._watched))
        assert client.read32(0) == MAGIC


def test_frozen_windows_and_replug(host: DeviceHost, vm1: Vm1) -> None:
    """docs/device.md 3: a static client's windows stay, and what falls outside says REPLUG."""
    file, other = vm1.file(4 * MIB), vm1.file(MIB)
    ring = vm1.ring()
    low, high = region(file, 0, MIB), region(file, 1 << 32, MIB, 2 * MIB)
    host.publish(state(low, high, rings=(ring,)))
    with host.attached(dynamic=False) as client:
        frozen = client.region_info(2).payload
        host.publish(state(low, rings=(ring,)))
        assert header(client)["status"] == 0b011
        assert client.region_info(2).payload[16:24] == frozen[16:24]
        host.publish(state(low, region(file, MIB, MIB, MIB), rings=(ring,)))
        assert header(client)["status"] == 0b101
        assert table(client, "ring", RING)[0] == (0, 0, 0, 0, 0, 0, 0)
        assert table(client, "memory", MEMORY) == [(0, MIB, 0, 2, 3)]
        host.publish(state(region(other, 0, MIB), rings=(ring,)))
        assert header(client)["status"] == 0b101
        assert client.region_info(2).payload == struct.pack("<IIIIQQ", 32, 3, 2, 0, 4 * MIB, 0)
        assert client.read(2, 0, 4).payload[16:] == bytes(4)
        host.publish(state(low, high, rings=(ring,)))
        assert header(client)["status"] == 0b011
        assert client.region_info(2).payload == frozen
        host.publish(state(region(other, 0, MIB), rings=(ring,)))
    host.wait_detached()
    with host.attached(dynamic=False) as successor:
        assert header(successor)["status"] == 0b011
        assert successor.region_info(2).payload[16:24] == struct.pack("<Q", MIB)
