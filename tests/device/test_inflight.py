"""The region that a front-end keeps for a device that is started anew (docs/device.md 5.6).

vhost-user: "Inflight I/O tracking". Rows U24 and U25 are of the project's catalogue of hostile
vhost-user input.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from driver.state_area import COMMIT
from driver.vhost_pci import VhostPci
from guest.vfio_user import VfioUserFunction
from tests.device.device_process import DeviceProcess
from tests.device.vhost_user_peer import (
    BUS,
    FEATURES,
    MIB,
    NEED_REPLY,
    PROTOCOL,
    USER,
    FrontEnd,
    Region,
    Serving,
    memory,
    open_fds,
    serving,
)
from tools.vhost_user_abi import ProtocolFeature, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKED = FEATURES | 1 << 34
WITH_INFLIGHT = PROTOCOL | ProtocolFeature.INFLIGHT_SHMFD
WRAP = 1 << 15
FRESH = WRAP << 16 | WRAP
AVAIL, USED = 1 << 7, 1 << 15  # virtio 1.3, 2.8.13
SIZE = 8192
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def description(size: int = SIZE, offset: int = 0, rings: int = 2, ring_size: int = 256) -> bytes:
    return struct.pack("<QQHH", size, offset, rings, ring_size)


def get_region(front_end: FrontEnd, payload: bytes = description(0)) -> int:
    """GET_INFLIGHT_FD; the region's descriptor, which the front-end keeps."""
    front_end.send(Request.GET_INFLIGHT_FD, payload)
    data, fds, _, _ = socket.recv_fds(front_end.socket, 12 + len(payload), 4)
    assert data == struct.pack("<III", Request.GET_INFLIGHT_FD, 5, len(payload)) + (
        description() + payload[20:]
    )
    (fd,) = fds
    front_end.eventfds.append(fd)
    return fd


@contextlib.contextmanager
def negotiated() -> Iterator[tuple[Serving, FrontEnd, int]]:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate(PACKED, WITH_INFLIGHT)
        assert front_end.set_memory([Region(BUS, 4 * MIB, USER)], [fd])
        yield server, front_end, fd


def test_one_region_however_often_it_is_asked_for() -> None:
    """U24."""
    with negotiated() as (server, front_end, _):
        first = os.fstat(get_region(front_end))
        before = open_fds()
        for _ in range(200):
            fd = get_region(front_end, description(0) + bytes(4))  # as padded by QEMU
            assert os.fstat(fd).st_ino == first.st_ino
            assert front_end.acknowledged(Request.SET_INFLIGHT_FD, description(), [fd])
            os.close(front_end.eventfds.pop())
        assert open_fds() == before
        assert server.backend.describe()["counters"] == {"connections": 1}
        assert first.st_size == SIZE
        with pytest.raises(PermissionError):
            os.ftruncate(server.function.commits.fd, 0)


@pytest.mark.parametrize("rings", [0, 5, 65535])
@pytest.mark.parametrize("ring_size", [256, 0, 32769, 65535])
def test_u24_impossible_counts(rings: int, ring_size: int) -> None:
    with negotiated() as (_, front_end, _):
        fd = get_region(front_end)
        for request, fds in ((Request.GET_INFLIGHT_FD, []), (Request.SET_INFLIGHT_FD, [fd])):
            payload = description(rings=rings, ring_size=ring_size)
            front_end.send(request, payload, fds, NEED_REPLY)
            assert front_end.reply(request) == struct.pack("<Q", 1)


@contextlib.contextmanager
def odd_region(kind: str) -> Iterator[int]:
    """What no device of ours has given; good is what one could have."""
    fd = os.memfd_create("region", os.MFD_ALLOW_SEALING)
    size = {"short": SIZE - 4096, "long": SIZE + 4096, "empty": 0}.get(kind, SIZE)
    os.ftruncate(fd, size)
    if kind != "unmarked" and size:
        os.pwrite(fd, b"VPCIring", size - 8)
    seals = {"unsealed": 0, "write_sealed": SEALS | fcntl.F_SEAL_WRITE, "growing": SEALS & ~4}
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals.get(kind, SEALS))
    if kind == "read_only":
        reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        os.dup2(reopened, fd)
        os.close(reopened)
    elif kind == "eventfd":
        os.close(fd)
        fd = os.eventfd(0)
    elif kind == "file":
        os.close(fd)
        fd = os.open("/proc/self/coredump_filter", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "kind",
    [
        "short", "long", "empty", "unmarked", "unsealed", "write_sealed", "growing", "read_only",
        "eventfd", "file",
    ],
)  # fmt: skip
def test_u25_region_of_a_wrong_kind(kind: str) -> None:
    with negotiated() as (server, front_end, _), odd_region(kind) as fd:
        before, inode = open_fds(), os.fstat(server.function.commits.fd).st_ino
        assert not front_end.acknowledged(Request.SET_INFLIGHT_FD, description(), [fd])
        assert open_fds() == before
        assert os.fstat(server.function.commits.fd).st_ino == inode
        assert server.backend._counters["file"] == 1


@pytest.mark.parametrize(
    ("size", "offset"),
    [(SIZE - 1, 0), (SIZE + 1, 0), (0, 0), ((1 << 64) - 1, 0), (SIZE, 4096), (SIZE, (1 << 64) - 1)],
)
def test_u25_region_at_a_wrong_place(size: int, offset: int) -> None:
    with negotiated() as (_, front_end, _), odd_region("good") as fd:
        payload = description(size, offset)
        assert not front_end.acknowledged(Request.SET_INFLIGHT_FD, payload, [fd])
        assert front_end.acknowledged(Request.SET_INFLIGHT_FD, description(), [fd])


def test_region_under_a_started_ring() -> None:
    with negotiated() as (_, front_end, _), odd_region("good") as fd:
        front_end.start_ring(0, base=FRESH)
        assert not front_end.acknowledged(Request.SET_INFLIGHT_FD, description(), [fd])
        front_end.send(Request.GET_INFLIGHT_FD, description(0), (), NEED_REPLY)
        assert front_end.reply(Request.GET_INFLIGHT_FD) == struct.pack("<Q", 1)
        front_end.stop_ring(0)
        assert front_end.acknowledged(Request.SET_INFLIGHT_FD, description(), [fd])


def test_it_needs_its_protocol_feature() -> None:
    with serving() as server, server.front_end() as front_end, odd_region("good") as fd:
        front_end.negotiate(PACKED, PROTOCOL)
        assert not front_end.acknowledged(Request.SET_INFLIGHT_FD, description(), [fd])


def test_p16_a_region_before_the_features() -> None:
    """It is of no layout yet: rings that are started later, packed, have their words there."""
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.send(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", WITH_INFLIGHT))
        region = get_region(front_end)
        assert front_end.acknowledged(Request.SET_INFLIGHT_FD, description(), [region])
        front_end.send(Request.SET_FEATURES, struct.pack("<Q", PACKED))
        assert front_end.set_memory([Region(BUS, 4 * MIB, USER)], [fd])
        front_end.start_ring(0, base=FRESH)
        front_end.sync()
        assert server.function.state.rings[0].started
        assert os.fstat(server.function.commits.fd).st_ino == os.fstat(region).st_ino
        assert struct.unpack("<II", os.pread(region, 8, 0)) == (WRAP, WRAP)


def test_reconnect_to_the_same_device() -> None:
    """The front-end went in the middle; a stop that VM1 was told of is no such middle."""
    with negotiated() as (server, front_end, fd):
        region = os.dup(get_region(front_end))
        assert front_end.acknowledged(Request.SET_INFLIGHT_FD, description(), [region])
        front_end.start_ring(0, base=FRESH)
        front_end.start_ring(1, base=FRESH, user=USER + 0x10000)
        front_end.sync()
        server.function.leave(0, WRAP | 9, WRAP | 9)
        server.function.leave(1, WRAP | 5, WRAP | 5)
        assert front_end.stop_ring(1) == (WRAP | 5) << 16 | WRAP | 5
        front_end.close()
        server.settle()
        with FrontEnd(server.path) as again:
            again.eventfds.append(region)
            again.negotiate(PACKED, WITH_INFLIGHT)
            assert again.set_memory([Region(BUS, 4 * MIB, USER)], [fd])
            assert again.acknowledged(Request.SET_INFLIGHT_FD, description(), [region])
            again.start_ring(0, base=FRESH)
            again.start_ring(1, base=FRESH, user=USER + 0x10000)
            again.sync()
            assert server.function.position(0) == (WRAP | 9, WRAP | 9)
            assert server.function.position(1) == (WRAP, WRAP)
            assert again.stop_ring(0) == (WRAP | 9) << 16 | WRAP | 9
            again.start_ring(0, base=FRESH)  # another life of the ring: VM1 began anew
            again.sync()
            assert server.function.position(0) == (WRAP, WRAP)
        server.settle()
        with FrontEnd(server.path) as without:  # it does not keep the region: its base counts
            without.negotiate(PACKED, PROTOCOL)
            assert without.set_memory([Region(BUS, 4 * MIB, USER)], [fd])
            for index in range(3):
                os.pwrite(fd, struct.pack("<H", AVAIL | USED), 16 * index + 14)
            without.start_ring(0, base=FRESH | 3)
            without.sync()
            assert server.function.position(0) == (WRAP | 3, WRAP | 3)
        server.settle()


def test_u25_words_and_lives_that_cannot_be() -> None:
    """Garbage in every row: at worst VM1's own ring begins where it says."""
    with negotiated() as (server, front_end, _), odd_region("good") as fd:
        os.pwrite(fd, b"\xff" * (SIZE - 8), 0)
        assert front_end.acknowledged(Request.SET_INFLIGHT_FD, description(), [fd])
        front_end.start_ring(0, base=FRESH)
        front_end.sync()
        assert server.function.position(0) == (WRAP, WRAP)
        front_end.stop_ring(0)
        os.pwrite(fd, struct.pack("<Q", BUS | 1), 4096)
        server.function.leave(0, 0xFFFF_FFFF, 12345)
        front_end.start_ring(0, base=FRESH)
        front_end.sync()
        assert front_end.stop_ring(0) == FRESH


def test_devices_are_killed(tmp_path: Path) -> None:
    """kill -9, twice: what the driver wrote last is where the next device's driver goes on."""
    with contextlib.ExitStack() as stack:
        fd = stack.enter_context(memory())
        region, words = -1, (WRAP, WRAP)
        for turn in range(3):
            device = stack.enter_context(DeviceProcess(tmp_path, "--queue-pairs", "1"))
            vm1 = stack.enter_context(FrontEnd(device.vhost_user))
            vm1.negotiate(PACKED, WITH_INFLIGHT)
            assert vm1.set_memory([Region(BUS, 4 * MIB, USER)], [fd])
            region = region if turn else get_region(vm1)
            function = stack.enter_context(VfioUserFunction(str(device.vfio_user)))
            pmd = stack.enter_context(VhostPci(function))
            if turn == 1:
                pmd.state()  # before VM1 brings the region, with the other one's area mapped
            assert vm1.acknowledged(Request.SET_INFLIGHT_FD, description(), [region])
            vm1.start_ring(0, base=FRESH)  # all the front-end knows
            vm1.sync()
            assert pmd.state().rings[0].base == FRESH
            mapping = pmd._commits
            assert mapping is not None
            row = mapping.array(COMMIT, 0, 1)
            assert (int(row["committed"][0]), int(row["intended"][0])) == words
            words = (turn << 8 | 0x11, turn << 8 | 0x12)
            row["committed"], row["intended"] = words
            del row
            device.stop(signal.SIGKILL)
