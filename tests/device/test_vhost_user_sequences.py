"""Random conversations: whatever is sent, nothing is left behind and the next is served."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.device.vhost_user_peer import (
    BUS,
    MIB,
    USER,
    FrontEnd,
    Region,
    Serving,
    memory,
    open_fds,
    serving,
    wait_for,
)
from tools.vhost_user_abi import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

numbers = st.one_of(
    st.integers(0, 5), st.sampled_from([255, 256, 0x100, 0x10001, 2**31, 2**32 - 1])
)
wide = st.one_of(
    numbers,
    st.sampled_from([USER, BUS, USER + 0x2000, USER + 0x3000, MIB, 4 * MIB, 1 << 30, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
pairs = st.builds(struct.Struct("<II").pack, numbers, numbers)
regions = st.builds(
    Region,
    st.sampled_from([BUS, 2 * BUS, BUS + MIB, 2**64 - 1]),
    st.sampled_from([0, 1, MIB, 4 * MIB, 2**64 - 1]),
    st.sampled_from([USER, USER + MIB, 2**64 - 4096]),
    st.sampled_from([0, MIB, 1, 2**63]),
)
tables = st.lists(regions, max_size=3).map(
    lambda rows: struct.pack("<II", len(rows), 0) + b"".join(row.pack() for row in rows)
)
payloads = st.one_of(
    st.just(b""),
    pairs,
    wide.map(struct.Struct("<Q").pack),
    st.builds(struct.Struct("<IIQQQQ").pack, numbers, st.just(0), wide, wide, wide, st.just(0)),
    tables,
    regions.map(lambda region: bytes(8) + region.pack()),
    st.binary(max_size=64),
)
messages = st.tuples(
    st.one_of(st.sampled_from(Request), numbers),
    payloads,
    st.lists(st.sampled_from(["memory", "eventfd", "null"]), max_size=3),
    st.sampled_from([0, 0, 8, 8, 4, 2]),  # beside the version; with 2 it is version 3
)
# So that most conversations come somewhere: a table, a set up ring.
USUAL = [
    (Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", 0x1A029), [], 0),
    (Request.SET_FEATURES, struct.pack("<Q", 1 << 32 | 1 << 30), [], 8),
    (
        Request.SET_MEM_TABLE,
        struct.pack("<II", 1, 0) + Region(BUS, 4 * MIB, USER).pack(),
        ["memory"],
        8,
    ),
    (Request.SET_VRING_NUM, struct.pack("<II", 0, 256), [], 0),
    (
        Request.SET_VRING_ADDR,
        struct.pack("<IIQQQQ", 0, 0, USER, USER + 0x3000, USER + 0x2000, 0),
        [],
        0,
    ),
    (Request.SET_VRING_KICK, struct.pack("<Q", 0), ["eventfd"], 0),
    (Request.GET_VRING_BASE, struct.pack("<II", 0, 0), [], 0),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(messages, st.sampled_from(range(len(USUAL))).map(lambda i: USUAL[i])),
        max_size=24,
    )
)
def test_any_conversation(
    server: Serving, conversation: list[tuple[int, bytes, list[str], int]]
) -> None:
    before = open_fds()
    with memory() as fd, FrontEnd(server.path) as front_end:
        event, null = front_end.eventfd(), os.open("/dev/null", os.O_RDWR)
        front_end.eventfds.append(null)
        kinds = {"memory": fd, "eventfd": event, "null": null}
        try:
            for request, payload, fds, flags in conversation:
                front_end.send(request, payload, [kinds[kind] for kind in fds], flags)
        except OSError:
            pass  # it was disconnected: its right
    with FrontEnd(server.path) as successor:
        successor.negotiate()
        successor.sync()
    server.settle()
    wait_for(lambda: open_fds() == before, "every descriptor closed")
    assert server.function.broken == []
