"""The vfio-user server under a hostile client: F01 to F19 of the adversarial catalogue.

After each refusal the same connection serves on, or a new one if it had to be closed; and no
descriptor more is open than before.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
from typing import TYPE_CHECKING

import pytest

from driver.state_area import MAGIC
from tests.device.device_host import open_fds, wait_until
from tests.device.vfio_user_raw import (
    DMA_MAP,
    DMA_UNMAP,
    GET_INFO,
    GET_IO_FDS,
    GET_IRQ_INFO,
    GET_REGION_INFO,
    QEMU_CAPABILITIES,
    REGION_READ,
    REGION_WRITE,
    RESET,
    SET_IRQS,
    VERSION,
    RawClient,
)
from tests.device.vm1_memory import MIB, region, state

if TYPE_CHECKING:
    from tests.device.device_host import DeviceHost
    from tests.device.vm1_memory import Vm1

ALL_ONES_64 = (1 << 64) - 1


def access(offset: int, index: int, count: int) -> bytes:
    return struct.pack("<QII", offset, index, count)


def irqs(flags: int, index: int, start: int, count: int, argsz: int = 20) -> bytes:
    return struct.pack("<IIIII", argsz, flags, index, start, count)


def dma(size: int = 4096, iova: int = 0, flags: int = 3, offset: int = 0, argsz: int = 32) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, iova, size)


def info(argsz: int, index: int) -> bytes:
    return struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0)


REFUSED = {
    # F01: the header.
    "reply bit": (GET_INFO, bytes(16), 0, 0x1),
    "error bit": (GET_INFO, bytes(16), 0, 0x20),
    "unknown flag": (GET_INFO, bytes(16), 0, 0x40),
    "unknown type": (GET_INFO, bytes(16), 0, 0x2),
    # F02.
    "second VERSION": (VERSION, bytes(4) + b"{}\0", 0, 0),
    # F03: argsz, and payloads that are no such structure.
    "info argsz 0": (GET_INFO, struct.pack("<IIII", 0, 0, 0, 0), 0, 0),
    "info short": (GET_INFO, bytes(15), 0, 0),
    "info long": (GET_INFO, struct.pack("<IIII", 16, 0, 0, 0) + b"x", 0, 0),
    "region info argsz 31": (GET_REGION_INFO, info(31, 0), 0, 0),
    "region info past the end": (GET_REGION_INFO, info(32, 32), 0, 0),
    "region info of -1": (GET_REGION_INFO, info(32, 0xFFFFFFFF), 0, 0),
    "irq info argsz": (GET_IRQ_INFO, struct.pack("<IIII", 15, 0, 1, 0), 0, 0),
    "irq info index": (GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0), 0, 0),
    # F04: regions.
    "read of no region": (REGION_READ, access(0, 32, 4), 0, 0),
    "read of an empty region": (REGION_READ, access(0, 1, 4), 0, 0),
    "read of the ROM": (REGION_READ, access(0, 6, 4), 0, 0),
    "read past the end": (REGION_READ, access(4093, 7, 4), 0, 0),
    "read that wraps": (REGION_READ, access(ALL_ONES_64 - 1, 7, 4), 0, 0),
    "read of nothing": (REGION_READ, access(0, 7, 0), 0, 0),
    "read of 4 GiB": (REGION_READ, access(0, 2, 0xFFFFFFFF), 0, 0),
    "read of more than advertised": (REGION_READ, access(0, 2, MIB + 1), 0, 0),
    "read with data": (REGION_READ, access(0, 7, 4) + bytes(4), 0, 0),
    "write shorter than its count": (REGION_WRITE, access(0, 7, 8) + bytes(4), 0, 0),
    "write longer than its count": (REGION_WRITE, access(0, 7, 4) + bytes(5), 0, 0),
    "write of nothing": (REGION_WRITE, access(0, 7, 0), 0, 0),
    "write past the window": (REGION_WRITE, access(4 * MIB - 2, 2, 4) + bytes(4), 0, 0),
    "write that wraps": (REGION_WRITE, access(ALL_ONES_64, 2, 4) + bytes(4), 0, 0),
    "write with a descriptor": (REGION_WRITE, access(0, 7, 4) + bytes(4), 1, 0),
    # F06: interrupts.
    "vector past the end": (SET_IRQS, irqs(0x24, 1, 8, 1), 1, 0),
    "vectors that wrap": (SET_IRQS, irqs(0x24, 1, 0xFFFFFFFF, 2), 2, 0),
    "more vectors than eventfds": (SET_IRQS, irqs(0x24, 1, 0, 3), 2, 0),
    "fewer vectors than eventfds": (SET_IRQS, irqs(0x24, 1, 0, 1), 2, 0),
    "no vectors": (SET_IRQS, irqs(0x24, 1, 0, 0), 0, 0),
    "descriptors with DATA_NONE": (SET_IRQS, irqs(0x21, 1, 0, 1), 1, 0),
    "two kinds of data": (SET_IRQS, irqs(0x26, 1, 0, 1), 1, 0),
    "two actions": (SET_IRQS, irqs(0x31, 1, 0, 1), 0, 0),
    "mask": (SET_IRQS, irqs(0x09, 1, 0, 1), 0, 0),
    "unmask": (SET_IRQS, irqs(0x11, 1, 0, 1), 0, 0),
    "no flags": (SET_IRQS, irqs(0, 1, 0, 1), 0, 0),
    "booleans missing": (SET_IRQS, irqs(0x22, 1, 0, 4) + bytes(3), 0, 0),
    "MSI-X": (SET_IRQS, irqs(0x24, 2, 0, 1), 1, 0),
    "irq index": (SET_IRQS, irqs(0x21, 5, 0, 0), 0, 0),
    "irq argsz": (SET_IRQS, irqs(0x21, 1, 0, 0, argsz=19), 0, 0),
    "more descriptors than advertised": (SET_IRQS, irqs(0x24, 1, 0, 8), 17, 0),
    # F07, F08: DMA.
    "map of nothing": (DMA_MAP, dma(size=0), 0, 0),
    "map that wraps": (DMA_MAP, dma(size=8192, iova=ALL_ONES_64 - 4095), 0, 0),
    "map not aligned": (DMA_MAP, dma(iova=0x800), 0, 0),
    "map of part of a page": (DMA_MAP, dma(size=4097), 0, 0),
    "map without flags": (DMA_MAP, dma(flags=0), 0, 0),
    "map with unknown flags": (DMA_MAP, dma(flags=7), 0, 0),
    "map argsz": (DMA_MAP, dma(argsz=31), 0, 0),
    "map with two descriptors": (DMA_MAP, dma(), 2, 0),
    "unmap with a bitmap": (DMA_UNMAP, struct.pack("<IIQQ", 24, 1, 0, 4096), 0, 0),
    "unmap ALL of a range": (DMA_UNMAP, struct.pack("<IIQQ", 24, 2, 0, 4096), 0, 0),
    "unmap argsz": (DMA_UNMAP, struct.pack("<IIQQ", 23, 0, 0, 4096), 0, 0),
    # F10, F14, F16.
    "reset with a payload": (RESET, b"x", 0, 0),
    "io fds of no region": (GET_IO_FDS, struct.pack("<IIII", 16, 0, 32, 0), 0, 0),
    "io fds argsz": (GET_IO_FDS, struct.pack("<IIII", 15, 0, 0, 0), 0, 0),
    "io fds flags": (GET_IO_FDS, struct.pack("<IIII", 16, 1, 0, 0), 0, 0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_served_on(host: DeviceHost, vm1: Vm1, case: str) -> None:
    command, payload, fd_count, flags = REFUSED[case]
    host.publish(state(region(vm1.file(4 * MIB), 0, 4 * MIB)))
    fds = [vm1.eventfd() for _ in range(fd_count)]
    with host.attached() as client:
        before = open_fds()
        assert client.ask(command, payload, fds, flags).error == errno.EINVAL
        assert open_fds() == before
        assert client.read32(0) == MAGIC
        shown = host.call(host.server.describe)
        assert (shown["refused_requests"], shown["dma_maps"]) == (1, 0)


@pytest.mark.parametrize("command", [0, 11, 12, 14, 15, 16, 17, 18, 19, 0xFFFF])
def test_commands_that_are_not_served(host: DeviceHost, command: int) -> None:
    """F09 with them: dirty pages and migration are not offered."""
    with host.attached() as client:
        assert client.ask(command, bytes(32)).error == errno.ENOTSUP
        assert client.read32(0) == MAGIC


@pytest.mark.parametrize("size", [0, 15, (1 << 20) + 33, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("negotiated", [False, True])
def test_impossible_size_ends_the_connection(host: DeviceHost, size: int, negotiated: bool) -> None:
    before = open_fds()
    client = host.attached() if negotiated else RawClient(host.path)
    with client:
        client.send_raw(struct.pack("<HHIII", 9, GET_INFO, size, 0, 0))
        assert client.receive(GET_INFO, 9).error == errno.EINVAL
        client.wait_closed()
    host.wait_detached()
    wait_until(lambda: open_fds() == before)
    host.attached().close()


BAD_VERSIONS = {
    "no payload": b"",
    "half": b"\0\0\0",
    "major 1": struct.pack("<HH", 1, 0) + b"{}\0",
    "no NUL": bytes(4) + b"{}",
    "no JSON": bytes(4) + b"{\0",
    "not an object": bytes(4) + b"[]\0",
    "not UTF-8": bytes(4) + b'{"a":"\xff"}\0',
    "deep": bytes(4) + b"[" * 100_000 + b"\0",
    "capabilities are a list": bytes(4) + b'{"capabilities":[]}\0',
    "huge number": bytes(4) + b'{"capabilities":{"max_msg_fds":' + b"9" * 5000 + b"}}\0",
    **{
        f"{key} {value}": bytes(4) + json.dumps({"capabilities": {key: value}}).encode() + b"\0"
        for key, value in (
            ("max_msg_fds", 0),
            ("max_msg_fds", -1),
            ("max_msg_fds", True),
            ("max_msg_fds", "8"),
            ("max_data_xfer_size", 0),
            ("max_data_xfer_size", 1 << 64),
            ("pgsizes", 1.5),
        )
    },
}


@pytest.mark.parametrize("case", BAD_VERSIONS)
def test_bad_version_is_refused(host: DeviceHost, case: str) -> None:
    """F02."""
    before = open_fds()
    with RawClient(host.path) as client:
        assert client.ask(VERSION, BAD_VERSIONS[case]).error == errno.EINVAL
        client.wait_closed()
    wait_until(lambda: open_fds() == before)
    host.attached().close()


@pytest.mark.parametrize("command", [GET_INFO, REGION_READ, RESET, 99])
def test_nothing_before_version(host: DeviceHost, command: int) -> None:
    with RawClient(host.path) as client:
        assert client.ask(command, bytes(16)).error == errno.EINVAL
        client.wait_closed()
    host.attached().close()


def test_version_without_capabilities_has_the_defaults(host: DeviceHost, vm1: Vm1) -> None:
    """One descriptor in a message: of two doorbells such a client gets one."""
    host.publish(state(region(vm1.file(MIB), 0, MIB), rings=(vm1.ring(), vm1.ring())))
    with RawClient(host.path) as client:
        assert client.ask(VERSION, bytes(4)).error == 0
        answer = client.ask(GET_IO_FDS, struct.pack("<IIII", 4096, 0, 0, 0))
        assert struct.unpack_from("<IIII", answer.payload) == (56, 0, 0, 1)
        (fd,) = answer.fds
        os.close(fd)


def test_wrong_kind_of_interrupt_descriptor(host: DeviceHost) -> None:
    """A pipe could block the device: one among eventfds is refused, and none is taken."""
    reader, writer = os.pipe()
    event = os.eventfd(0)
    try:
        with host.attached() as client:
            before = open_fds()
            assert client.set_irqs(0x24, 1, 0, 2, [event, writer]).error == errno.EINVAL
            assert open_fds() == before
            assert not host.call(lambda: host.device.interrupts.signal(1, 0))
    finally:
        for fd in (reader, writer, event):
            os.close(fd)


def test_interrupts_are_replaced_and_taken_away(host: DeviceHost, vm1: Vm1) -> None:
    first, second = vm1.eventfd(), vm1.eventfd()
    with host.attached() as client:
        before = open_fds()
        assert client.set_irqs(0x24, 1, 0, 2, [first, first]).error == 0
        assert client.set_irqs(0x24, 1, 1, 1, [second]).error == 0
        assert open_fds() == before + 2
        assert client.set_irqs(0x21, 1, 0, 2).error == 0  # DATA_NONE: a test of the wiring
        assert (os.eventfd_read(first), os.eventfd_read(second)) == (1, 1)
        data = struct.pack("<IIIII", 22, 0x22, 1, 0, 2) + b"\0\1"
        assert client.ask(SET_IRQS, data).error == 0
        assert os.eventfd_read(second) == 1
        assert client.set_irqs(0x24, 1, 0, 1).error == 0
        assert open_fds() == before + 1
        assert client.set_irqs(0x21, 1, 0, 0).error == 0
        assert open_fds() == before
        with pytest.raises(BlockingIOError):
            os.eventfd_read(first)


def test_dma_bookkeeping(host: DeviceHost) -> None:
    """F07: overlap is EEXIST, a neighbour is not. F08: whole ranges are unmapped."""
    with host.attached() as client:

        def mapped(iova: int, size: int) -> int:
            return client.ask(DMA_MAP, dma(size=size, iova=iova)).error

        def unmapped(iova: int, size: int, flags: int = 0) -> int:
            return client.ask(DMA_UNMAP, struct.pack("<IIQQ", 24, flags, iova, size)).error

        assert mapped(0x10000, 0x4000) == 0
        for iova, size in ((0x10000, 0x4000), (0xF000, 0x2000), (0x13000, 0x1000), (0, 1 << 40)):
            assert mapped(iova, size) == errno.EEXIST
        assert mapped(0xF000, 0x1000) == 0
        assert mapped(0x14000, 0x1000) == 0
        assert mapped(ALL_ONES_64 - 4095, 4096) == 0
        for iova, size in ((0x10000, 0x3000), (0x11000, 0x1000), (0x11000, 0x4000), (0, 0x11000)):
            assert unmapped(iova, size) == errno.EINVAL  # it would cut a range
        for iova, size in ((0, 0), (0, 0x800), (0x800, 0x1000), (ALL_ONES_64 - 4095, 8192)):
            assert unmapped(iova, size) == errno.EINVAL
        assert unmapped(0x10000, 0x4000) == 0
        assert unmapped(0x10000, 0x4000) == 0  # nothing there: as stock QEMU does
        assert mapped(0x11000, 0x1000) == 0
        assert host.call(host.server.describe)["dma_maps"] == 4
        assert unmapped(0x8000, 0xC000) == 0  # 0xf000 and 0x11000, not 0x14000
        assert host.call(host.server.describe)["dma_maps"] == 2
        assert mapped(0x14000, 0x1000) == errno.EEXIST
        assert unmapped(0, 0, flags=2) == 0
        assert host.call(host.server.describe)["dma_maps"] == 0


def test_dma_descriptor_is_checked_and_let_go(host: DeviceHost, vm1: Vm1) -> None:
    file = vm1.file(8192)
    read_only = os.open(f"/proc/self/fd/{file.fd}", os.O_RDONLY)
    try:
        with host.attached() as client:
            before = open_fds()
            past = client.ask(DMA_MAP, dma(size=8192, offset=4096), [file.fd])
            assert past.error == errno.EINVAL
            wraps = client.ask(DMA_MAP, dma(offset=ALL_ONES_64 - 4095), [file.fd])
            assert wraps.error == errno.EINVAL
            assert client.ask(DMA_MAP, dma(), [read_only]).error == errno.EACCES
            assert client.ask(DMA_MAP, dma(flags=1), [read_only]).error == 0
            assert client.ask(DMA_MAP, dma(iova=4096, offset=4096), [file.fd]).error == 0
            assert open_fds() == before
    finally:
        os.close(read_only)


def test_descriptors_behind_the_header_are_dropped(host: DeviceHost, vm1: Vm1) -> None:
    event = vm1.eventfd()
    with host.attached() as client:
        before = open_fds()
        payload = irqs(0x24, 1, 0, 1)
        client.send_raw(struct.pack("<HHIII", 7, SET_IRQS, 16 + len(payload), 0, 0))
        client.send_raw(payload, [event])
        # No descriptor came with the message: that is the form that takes vectors away.
        assert client.receive(SET_IRQS, 7).error == 0
        assert open_fds() == before
        assert not host.call(lambda: host.device.interrupts.signal(1, 0))


def test_client_dies_at_every_byte(host: DeviceHost, vm1: Vm1) -> None:
    """F11, U31: whatever was half sent, its descriptors are closed and the next one is served."""
    message = struct.pack("<HHIII", 1, SET_IRQS, 36, 0, 0) + irqs(0x24, 1, 0, 1)
    event = vm1.eventfd()
    before = open_fds()
    for length in range(1, len(message)):
        client = RawClient(host.path)
        with client:
            client.version(QEMU_CAPABILITIES)
            client.send_raw(message[:length], [event])
        host.wait_detached()
    wait_until(lambda: open_fds() == before)


def test_stalled_message_is_given_up(host: DeviceHost) -> None:
    """The deadline of half a message; others are told that the device is busy, not left waiting."""
    with host.attached() as client:
        client.send_raw(b"\1\0\2")
        with RawClient(host.path) as other:
            assert other.version(QEMU_CAPABILITIES).error == errno.EBUSY
        client.wait_closed()
    host.wait_detached()
    host.attached().close()


def test_client_that_does_not_read_is_given_up(host: DeviceHost, vm1: Vm1) -> None:
    host.publish(state(region(vm1.file(4 * MIB), 0, 4 * MIB)))
    with host.attached() as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(64):
                client.send(REGION_READ, access(0, 2, MIB))
        wait_until(lambda: host.describe()["client"] is None)
    host.attached().close()


def test_silent_connections_do_not_keep_others_out(host: DeviceHost) -> None:
    """U28: eight may be silent; the next is closed; a client that speaks up among them attaches."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(RawClient(host.path)) for _ in range(8)]
        ninth = stack.enter_context(RawClient(host.path))
        ninth.wait_closed()
        assert silent[3].version(QEMU_CAPABILITIES).error == 0
        assert silent[3].read32(0) == MAGIC
