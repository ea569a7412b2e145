"""The virtio-net port receives into VM1's memory: every layout of the device's rings and VM1's."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from driver.virtio_net.features import Feature
from driver.virtio_net.queue import SIZE_MAX
from pmd.kernel import Event, Port, Work
from tests.kernel.direct_rig import (
    HEADER,
    LEAST,
    NOISE,
    ORDINARY,
    PAGE,
    PAGES,
    RX,
    DirectRig,
    frame,
    make,
)
from tests.kernel.rig import BIG

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_VM2 = {
    "split": 0,
    "packed": Feature.RING_PACKED,
    "split in order": Feature.IN_ORDER,
    "packed in order": Feature.RING_PACKED | Feature.IN_ORDER,
}


def closed(rig: DirectRig) -> Iterator[DirectRig]:
    with rig.vm1.rig:
        yield rig
        rig.close()


@pytest.fixture(params=list(IN_VM2))
def kind(request: pytest.FixtureRequest) -> int:
    return int(IN_VM2[request.param])


@pytest.fixture(params=[False, True], ids=["VM1 split", "VM1 packed"])
def rig(request: pytest.FixtureRequest, kind: int) -> Iterator[DirectRig]:
    yield from closed(make(packed=request.param, kind=kind))


def test_a_frame_is_in_vm1s_buffer_before_we_do_anything(rig: DirectRig) -> None:
    rig.vm1.post(ORDINARY, ORDINARY)
    assert rig.begin()
    assert rig.model.receive(frame(1, 1000))
    assert rig.vm1.rig.peek(BIG, HEADER) == NOISE * HEADER  # VM1's header is ours to write
    assert rig.vm1.rig.peek(BIG + HEADER, 1000) == frame(1, 1000)
    assert rig.vm1.received() == []
    rig.turn()
    assert rig.vm1.received() == [frame(1, 1000)]
    assert (rig.port.rx_direct, rig.stats.packets, rig.stats.bytes) == (1, 1, 1000)


def test_every_size_and_every_way_to_post(rig: DirectRig) -> None:
    rig.vm1.post(LEAST, ORDINARY, 2048)
    rig.vm1.post(LEAST, ORDINARY, 2048, apart=True)
    assert rig.begin()
    frames = [frame(n, size) for n, size in enumerate((14, 1514, 2036, 60, 1524, 1515))]
    for each in frames:
        assert rig.model.receive(each)
    assert not rig.model.receive(frame(9, 60))  # VM1 has posted no more
    rig.turn()
    assert rig.vm1.received() == frames
    assert (rig.drops, rig.port.rx_missed) == ({}, 0)


def test_a_long_frame_has_several_of_vm1s_buffers(rig: DirectRig) -> None:
    rig.vm1.post(*[ORDINARY] * 5)
    rig.vm1.post(*[ORDINARY] * 5, apart=True)
    assert rig.begin()
    room = ORDINARY - HEADER
    frames = [frame(1, 4000), frame(2, 100), frame(3, room + ORDINARY), frame(4, room + 5)]
    for each in frames:
        assert rig.model.receive(each)
    rig.turn()
    assert rig.vm1.received() == frames
    assert rig.port.rx_direct == 4


def test_a_frame_of_which_a_part_is_to_come(rig: DirectRig) -> None:
    rig.vm1.post(*[ORDINARY] * 3)
    assert rig.begin()
    data = bytes(10) + b"\2\0" + frame(1, 3000)
    first, second = rig.pop(), rig.pop()
    rig.model.fill(first, data[:ORDINARY])
    rig.model.rings[RX].push(first.id, ORDINARY)
    rig.turn()
    assert rig.vm1.received() == []
    rig.model.fill(second, data[ORDINARY:])
    rig.model.rings[RX].push(second.id, len(data) - ORDINARY)
    rig.turn()
    assert rig.vm1.received() == [frame(1, 3000)]


def test_on_and_on(rig: DirectRig) -> None:
    """Several times round both rings, none of their places ever the same."""
    rig.vm1.post(*[ORDINARY] * PAGES)
    assert rig.begin()
    expected, found = [], []
    for number in range(SIZE_MAX // 3):
        batch = [frame(number, 60 + number), frame(number, 2000), frame(number, 1514)]
        for each in batch:
            assert rig.model.receive(each)
        expected += batch
        rig.turn()
        found += rig.vm1.received()
        rig.vm1.post(*[ORDINARY] * 4)
        assert not rig.turn()
    assert found == expected
    assert rig.port.rx_direct == len(expected)


def given(rig: DirectRig) -> int:
    """How many buffers the device has, with all that it can be given."""
    for _ in range(8):
        assert not rig.turn()
    return len(rig.model.rings[RX].given())


def test_the_devices_ring_bounds_what_it_has(kind: int) -> None:
    """A buffer of a frame that is not whole keeps its places in the ring."""
    for rig in closed(make(packed=True, kind=kind, size=512)):
        rig.vm1.post(*[ORDINARY] * 200)
        assert rig.begin()
        assert given(rig) == SIZE_MAX // 2
        data = bytes(10) + b"\2\0" + frame(1, 3000)
        for part in (data[:ORDINARY], data[ORDINARY:]):
            assert rig.vm1.received() == []
            chain = rig.pop()
            rig.model.fill(chain, part)
            rig.model.rings[RX].push(chain.id, len(part))
            assert given(rig) == SIZE_MAX // 2 - (len(part) == ORDINARY)
        assert rig.vm1.received() == [frame(1, 3000)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_vm1_that_wants_no_merged_frames(packed: bool, kind: int) -> None:
    for rig in closed(make(packed=packed, kind=kind, mergeable=False)):
        rig.vm1.post(*[ORDINARY] * 4)
        assert rig.begin()
        assert rig.model.receive(frame(1, 3000))
        assert rig.model.receive(frame(2, 1524))
        rig.turn()
        assert rig.vm1.received() == [b"", b"", frame(2, 1524)]
        assert rig.drops == {"small_buffer": 1}


@pytest.mark.parametrize("kind", ["split", "packed in order"], indirect=True)
def test_a_frame_over_the_mtu_is_none_of_vm1s(kind: int) -> None:
    for rig in closed(make(packed=True, kind=kind, mtu=2000)):
        rig.vm1.post(*[ORDINARY] * 10)
        assert rig.begin()
        tagged = frame(1, 12) + b"\x81\0\0\5" + frame(2, 2002)
        for each in (frame(1, 2014), frame(1, 2015), tagged, tagged + b"!"):
            assert rig.model.receive(each)
        rig.turn()
        assert rig.vm1.received() == [frame(1, 2014), b"", b"", tagged, b"", b""]
        assert rig.drops == {"over_mtu": 2}


@pytest.mark.parametrize("kind", ["split", "packed in order"], indirect=True)
def test_a_device_that_does_not_spread_frames(kind: int) -> None:
    """Whatever it would put into a buffer of ours has to fit into each of VM1's."""
    for mtu, least in ((1500, 1522), (None, 2036), (9000, 9022)):
        offer = kind | Feature.MRG_RXBUF | (Feature.MTU if mtu else 0)
        for size, suits in ((HEADER + least, True), (HEADER + least - 1, False)):
            if size > PAGE:
                continue
            rig = make(packed=False, kind=offer)
            with rig.vm1.rig:
                rig.vm1.post(size)
                assert rig.begin() is suits
                if suits:
                    rig.model.receive(frame(1, least))
                    rig.turn()
                    assert rig.vm1.received() == [frame(1, least)]
                rig.close()


@pytest.mark.parametrize("kind", ["split"], indirect=True)
@pytest.mark.parametrize("size", [1, HEADER, HEADER + 1, LEAST - 1])
def test_what_no_whole_frame_fits_into(kind: int, size: int) -> None:
    for rig in closed(make(packed=False, kind=kind)):
        rig.vm1.post(LEAST, size)
        assert not rig.begin()
        assert rig.model.receive(frame(1, 1000))
        assert rig.vm1.rig.peek(BIG, PAGE) == NOISE * PAGE
        rig.turn()
        assert rig.vm1.received() == [frame(1, 1000)]
        assert rig.port.rx_direct == 0


def test_a_small_buffer_among_large_ones_ends_it(rig: DirectRig) -> None:
    rig.vm1.post(ORDINARY, ORDINARY)
    assert rig.begin()
    rig.vm1.post(100)
    assert rig.turn() == Event.UNSUITED
    assert rig.model.receive(frame(1, 60))
    rig.vf.stop_receiving(0)
    rig.work.drain()
    assert rig.vm1.received() == [frame(1, 60)]
    assert rig.queue.in_flight == 1  # the next queue begins with it


@pytest.mark.parametrize("kind", ["split in order", "packed in order"], indirect=True)
def test_one_report_for_many(rig: DirectRig) -> None:
    """2.7.9, 2.8.9: what was passed over is filled to its end, which is VM1's buffer's."""
    rig.vm1.post(*[ORDINARY] * 6)
    assert rig.begin()
    for number in range(2):
        data = frame(number, 2 * ORDINARY - HEADER + 500)
        whole = bytes(10) + b"\3\0" + data
        chains = [rig.pop() for _ in range(3)]
        for index, chain in enumerate(chains):
            rig.model.fill(chain, whole[ORDINARY * index :][:ORDINARY])
        rig.model.rings[RX].push(chains[2].id, 500, chains=3)
        rig.turn()
        assert rig.vm1.received() == [data]


@pytest.mark.parametrize("kind", ["split", "packed"], indirect=True)
def test_a_device_that_keeps_no_order(rig: DirectRig) -> None:
    """VM1's buffers are returned in order, so it cannot go on; what came in order is VM1's."""
    rig.vm1.post(*[ORDINARY] * 4)
    assert rig.begin()
    assert rig.model.receive(frame(1, 60))
    rig.pop()
    later = rig.pop()
    rig.model.fill(later, bytes(10) + b"\1\0" + frame(2, 60))
    rig.model.rings[RX].push(later.id, HEADER + 60)
    assert not rig.turn()
    assert rig.turn() == Event.UNSUITED
    assert rig.vm1.received() == [frame(1, 60)]
    assert (rig.queue.in_flight, rig.port.rx_missed) == (3, 1)
    rig.vf.stop_receiving(0)
    assert rig.work.drain() == 0
    assert rig.vm1.received() == []
    rig.vf.start_receiving(0)
    rig.port.set_direct(False)
    rig.queue.close()
    rig.queue = rig.vm1.rig.queue(rig.stats)
    rig.work = Work(None, rig.queue, rig.port)
    assert rig.model.receive(frame(3, 60))
    rig.turn()
    assert rig.vm1.received() == [frame(3, 60)]


# ---- what no device may do


@pytest.mark.parametrize("kind", ["split", "packed in order"], indirect=True)
@pytest.mark.parametrize("length", [0, 11, ORDINARY + 1, 0xFFFF, 0xFFFFFFFF])
def test_a_length_that_cannot_be(rig: DirectRig, length: int) -> None:
    rig.vm1.post(ORDINARY, ORDINARY)
    assert rig.begin()
    rig.model.rings[RX].push(rig.pop().id, length)
    assert_contained(rig, "it wrote more or less than a buffer can hold")


@pytest.mark.parametrize("kind", ["split", "packed in order"], indirect=True)
@pytest.mark.parametrize("count", [0, 65, 0xFFFF])
def test_a_number_of_buffers_that_cannot_be(rig: DirectRig, count: int) -> None:
    rig.vm1.post(ORDINARY, ORDINARY)
    assert rig.begin()
    assert rig.model.receive(frame(1, 60), buffers=count)
    assert_contained(rig, "it gave a frame an impossible number of buffers")


@pytest.mark.parametrize("kind", ["split", "packed in order"], indirect=True)
@pytest.mark.parametrize("id_", [1, SIZE_MAX, 0xFFFF])
def test_a_buffer_that_it_does_not_have(rig: DirectRig, id_: int) -> None:
    rig.vm1.post(ORDINARY, ORDINARY)
    assert rig.begin()
    rig.model.rings[RX].push(id_, 60)
    assert_contained(rig, "it used a buffer that it does not have")


def assert_contained(rig: DirectRig, words: str) -> None:
    """VM1 has nothing back that the device may still write; the device is to be set up anew."""
    rig.turn()
    assert rig.vm1.received() == []
    assert rig.vf.look() == words
    assert rig.queue.in_flight == 2
    rig.vm1.post(ORDINARY)
    rig.turn()
    assert rig.queue.in_flight == 2
    rig.port.close()
    rig.vf.close()
    (spec,) = rig.vf.open(1)
    rig.port = Port(spec)
    assert rig.vf.look() == ""


@pytest.mark.parametrize("size", [0, 13])
def test_a_frame_that_is_too_short(rig: DirectRig, size: int) -> None:
    rig.vm1.post(ORDINARY, ORDINARY)
    assert rig.begin()
    assert rig.model.receive(frame(1, size))
    assert rig.model.receive(frame(2, 60))
    rig.turn()
    assert rig.vm1.received() == [b"", frame(2, 60)]
    assert (rig.drops, rig.port.rx_missed) == ({"vf_error": 1}, 1)


@pytest.mark.parametrize("kind", ["split", "packed in order"], indirect=True)
def test_a_frame_that_goes_on_in_the_next_buffer_too_early(rig: DirectRig) -> None:
    """5.1.6.4.1: all buffers but the last are to be used completely."""
    rig.vm1.post(*[ORDINARY] * 3)
    assert rig.begin()
    for data in (bytes(10) + b"\2\0" + frame(1, 20), frame(2, 1000)):
        chain = rig.pop()
        rig.model.fill(chain, data)
        rig.model.rings[RX].push(chain.id, len(data))
    assert rig.model.receive(frame(3, 60))
    rig.turn()
    assert rig.vm1.received() == [b"", b"", frame(3, 60)]
    assert rig.drops == {"vf_error": 1}


def test_a_device_that_asks_vm1_for_offloads(rig: DirectRig) -> None:
    """Its header stays in our memory: none was negotiated."""
    rig.vm1.post(ORDINARY)
    assert rig.begin()
    chain = rig.pop()
    header = struct.pack("<BBHHHHH", 3, 1, 54, 1448, 34, 16, 1)
    rig.model.fill(chain, header + frame(1, 1000))
    rig.model.rings[RX].push(chain.id, HEADER + 1000)
    rig.turn()
    assert rig.vm1.received() == [frame(1, 1000)]
