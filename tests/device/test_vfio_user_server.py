"""The vfio-user server as a good client sees it: stock QEMU's exact sequence, and a dynamic one."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from typing import TYPE_CHECKING

import numpy as np

from driver.state_area import HEADER, MAGIC, MEMORY
from tests.device.device_host import wait_until
from tests.device.vfio_user_raw import (
    DMA_MAP,
    DMA_UNMAP,
    GET_INFO,
    GET_IO_FDS,
    GET_IRQ_INFO,
    NO_REPLY,
    QEMU_CAPABILITIES,
    RESET,
    RawClient,
)
from tests.device.vm1_memory import MIB, region, state

if TYPE_CHECKING:
    from pathlib import Path

    from tests.device.device_host import DeviceHost
    from tests.device.vm1_memory import Vm1

STATE_SIZE = 0xFF000


def config32(client: RawClient, offset: int) -> int:
    return int(struct.unpack("<I", client.read(7, offset, 4).payload[16:])[0])


def sparse_info(
    client: RawClient, index: int
) -> tuple[tuple[int, ...], list[tuple[int, int]], int]:
    """A region by QEMU's two steps: the fixed part, the areas, and the descriptor."""
    first = client.region_info(index)
    assert first.error == 0
    assert first.size == 16 + 32
    assert first.fds == ()
    argsz, flags, _, cap_offset, _, _ = struct.unpack("<IIIIQQ", first.payload)
    assert flags & 8
    assert cap_offset == 32
    second = client.region_info(index, argsz)
    assert second.size == 16 + argsz
    fixed = struct.unpack_from("<IIIIQQ", second.payload)
    kind, version, following, count, _ = struct.unpack_from("<HHIII", second.payload, 32)
    assert (kind, version, following) == (1, 1, 0)
    areas = [struct.unpack_from("<QQ", second.payload, 48 + 16 * n) for n in range(count)]
    assert len(second.payload) == 48 + 16 * count
    (fd,) = second.fds
    return fixed, [(int(a), int(b)) for a, b in areas], fd


def machine_reset(qemu: RawClient) -> None:
    """QEMU at its start; then the firmware reshapes memory."""
    assert qemu.write(7, 4, b"\0\0").size == 32
    assert qemu.ask(RESET).size == 16
    for bar in range(0x10, 0x28, 4):
        assert qemu.write(7, bar, bytes(4)).payload == struct.pack("<QII", bar, 7, 4)
    assert qemu.ask(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, MIB)).size in (16, 40)
    assert qemu.ask(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, 0xA0000)).size == 16


def test_realize_sequence_of_stock_qemu(host: DeviceHost, vm1: Vm1) -> None:
    file = vm1.file(8 * MIB)
    os.pwrite(file.fd, b"hello from VM1", 3 * MIB)
    host.publish(state(region(file, 0, 3 * MIB), region(file, 1 << 32, 4 * MIB, 3 * MIB)))
    with RawClient(host.path) as qemu:
        version = qemu.version(QEMU_CAPABILITIES)
        assert version.size <= 214  # the room that QEMU has
        assert version.payload[:4] == bytes(4)
        assert version.payload[-1] == 0
        ram = os.memfd_create("ram", os.MFD_CLOEXEC)
        os.ftruncate(ram, MIB)
        assert qemu.ask(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, MIB), [ram]).size == 16
        os.close(ram)
        assert qemu.ask(DMA_MAP, struct.pack("<IIQQQ", 32, 1, 0, 0xFFFC0000, 0x40000)).size == 16
        info = qemu.ask(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
        assert info.payload == struct.pack("<IIII", 16, 3, 9, 5)
        fixed, areas, fd = sparse_info(qemu, 0)
        assert fixed == (64, 15, 0, 32, 0x100000, 0)
        assert areas == [(0x1000, STATE_SIZE)]
        with mmap.mmap(fd, STATE_SIZE, offset=0x1000) as mapped:
            header = np.frombuffer(mapped[: HEADER.itemsize], HEADER)[0]
            assert header["magic"] == MAGIC
        os.close(fd)
        for absent in (1, 3, 5):
            empty = struct.pack("<IIIIQQ", 32, 0, absent, 0, 0, 0)
            assert qemu.region_info(absent).payload == empty
        fixed, areas, fd = sparse_info(qemu, 2)
        assert fixed == (64, 15, 2, 32, 8 * MIB, 0)
        assert areas == [(0, 7 * MIB)]
        with mmap.mmap(fd, 7 * MIB) as window:
            assert window[3 * MIB : 3 * MIB + 14] == b"hello from VM1"
        os.close(fd)
        fixed, areas, fd = sparse_info(qemu, 4)
        assert (fixed, areas) == ((48 + 16, 15, 4, 32, 8192, 0), [(0, 8192)])
        os.close(fd)
        seven = struct.pack("<IIIIQQ", 32, 3, 7, 0, 4096, 0)
        assert qemu.region_info(7).payload == seven
        for index, count in ((3, 1), (2, 0), (1, 8), (0, 0), (4, 0)):
            irq = qemu.ask(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
            assert irq.payload == struct.pack("<IIII", 16, 1 if count else 0, index, count)
        config = qemu.read(7, 0, 4096)
        assert config.size == 32 + 4096
        space = config.payload[16:]
        assert struct.unpack_from("<HH", space) == (0x1AF4, 0x10F0)
        assert struct.unpack_from("<I", space, 8) == (0x02000001,)
        assert space[256:] == bytes(4096 - 256)
        qemu.write(7, 0x30, b"\xff\xff\xff\xff")
        assert config32(qemu, 0x30) == 0
        assert config32(qemu, 0x10) == 0x4
        assert config32(qemu, 0x18) == 0xC
        assert config32(qemu, 0x20) == 0x4
        assert qemu.read(7, 0x3D, 1).payload[16:] == b"\0"
        error = vm1.eventfd()
        assert qemu.set_irqs(0x24, 3, 0, 1, [error]).size == 16
        machine_reset(qemu)
        # System reset.
        assert qemu.set_irqs(0x21, 2, 0, 0).size == 16
        assert qemu.ask(RESET).error == 0
        assert host.call(lambda: host.device.interrupts.signal(3, 0)), "ERR outlives a reset"
        assert os.eventfd_read(error) == 1


def test_bar_sizing_and_masks(host: DeviceHost, vm1: Vm1) -> None:
    """F05: all ones into a BAR reads back its size; both halves of a 64-bit BAR count."""
    host.publish(state(region(vm1.file(4 * MIB), 0, 4 * MIB)))
    with host.attached() as client:
        client.write(7, 0x10, b"\xff" * 24)
        bars = struct.unpack("<QQQ", client.read(7, 0x10, 24).payload[16:])
        assert bars == (0xFFFFFFFFFFF00004, 0xFFFFFFFFFFC0000C, 0xFFFFFFFFFFFFE004)
        client.write(7, 0, b"\xff" * 4)
        assert config32(client, 0) == 0x10F01AF4
        client.write(7, 4, b"\xff\xff")
        assert config32(client, 4) == 0x00100546
        client.write(7, 0x100, b"\xff" * 16)
        assert client.read(7, 0x100, 16).payload[16:] == bytes(16)
        # MSI: 64-bit, 8 messages, no mask; address, data and enable are writable.
        client.write(7, 0x82, b"\xff" * 14)
        assert client.read(7, 0x80, 16).payload[16:].hex() == "0500f700fcffffffffffffffffff0000"
        client.ask(RESET)
        assert client.read(7, 0x82, 2).payload[16:].hex() == "8600"
        assert config32(client, 0x18) == 0xC
        assert config32(client, 4) == 0x00100000


def test_capabilities_are_express_and_msi(host: DeviceHost) -> None:
    with host.attached() as client:
        space = client.read(7, 0, 256).payload[16:]
        found, position = [], space[0x34]
        while position:
            found.append((position, space[position]))
            position = space[position + 1]
        assert found == [(0x40, 0x10), (0x80, 0x05)]


def test_function_level_reset_through_configuration_space(host: DeviceHost) -> None:
    with host.attached() as client:
        client.write32(0x10, 1)
        client.write(7, 4, b"\x06\x00")
        client.write(7, 0x49, b"\x80")
        assert client.read32(0x10) == 0
        assert config32(client, 4) == 0x00100000
        assert client.read(7, 0x48, 2).payload[16:] == b"\0\0"


def test_no_reply_write_is_not_answered(host: DeviceHost) -> None:
    with host.attached() as client:
        client.send(10, struct.pack("<QII", 0x10, 0, 4) + b"\1\0\0\0", flags=NO_REPLY)
        client.send(99, flags=NO_REPLY)  # nor is a refused one
        assert client.read32(0x10) == 1


def test_thousand_pipelined_requests(host: DeviceHost) -> None:
    """F17."""
    with host.attached() as client:
        request = struct.pack("<QII", 0, 0, 4)
        sender = threading.Thread(target=lambda: [client.send(9, request) for _ in range(1000)])
        sender.start()
        for identity in range(2, 1002):
            assert client.receive(9, identity).payload[16:] == b"VPCI"
        sender.join()


def test_dynamic_client_sees_windows_change(host: DeviceHost, vm1: Vm1, tmp_path: Path) -> None:
    large, small = vm1.file(2 * MIB), vm1.file(MIB)
    read_only = vm1.file(MIB, read_only_path=tmp_path / "rom")
    os.pwrite(small.fd, b"small", 4096)
    with host.attached() as client:
        assert client.ask(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)).payload == struct.pack(
            "<IIII", 16, 3, 32, 5
        )
        assert client.region_info(2).payload[16:24] == bytes(8)
        host.publish(
            state(
                region(small, 0, MIB), region(large, MIB, 2 * MIB), region(read_only, 8 * MIB, MIB)
            )
        )
        sizes = {}
        for index, flags in ((2, 15), (9, 15), (10, 13)):
            fixed, areas, fd = sparse_info(client, index)
            os.close(fd)
            assert fixed[1] == flags
            assert areas == [(0, fixed[4])]
            sizes[index] = fixed[4]
        assert sizes == {2: 2 * MIB, 9: MIB, 10: MIB}
        assert client.read(9, 4096, 5).payload[16:] == b"small"
        assert client.write(10, 0, b"x").error == 1  # EPERM
        host.publish(state(region(small, 0, MIB)))
        assert client.read(2, 4096, 5).payload[16:] == b"small"
        assert client.region_info(9).payload[16:24] == bytes(8)


def test_trapped_access_stays_inside_the_grants(host: DeviceHost, vm1: Vm1) -> None:
    """F15: a hole reads zero and keeps its bytes, and so does what lies behind the window."""
    file = vm1.file(4 * MIB)
    os.pwrite(file.fd, b"\xee" * 4 * MIB, 0)
    host.publish(state(region(file, 0, 8192, 4096), region(file, MIB, 4096, 16384)))
    with host.attached() as client:
        data = client.read(2, 0, 16384).payload[16:]
        assert data == b"\xee" * 8192 + bytes(4096) + b"\xee" * 4096
        client.write(2, 0, b"\x11" * 16384)
    written = os.pread(file.fd, 24576, 0)
    expected = b"\xee" * 4096 + b"\x11" * 8192 + b"\xee" * 4096 + b"\x11" * 4096 + b"\xee" * 4096
    assert written == expected


def test_doorbell_eventfds(host: DeviceHost, vm1: Vm1) -> None:
    """Two steps as for a region; only rings with a call eventfd have one."""
    with_call, without = vm1.ring(), vm1.ring()
    rings = (with_call, without.__class__(size=256, started=True), vm1.ring())
    host.publish(state(region(vm1.file(MIB), 0, MIB), rings=rings))
    with host.attached() as client:
        first = client.ask(GET_IO_FDS, struct.pack("<IIII", 16, 0, 0, 0))
        (argsz,) = struct.unpack_from("<I", first.payload)
        assert (argsz, first.fds, first.size) == (16 + 2 * 40, (), 32)
        second = client.ask(GET_IO_FDS, struct.pack("<IIII", argsz, 0, 0, 0))
        assert struct.unpack_from("<IIII", second.payload) == (argsz, 0, 0, 2)
        subs = [struct.unpack_from("<QQIIIIQ", second.payload, 16 + 40 * n) for n in range(2)]
        assert subs == [(0x800, 4, 0, 0, 0, 0, 0), (0x808, 4, 1, 0, 0, 0, 0)]
        os.eventfd_write(second.fds[1], 1)
        assert os.eventfd_read(rings[2].call_fd) == 1
        for fd in second.fds:
            os.close(fd)
        other = client.ask(GET_IO_FDS, struct.pack("<IIII", 4096, 0, 2, 0))
        assert struct.unpack("<IIII", other.payload) == (16, 0, 2, 0)


def test_disconnect_lets_go_and_keeps_vm1(host: DeviceHost, vm1: Vm1) -> None:
    """F11."""
    host.publish(state(region(vm1.file(MIB), 0, MIB), rings=(vm1.ring(),)))
    with host.attached() as client:
        msi = vm1.eventfd()
        client.set_irqs(0x24, 1, 0, 1, [msi])
        client.ask(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, MIB))
        client.write32(0x20, 1 << 16)
        client.write32(0x10, 1)
        shown = host.describe()
        assert (shown["driver_status"], shown["armed_kicks"]) == ("active", [0])
        assert host.call(host.server.describe)["dma_maps"] == 1
    host.wait_detached()
    shown = host.describe()
    assert (shown["driver_status"], shown["armed_kicks"]) == ("detached", [])
    assert [ring["ring"] for ring in shown["rings"]] == [0]
    assert not host.call(lambda: host.device.interrupts.signal(1, 0))
    with host.attached() as successor:
        assert successor.region_info(2).payload[16:24] == struct.pack("<Q", MIB)


def test_second_client_is_told_busy(host: DeviceHost) -> None:
    with host.attached() as first:
        with RawClient(host.path) as second:
            assert second.version(QEMU_CAPABILITIES).error == 16  # EBUSY
            second.wait_closed()
        assert first.read32(0) == MAGIC
    host.wait_detached()
    host.attached().close()


def test_static_client_finds_extension_windows_left_out(host: DeviceHost, vm1: Vm1) -> None:
    one, other = vm1.file(2 * MIB), vm1.file(MIB)
    host.publish(state(region(one, 0, 2 * MIB), region(other, 4 * MIB, MIB), rings=(vm1.ring(),)))
    with host.attached(dynamic=False) as client:
        assert client.region_info(9).error == 22
        header = np.frombuffer(client.read(0, 0x1000, HEADER.itemsize).payload[16:], HEADER)[0]
        assert (header["status"], header["memory_count"]) == (0b101, 1)
        offset = 0x1000 + int(header["memory_offset"])
        entry = np.frombuffer(client.read(0, offset, 32).payload[16:], MEMORY)[0]
        assert (entry["bus"], entry["length"], entry["window"]) == (0, 2 * MIB, 2)
    wait_until(lambda: host.describe()["memory_entries"] == 2)
