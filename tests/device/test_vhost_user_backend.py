"""The back-end's happy paths, in the orders of QEMU and DPDK, and what the driver is told when."""

from __future__ import annotations

import os
import struct

import pytest

from tests.device.vhost_user_peer import (
    BUS,
    FEATURES,
    MIB,
    PROTOCOL,
    USER,
    FrontEnd,
    Region,
    memory,
    open_fds,
    ring_addresses,
    serving,
    wait_for,
    write_used_index,
)
from tools.vhost_user_abi import ProtocolFeature, Request

WHOLE = Region(BUS, 4 * MIB, USER)


def test_offer() -> None:
    with serving(queue_pairs=3) as server, server.front_end() as front_end:
        features = front_end.ask_u64(Request.GET_FEATURES)
        rings = (3, 15, 16, 17, 18, 21, 22, 26, 27, 28, 29, 30, 32, 33, 34, 35)
        offloads = (0, 1, 6, 7, 8, 9, 10, 11, 12, 13, 14, 54, 55, 56)
        assert features == sum(1 << bit for bit in rings + offloads)
        protocol = front_end.ask_u64(Request.GET_PROTOCOL_FEATURES)
        assert protocol == sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 12, 13, 15, 16, 21))
        assert front_end.ask_u64(Request.GET_QUEUE_NUM) == 3


def test_qemu_start_and_stop() -> None:
    """One vhost_dev for each queue pair; the second repeats SET_FEATURES while the first runs."""
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        assert front_end.ask_u64(Request.GET_QUEUE_NUM) == 2
        assert front_end.ask_u64(Request.GET_MAX_MEM_SLOTS) == 64
        assert front_end.set_memory([WHOLE], [fd])
        for pair in (0, 1):
            front_end.send(Request.SET_FEATURES, struct.pack("<Q", FEATURES))
            for ring in (2 * pair, 2 * pair + 1):
                front_end.start_ring(ring, user=USER + ring * 0x10000)
            for ring in (2 * pair, 2 * pair + 1):
                front_end.enable_ring(ring)
        front_end.sync()

        state = server.function.state
        assert state.features == FEATURES & ~(1 << 30)
        (region,) = state.memory
        assert (region.bus, region.size, region.user, region.file_offset) == (
            BUS, 4 * MIB, USER, 0,
        )  # fmt: skip
        facts = os.fstat(fd)
        assert (region.file.device, region.file.inode) == (facts.st_dev, facts.st_ino)
        assert (region.file.size, region.file.writable) == (4 * MIB, True)
        assert region.file.fd != fd
        for index, shown in enumerate(state.rings):
            start = BUS + index * 0x10000
            assert (shown.desc, shown.driver, shown.device) == (
                start,
                start + 0x2000,
                start + 0x3000,
            )
            assert (shown.size, shown.started, shown.enabled, shown.base) == (256, True, True, 0)
            assert min(shown.kick_fd, shown.call_fd) >= 0
            assert shown.error_fd == -1
        assert server.backend.describe()["counters"] == {"connections": 1}

        write_used_index(fd, 0x10000, 77)
        for ring in (0, 1):
            front_end.enable_ring(ring, 0)
        assert [front_end.stop_ring(ring) for ring in (0, 1)] == [0, 77]
        assert [ring.started for ring in server.function.state.rings] == [False, False, True, True]


def test_dpdk_start_and_stop() -> None:
    """virtio-user: calls first, status at every step, an address space where user is bus."""
    with serving() as server, memory(sealable=False) as fd, server.front_end() as front_end:
        front_end.send(Request.SET_OWNER)
        front_end.ask(Request.GET_FEATURES)
        front_end.ask(Request.GET_PROTOCOL_FEATURES)
        front_end.send(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", PROTOCOL))
        front_end.send(Request.SET_FEATURES, struct.pack("<Q", FEATURES))
        assert front_end.acknowledged(Request.SET_STATUS, struct.pack("<Q", 0x0B))
        assert front_end.ask_u64(Request.GET_STATUS) == 0x0B
        for ring in (0, 2, 1, 3):
            payload = struct.pack("<Q", ring)
            front_end.send(Request.SET_VRING_CALL, payload, [front_end.eventfd()])
        assert front_end.set_memory([Region(USER, 4 * MIB, USER)], [fd])
        for ring in (0, 2, 1, 3):
            state = struct.pack("<II", ring, 128)
            front_end.send(Request.SET_VRING_NUM, state)
            front_end.send(Request.SET_VRING_BASE, struct.pack("<II", ring, 0))
            addresses = ring_addresses(ring, USER + ring * 0x10000)
            front_end.send(Request.SET_VRING_ADDR, addresses)
            payload = struct.pack("<Q", ring)
            front_end.send(Request.SET_VRING_KICK, payload, [front_end.eventfd()])
        front_end.enable_ring(0)
        front_end.enable_ring(1)
        assert front_end.acknowledged(Request.SET_STATUS, struct.pack("<Q", 0x0F))
        rings = server.function.state.rings
        assert [(r.started, r.enabled) for r in rings] == [(True, True)] * 2 + [(True, False)] * 2
        assert [r.desc for r in rings] == [USER + ring * 0x10000 for ring in range(4)]

        assert front_end.acknowledged(Request.SET_STATUS, struct.pack("<Q", 0))
        assert not any(r.started for r in server.function.state.rings)
        assert len(server.function.state.memory) == 1


def test_ring_is_enabled_at_once_without_protocol_features() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.send(Request.SET_FEATURES, struct.pack("<Q", 1 << 32))
        front_end.send(Request.SET_MEM_TABLE, struct.pack("<II", 1, 0) + WHOLE.pack(), [fd])
        front_end.start_ring(0)
        front_end.sync()
        assert server.function.state.rings[0].enabled


def test_guest_physical_ring_addresses() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate(protocol=PROTOCOL | ProtocolFeature.GPA_ADDRESSES)
        assert front_end.set_memory([Region(BUS, 4 * MIB, 0)], [fd])
        front_end.start_ring(0, user=BUS + 0x4000)
        front_end.sync()
        assert server.function.state.rings[0].desc == BUS + 0x4000


def test_addresses_before_the_first_table() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        front_end.start_ring(0)
        front_end.sync()
        assert not server.function.state.rings[0].started
        assert front_end.set_memory([WHOLE], [fd])
        assert server.function.state.rings[0].started


def test_polled_ring() -> None:
    """NOFD: no kick eventfd, and none to call."""
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        assert front_end.set_memory([WHOLE], [fd])
        front_end.send(Request.SET_VRING_NUM, struct.pack("<II", 0, 32768))
        addresses = struct.pack("<IIQQQQ", 0, 0, USER, USER + 3 * MIB, USER + 2 * MIB, 0)
        front_end.send(Request.SET_VRING_ADDR, addresses)
        front_end.send(Request.SET_VRING_KICK, struct.pack("<Q", 0x100))
        front_end.sync()
        ring = server.function.state.rings[0]
        assert (ring.size, ring.started, ring.kick_fd, ring.call_fd) == (32768, True, -1, -1)


def test_ring_that_ends_with_its_region() -> None:
    """Legal input must pass: the used ring's last byte is the region's."""
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        assert front_end.set_memory([WHOLE], [fd])
        front_end.send(Request.SET_VRING_NUM, struct.pack("<II", 0, 1))
        addresses = struct.pack("<IIQQQQ", 0, 0, USER, USER + 4 * MIB - 16, USER + 16, 0)
        assert front_end.acknowledged(Request.SET_VRING_ADDR, addresses)
        beyond = struct.pack("<IIQQQQ", 0, 0, USER, USER + 4 * MIB - 12, USER + 16, 0)
        assert not front_end.acknowledged(Request.SET_VRING_ADDR, beyond)


def test_call_serial_follows_the_call_eventfd() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        assert front_end.set_memory([WHOLE], [fd])
        front_end.start_ring(0)
        front_end.sync()
        before = server.function.state.rings[0]
        front_end.send(Request.SET_VRING_CALL, struct.pack("<Q", 0), [front_end.eventfd()])
        front_end.sync()
        after = server.function.state.rings[0]
        assert after.call_serial == before.call_serial + 1
        front_end.send(Request.SET_VRING_CALL, struct.pack("<Q", 0x100))
        front_end.sync()
        polled = server.function.state.rings[0]
        assert (polled.call_fd, polled.call_serial) == (-1, before.call_serial + 2)


def test_nothing_is_published_when_nothing_changes() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        start_one_ring(front_end, fd)
        count, fds = len(server.function.states), open_fds()
        for _ in range(20):
            assert front_end.set_memory([WHOLE], [fd])
            front_end.enable_ring(0)
            front_end.send(Request.SET_FEATURES, struct.pack("<Q", FEATURES))
            front_end.send(Request.SET_VRING_NUM, struct.pack("<II", 0, 256))
            front_end.send(Request.SET_VRING_ADDR, ring_addresses(0, USER))
        front_end.sync()
        assert len(server.function.states) == count
        assert open_fds() == fds
        assert server.backend.describe()["counters"] == {"connections": 1}


def start_one_ring(front_end: FrontEnd, fd: int) -> None:
    front_end.negotiate()
    assert front_end.set_memory([WHOLE], [fd])
    front_end.start_ring(0)
    front_end.enable_ring(0)
    front_end.sync()


STATE = struct.pack("<II", 0, 0)
REMOVE = struct.pack("<Q", 0) + Region(BUS, 4 * MIB, USER).pack()
TAKES_AWAY = {
    "table": (Request.SET_MEM_TABLE, None),
    "region": (Request.REM_MEM_REG, REMOVE),
    "base": (Request.GET_VRING_BASE, STATE),
    "disable": (Request.SET_VRING_ENABLE, STATE),
    "owner": (Request.RESET_OWNER, b""),
    "device": (Request.RESET_DEVICE, b""),
    "status": (Request.SET_STATUS, struct.pack("<Q", 0)),
}


@pytest.mark.parametrize("name", TAKES_AWAY)
def test_answer_waits_for_the_driver(name: str) -> None:
    """Until the driver acknowledged, VM1 gets no answer and nothing is closed."""
    request, payload = TAKES_AWAY[name]
    with (
        serving() as server,
        memory() as fd,
        memory(8 * MIB) as other,
        server.front_end() as front_end,
    ):
        start_one_ring(front_end, fd)
        server.function.may_acknowledge.clear()
        states = len(server.function.states)
        if payload is None:
            payload = struct.pack("<II", 1, 0) + Region(BUS, 8 * MIB, USER).pack()
            front_end.send(request, payload, [other], 0x8)
        else:
            front_end.send(request, payload, (), 0x8)
        wait_for(lambda: len(server.function.states) == states + 1, "the new state")
        front_end.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            front_end.reply(request)
        write_used_index(fd, 0, 1234)  # the driver completes what it had begun
        front_end.socket.settimeout(30)
        server.function.may_acknowledge.set()
        answer = front_end.reply(request)
        if request == Request.GET_VRING_BASE:
            assert struct.unpack("<II", answer) == (0, 1234)
        else:
            assert struct.unpack("<Q", answer) == (0,)
        ring = server.function.state.rings[0]
        assert (ring.started, ring.enabled) == {
            "table": (True, True), "disable": (True, False),
        }.get(name, (False, False))  # fmt: skip


def test_disconnect_waits_for_the_driver() -> None:
    with serving() as server, memory() as fd:
        front_end = server.front_end()
        start_one_ring(front_end, fd)
        server.function.may_acknowledge.clear()
        states = len(server.function.states)
        front_end.close()
        wait_for(lambda: len(server.function.states) == states + 1, "the empty state")
        state = server.function.state
        assert (state.connected, state.features, state.memory) == (False, 0, ())
        assert not any(ring.started for ring in state.rings)
        successor = FrontEnd(server.path)
        successor.send(Request.GET_FEATURES)
        successor.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            successor.reply(Request.GET_FEATURES)
        successor.socket.settimeout(30)
        server.function.may_acknowledge.set()
        successor.reply(Request.GET_FEATURES)
        successor.close()
        server.settle()


def test_base_of_a_ring_that_never_ran() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        assert front_end.set_memory([WHOLE], [fd])
        write_used_index(fd, 0, 99)
        front_end.send(Request.SET_VRING_BASE, struct.pack("<II", 0, 4242))
        assert front_end.stop_ring(0) == 4242
        assert front_end.stop_ring(1) == 0
        assert front_end.stop_ring(1) == 0


def test_restart_resumes() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        start_one_ring(front_end, fd)
        write_used_index(fd, 0, 65535)
        assert front_end.stop_ring(0) == 65535
        assert front_end.stop_ring(0) == 65535
        front_end.start_ring(0, user=USER + 0x8000, base=65535)
        front_end.sync()
        ring = server.function.state.rings[0]
        assert (ring.started, ring.base, ring.desc) == (True, 65535, BUS + 0x8000)


def test_table_that_loses_a_ring_and_gives_it_back() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        start_one_ring(front_end, fd)
        write_used_index(fd, 0, 7)
        assert front_end.set_memory([Region(BUS, MIB, USER + MIB, MIB)], [fd])
        assert not server.function.state.rings[0].started
        assert front_end.set_memory([Region(2 * BUS, 4 * MIB, USER)], [fd])
        ring = server.function.state.rings[0]
        assert (ring.started, ring.desc, ring.base) == (True, 2 * BUS, 7)


def test_regions_come_and_go() -> None:
    with serving() as server, memory() as fd, memory() as other, server.front_end() as front_end:
        front_end.negotiate()
        assert front_end.ask_u64(Request.GET_MAX_MEM_SLOTS) == 64
        regions = [Region(BUS + i * MIB, MIB, USER + i * MIB, i * MIB) for i in (3, 0, 2)]
        for region in regions:
            payload = struct.pack("<Q", 0) + region.pack()
            assert front_end.acknowledged(Request.ADD_MEM_REG, payload, [fd])
        far = Region(4 * BUS, 4 * MIB, 4 * USER)
        payload = struct.pack("<Q", 0) + far.pack()
        assert front_end.acknowledged(Request.ADD_MEM_REG, payload, [other])
        table = server.function.state.memory
        assert [r.bus for r in table] == [BUS, BUS + 2 * MIB, BUS + 3 * MIB, 4 * BUS]
        assert len({r.file.fd for r in table}) == 2
        assert len({(r.file.device, r.file.inode) for r in table}) == 2

        fds = open_fds()
        # The offset does not count, and a descriptor that comes along is closed.
        payload = struct.pack("<QQQQQ", 0, 4 * BUS, 4 * MIB, 4 * USER, 12345)
        assert front_end.acknowledged(Request.REM_MEM_REG, payload, [other])
        assert [r.bus for r in server.function.state.memory] == [r.bus for r in table[:3]]
        assert open_fds() == fds - 1


def test_one_file_by_several_descriptors_is_one_file() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        fds = open_fds()
        halves = [Region(BUS, MIB, USER), Region(3 * BUS, MIB, USER + MIB, MIB)]
        assert front_end.set_memory(halves, [fd, fd])
        first, second = server.function.state.memory
        assert first.file == second.file
        assert open_fds() == fds + 1


def test_memory_is_sealed_against_shrinking() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        front_end.negotiate()
        assert front_end.set_memory([WHOLE], [fd])
        with pytest.raises(PermissionError):
            os.ftruncate(fd, MIB)


def test_description() -> None:
    with serving() as server, memory() as fd, server.front_end() as front_end:
        start_one_ring(front_end, fd)
        facts = server.backend.describe()
        assert facts["connected"] is True
        assert facts["features"] == ["NET_MRG_RXBUF", "VERSION_1"]
        assert facts["protocol_features"] == [
            "MQ", "REPLY_ACK", "BACKEND_REQ", "RESET_DEVICE", "CONFIGURE_MEM_SLOTS", "STATUS",
        ]  # fmt: skip
        region = facts["memory"][0]  # type: ignore[index]
        assert (region["bus"], region["sealed"]) == (BUS, True)
        assert facts["rings"][0] == {  # type: ignore[index]
            "index": 0, "size": 256, "base": 0, "started": True, "enabled": True,
            "kick": True, "call": True, "error": False, "call_serial": 1,
        }  # fmt: skip


def test_table_swap_a_thousand_times() -> None:
    """U16: no descriptor is left behind, and a state always names open ones."""
    with serving() as server, memory() as fd, memory() as other, server.front_end() as front_end:
        start_one_ring(front_end, fd)
        fds = open_fds()
        for turn in range(1000):
            assert front_end.set_memory([WHOLE], [(fd, other)[turn % 2]])
        assert open_fds() == fds
        assert server.function.state.rings[0].started
