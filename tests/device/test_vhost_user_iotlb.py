"""VM1 behind an IOMMU: its front-end is asked for translations, and takes them back."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import pytest

from tests.device.iommu_front_end import (
    ACCESS_PLATFORM,
    BOTH,
    INVALIDATE,
    PAGE,
    READ,
    UPDATE,
    WRITE,
    IommuFrontEnd,
    Miss,
)
from tests.device.vhost_user_peer import (
    BUS,
    FEATURES,
    MIB,
    PROTOCOL,
    REPLY_ACK,
    USER,
    Region,
    memory,
    serving,
    wait_for,
    write_used_index,
)
from tools.device.vm1_state import Span
from tools.vhost_user_abi import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.device.vhost_user_peer import Serving
    from tools.device.vm1_state import Translation, Vm1State

RING = 0xFFFF_0000  # I/O virtual
BUFFER = 0xE000_0000
BACKEND_REQ = 1 << 5


class Scene:
    """VM1 with its memory given, a ring's pages mapped, and nothing known of them."""

    def __init__(self, server: Serving, vm1: IommuFrontEnd, fd: int) -> None:
        self.server, self.vm1, self.fd = server, vm1, fd

    @property
    def translations(self) -> tuple[Translation, ...]:
        assert self.state.translations is not None
        return self.state.translations

    @property
    def state(self) -> Vm1State:
        return self.server.function.state

    def start(self) -> None:
        """Ring 0 runs: descriptors, available and used ring, a page or two each."""
        self.vm1.start_ring(0, user=RING)
        self.vm1.enable_ring(0)
        self.vm1.serve(3)
        wait_for(lambda: self.state.rings[0].started, "the ring's start")

    def ask(self, *spans: Span) -> None:
        """As the driver does."""
        loop = self.server._loop
        loop.call_soon_threadsafe(self.server.backend.miss, list(spans))

    def settled(self, answers: int) -> None:
        wait_for(lambda: self.state.answers >= answers, f"answer {answers}")


@contextlib.contextmanager
def scene(protocol: int = PROTOCOL) -> Iterator[Scene]:
    with serving() as server, memory() as fd, IommuFrontEnd(server.path) as vm1:
        vm1.begin(protocol=protocol)
        assert vm1.set_memory([Region(BUS, 4 * MIB, USER)], [fd])
        vm1.map(RING, USER, 4)
        yield Scene(server, vm1, fd)


def test_a_ring_starts_once_its_parts_are_known() -> None:
    with scene() as on:
        on.vm1.start_ring(0, user=RING)
        on.vm1.enable_ring(0)
        misses = [on.vm1.miss() for _ in range(3)]
        assert misses == [Miss(RING, READ), Miss(RING + 0x2000, READ), Miss(RING + 0x3000, BOTH)]
        on.vm1.sync()
        assert not on.state.rings[0].started
        for miss in misses:
            on.vm1.answer(miss)
        wait_for(lambda: on.state.rings[0].started, "the ring's start")
        ring = on.state.rings[0]
        assert (ring.desc, ring.driver, ring.device) == (RING, RING + 0x2000, RING + 0x3000)
        found = [(t.bus, t.size, t.physical, t.permission) for t in on.translations]
        assert found == [
            (RING, PAGE, BUS, READ),
            (RING + 0x2000, PAGE, BUS + 0x2000, READ),
            (RING + 0x3000, PAGE, BUS + 0x3000, BOTH),
        ]
        write_used_index(on.fd, 0, 77)
        assert on.vm1.stop_ring(0) == 77


def test_a_drivers_misses_are_answered_together() -> None:
    with scene() as on:
        on.start()
        states, answers = len(on.server.function.states), on.state.answers
        on.vm1.map(BUFFER, USER + MIB, 2, READ)
        on.ask(Span(BUFFER + 100, PAGE, READ), Span(BUFFER + 8 * PAGE, 1, WRITE))
        asked = on.vm1.serve(3)
        assert asked == [
            Miss(BUFFER, READ), Miss(BUFFER + PAGE, READ), Miss(BUFFER + 8 * PAGE, WRITE)
        ]  # fmt: skip
        on.settled(answers + 1)
        assert len(on.server.function.states) == states + 1
        assert (BUFFER, 2 * PAGE, READ) in [(t.bus, t.size, t.permission) for t in on.translations]
        assert on.state.refused == (Span(BUFFER + 8 * PAGE, PAGE, WRITE),)
        assert on.state.rings[0].started


def test_what_is_known_is_answered_without_asking() -> None:
    with scene() as on:
        on.start()
        answers = on.state.answers
        on.ask(Span(RING, 8, READ))
        on.settled(answers + 1)
        # The permission is another: so it is asked for.
        on.ask(Span(RING, 8, WRITE))
        assert on.vm1.serve(1) == [Miss(RING, WRITE)]
        on.settled(answers + 2)
        assert on.translations[0].permission == BOTH


def test_a_refusal_is_forgotten_when_asked_anew() -> None:
    with scene() as on:
        on.start()
        answers = on.state.answers
        on.ask(Span(BUFFER, 1, READ))
        on.vm1.serve(1)
        on.settled(answers + 1)
        assert on.state.refused == (Span(BUFFER, PAGE, READ),)
        on.vm1.map(BUFFER, USER + MIB)
        on.ask(Span(BUFFER, 1, READ))
        on.vm1.serve(1)
        on.settled(answers + 2)
        assert not on.state.refused


def test_an_invalidation_is_answered_when_the_driver_has_let_go() -> None:
    with scene() as on:
        on.start()
        on.vm1.map(BUFFER, USER + MIB)
        on.ask(Span(BUFFER, 1, READ))
        on.vm1.serve(1)
        wait_for(lambda: any(t.bus == BUFFER for t in on.translations), "the translation")
        on.server.function.may_acknowledge.clear()
        payload = struct.pack("<QQQBB6x", BUFFER, PAGE, 0, 0, INVALIDATE)
        on.vm1.send(Request.IOTLB_MSG, payload, flags=0x8)
        wait_for(lambda: all(t.bus != BUFFER for t in on.translations), "a state without")
        on.vm1.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            on.vm1.reply(Request.IOTLB_MSG)
        on.vm1.socket.settimeout(30)
        on.server.function.may_acknowledge.set()
        assert on.vm1.reply(Request.IOTLB_MSG) == bytes(8)


@pytest.mark.parametrize("size", [0, (1 << 64) - 1], ids=["zero", "last"])
def test_all_is_taken_back_under_a_running_ring(size: int) -> None:
    """The ring stops where its used index is, is asked for again, and goes on there."""
    with scene() as on:
        on.start()
        write_used_index(on.fd, 0, 5)
        assert on.vm1.say(INVALIDATE, 0, size)
        assert on.translations == ()
        assert not on.state.rings[0].started
        on.vm1.serve(3)
        wait_for(lambda: on.state.rings[0].started, "the ring's return")
        assert on.state.rings[0].base == 5
        assert on.vm1.stop_ring(0) == 5


def test_a_ring_vm1s_iommu_does_not_have_never_starts_and_nobody_spins() -> None:
    with scene() as on:
        del on.vm1.pages[RING + 0x2000]
        on.vm1.start_ring(0, user=RING)
        on.vm1.serve(3)
        on.vm1.sync()
        assert not on.state.rings[0].started
        on.vm1.channel.settimeout(0.05)
        with pytest.raises(TimeoutError):
            on.vm1.miss()
        on.vm1.channel.settimeout(30)
        on.vm1.map(RING + 0x2000, USER + 0x2000)
        assert on.vm1.update(RING + 0x2000)
        wait_for(lambda: on.state.rings[0].started, "the ring's start")


def test_a_ring_that_was_refused_is_asked_for_when_it_is_kicked_again() -> None:
    with scene() as on:
        refused = on.vm1.pages.pop(RING)
        on.vm1.start_ring(0, user=RING)
        on.vm1.serve(3)
        on.vm1.sync()
        assert not on.state.rings[0].started
        assert on.vm1.stop_ring(0) == 0
        on.vm1.pages[RING] = refused
        on.vm1.start_ring(0, user=RING)
        assert on.vm1.serve(1) == [Miss(RING, READ)]
        wait_for(lambda: on.state.rings[0].started, "the ring's start")


def test_memory_that_was_not_given_is_none_of_vm1s() -> None:
    with scene() as on:
        on.start()
        for user in (USER - PAGE, USER + 4 * MIB, USER + 4 * MIB - 100):
            assert not on.vm1.say(UPDATE, BUFFER, PAGE, user, BOTH)
        assert not on.vm1.say(UPDATE, BUFFER, 0, USER, BOTH)
        assert not on.vm1.say(4, BUFFER, PAGE, USER, BOTH)
        assert on.server.backend._counters["iotlb"] == 4
        assert all(t.bus != BUFFER for t in on.translations)


def test_another_memory_forgets_all() -> None:
    with scene() as on, memory() as other:
        on.start()
        assert on.vm1.set_memory([Region(BUS, 4 * MIB, USER)], [other])
        assert on.translations == ()
        on.vm1.serve(3)
        wait_for(lambda: on.state.rings[0].started, "the ring's return")


def test_a_storm_of_misses_is_asked_bit_by_bit() -> None:
    with scene() as on:
        on.start()
        answers = on.state.answers
        on.vm1.map(BUFFER, USER, 1024)
        on.ask(*(Span(BUFFER + n * MIB, MIB, READ) for n in range(64)))
        on.vm1.serve(256)  # the first range
        on.settled(answers + 1)
        assert on.vm1.unmap(BUFFER, 256)
        assert on.server.backend.describe()["iotlb"]["entries"] == 3  # type: ignore[index]


def test_a_front_end_that_ends_its_channel_has_refused() -> None:
    with scene() as on:
        on.start()
        answers = on.state.answers
        on.ask(Span(BUFFER, 1, READ))
        on.vm1.miss()
        on.vm1._theirs.close()
        on.vm1.channel.close()
        on.settled(answers + 1)
        assert on.state.refused == (Span(BUFFER, PAGE, READ),)
        on.ask(Span(BUFFER + PAGE, 1, READ))
        on.settled(answers + 2)
        on.vm1.sync()


def test_nonsense_on_the_channel_ends_it() -> None:
    for nonsense in (bytes(12), struct.pack("<IIIQ", 1, 0x5, 8, 0)):
        with scene() as on:
            on.start()
            answers = on.state.answers
            on.vm1.channel.sendall(nonsense)
            on.ask(Span(BUFFER, 1, READ))
            on.settled(answers + 1)
            on.vm1.sync()


@pytest.mark.parametrize("lacking", [REPLY_ACK, BACKEND_REQ])
def test_who_cannot_be_asked_cannot_be_behind_an_iommu(lacking: int) -> None:
    with serving() as server, IommuFrontEnd(server.path) as vm1:
        vm1.negotiate(FEATURES | ACCESS_PLATFORM, PROTOCOL & ~lacking)
        assert vm1.closed()


def test_without_access_platform_there_is_nothing_to_translate() -> None:
    with serving() as server, memory() as fd, IommuFrontEnd(server.path) as vm1:
        vm1.begin(FEATURES)
        assert vm1.set_memory([Region(BUS, 4 * MIB, USER)], [fd])
        assert not vm1.say(UPDATE, 0, PAGE, USER, BOTH)
        assert vm1.say(INVALIDATE, 0, PAGE)
        vm1.start_ring(0)
        vm1.sync()
        assert server.function.state.translations is None
        assert server.function.state.rings[0].desc == BUS
