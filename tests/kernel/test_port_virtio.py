"""The virtio-net port against a model of the device: rings, and what a device may lie about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.passthrough import OpenFunction
from driver.virtio_net.features import Feature
from driver.virtio_net.queue import BUFFER_BYTES, HEADER_BYTES, SIZE_MAX
from driver.virtio_net.vf import VirtioNetVf
from tests.driver.virtio_net_model import OFFER
from tests.driver.virtio_net_model import VirtioNetModel as Model
from tests.kernel.port_user import PortUser

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = BUFFER_BYTES - HEADER_BYTES
LONGEST = 9216 + 22
SIZES = [14, 59, 60, 64, 255, 256, 1514, ROOM - 1, ROOM, ROOM + 1, ROOM + 2048, 9000, LONGEST]
KINDS = {
    "split": 0,
    "packed": Feature.RING_PACKED,
    "split in order": Feature.IN_ORDER,
    "packed in order": Feature.RING_PACKED | Feature.IN_ORDER,
}
RX, TX = 0, 1
PATTERN = bytes(at * 7 % 256 for at in range(1 << 14))


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    model = Model(OFFER | KINDS[request.param])
    yield model
    assert model.faults == []
    model.dispose()


def make(model: Model) -> VirtioNetVf:
    opened = OpenFunction(model, model.iova_ranges)
    return VirtioNetVf("virtio-net:01:00.0", model.name, None, lambda _: opened)


@pytest.fixture
def vf(model: Model) -> Iterator[VirtioNetVf]:
    vf = make(model)
    yield vf
    vf.close()
    assert model.dma == {}


@pytest.fixture
def user(vf: VirtioNetVf) -> Iterator[PortUser]:
    (spec,) = vf.open(1)
    with PortUser(spec) as user:
        yield user


def frame(number: int, size: int) -> bytes:
    return PATTERN[number % 256 :][:size]


def test_sends_every_size_whole(model: Model, user: PortUser) -> None:
    frames = [frame(i, size) for i, size in enumerate(SIZES)]
    assert user.tx(frames) == ["sent"] * len(frames)
    model.run()
    assert model.sent == frames
    assert {header for _, header, _ in model.wire} == {(0,) * 6}


def test_joins_segments_wherever_the_ring_ends(model: Model, user: PortUser) -> None:
    sent = []
    for number in range(SIZE_MAX):  # 3 descriptors each: the ring's end falls everywhere in one
        data = frame(number, 2 * BUFFER_BYTES + 100)
        sent.append(data)
        assert user.tx([[data[:14], data[14:3000], data[3000:]]]) == ["sent"]
        model.run()
    assert model.sent == sent


def test_takes_no_more_than_the_ring_holds(model: Model, user: PortUser) -> None:
    frames = [frame(i, 64) for i in range(SIZE_MAX)]
    assert user.tx(frames) == ["sent"] * SIZE_MAX
    assert user.tx(frames[-1:]) == []
    model.run(limit=1)
    assert user.tx([*frames[-1:]] * 2) == ["sent"]
    model.run()
    assert model.sent == [*frames, frames[-1]]


def test_a_long_frame_waits_for_all_its_descriptors(model: Model, user: PortUser) -> None:
    short = [frame(i, 64) for i in range(SIZE_MAX - 2)]
    assert user.tx(short) == ["sent"] * len(short)
    long = frame(9, 3 * BUFFER_BYTES - HEADER_BYTES)
    assert user.tx([long]) == []
    model.run(limit=1)
    assert user.tx([long]) == ["sent"]
    model.run()
    assert model.sent == [*short, long]


def test_a_frame_longer_than_the_device_takes(model: Model, user: PortUser) -> None:
    assert user.tx([bytes(LONGEST + 1), bytes(60)]) == ["oversize", "sent"]
    model.run()
    assert model.sent == [bytes(60)]


def test_receives_every_size_whole(model: Model, user: PortUser) -> None:
    frames = [frame(i, size) for i, size in enumerate(SIZES)]
    for each in frames:
        assert model.receive(each)
    assert user.rx() == frames
    assert user.rx() == frames  # shown until taken off
    user.done(2)
    assert user.rx() == frames[2:]
    user.done(len(frames) - 2)
    assert user.rx() == []


def test_receives_on_and_on(model: Model, user: PortUser) -> None:
    """Several times round the ring, spans that cross its end, no buffer lost."""
    number = 0
    for turn in range(4 * SIZE_MAX // 8):
        batch = [frame(number + i, size) for i, size in enumerate((60, 5000, 1514, ROOM))]
        number += len(batch)
        assert all(model.receive(each) for each in batch)
        shown = user.rx(2 if turn % 2 else 256)
        assert shown == batch[: len(shown)]
        user.done(len(shown))
        assert user.take() == batch[len(shown) :]
    for i in range(SIZE_MAX):
        assert model.receive(frame(i, 60))
    assert user.rx(256) == [frame(i, 60) for i in range(256)]
    assert model.rings[RX].pop() is None


def test_no_interrupts_are_wanted(model: Model, user: PortUser) -> None:
    assert user.rx() == []
    assert [model.rings[number].wants_interrupts for number in range(3)] == [False] * 3


def test_notifies_only_who_wants_it(model: Model, user: PortUser) -> None:
    assert model.notified(RX)  # there are buffers
    for wanted in (True, False, True):
        for queue in (RX, TX):
            model.rings[queue].want_notifications(wanted=wanted)
        assert user.tx([frame(0, 60)] * 3) == ["sent"] * 3
        assert model.notified(TX) is wanted
        model.receive(frame(1, 60))
        user.take()
        assert model.notified(RX) is wanted
        assert user.tx([]) == []
        assert user.take() == []
        assert not model.notified(TX)
        assert not model.notified(RX)
        model.run()


def test_a_link_that_is_down_takes_frames_away(
    model: Model, vf: VirtioNetVf, user: PortUser
) -> None:
    model.link = 0
    assert vf.look() == ""
    assert user.tx([frame(0, 64)] * 2) == ["vf_down"] * 2
    model.link = 1
    assert vf.look() == ""
    assert user.tx([frame(0, 64)]) == ["sent"]
    model.run()
    assert len(model.wire) == 1


@pytest.mark.parametrize("model", ["split", "packed"], indirect=True)
@pytest.mark.parametrize("size", [14, 2000, 9000])
def test_a_device_that_keeps_no_order(model: Model, user: PortUser, size: int) -> None:
    """Frames done before older ones: nothing is taken back twice, nothing is lost."""
    sent = []
    for turn in range(40):
        batch = [frame(turn * 5 + i, size + i) for i in range(5)]
        sent += batch
        assert user.tx(batch) == ["sent"] * 5
        chains = [model.take() for _ in range(5)]
        for index in (3, 1, 4, 0, 2):
            chain = chains[index]
            assert chain is not None
            model.rings[TX].push(chain.id, 0)
            user.tx([])
    assert model.sent == sent
    assert user.tx([frame(0, 60)] * SIZE_MAX) == ["sent"] * SIZE_MAX


@pytest.mark.parametrize("model", ["split", "packed"], indirect=True)
def test_buffers_in_no_order(model: Model, user: PortUser) -> None:
    for turn in range(3 * SIZE_MAX // 4):
        chains = [model.rings[RX].pop() for _ in range(4)]
        frames = []
        for number, index in enumerate((2, 0, 3, 1)):
            chain = chains[index]
            assert chain is not None
            data = frame(turn + number, 60 + number)
            model.memory(chain.parts[0][0], 72 + number)[:] = bytes(10) + b"\1\0" + data
            model.rings[RX].push(chain.id, 72 + number)
            frames.append(data)
        assert user.take() == frames


@pytest.mark.parametrize("model", ["split in order", "packed in order"], indirect=True)
def test_one_report_for_many(model: Model, user: PortUser) -> None:
    """2.7.9, 2.8.9: the last one stands for all; what was passed over was filled to its end."""
    ring = model.rings[TX]
    for turn in range(2 * SIZE_MAX // 7):
        assert user.tx([frame(turn, 60), frame(turn, 5000), *[frame(turn, 60)] * 5]) == ["sent"] * 7
        chains = [model.take() for _ in range(7)]
        assert all(chains)
        for last, count in ((2, 3), (3, 1), (6, 3)):
            chain = chains[last]
            assert chain is not None
            ring.push(chain.id, 0, chains=count)
    assert user.tx([frame(0, 60)] * SIZE_MAX) == ["sent"] * SIZE_MAX
    ring = model.rings[RX]
    data = frame(1, 2 * BUFFER_BYTES + 1000)
    whole = bytes(10) + b"\3\0" + data
    for _ in range(SIZE_MAX // 3 + 2):
        received = [ring.pop() for _ in range(3)]
        for index, chain in enumerate(received):
            assert chain is not None
            part = whole[BUFFER_BYTES * index :][:BUFFER_BYTES]
            model.memory(chain.parts[0][0], len(part))[:] = part
        assert received[2] is not None
        ring.push(received[2].id, len(whole) - 2 * BUFFER_BYTES, chains=3)
        assert user.take() == [data]


def test_a_frame_of_which_a_part_is_to_come(model: Model, user: PortUser) -> None:
    data = frame(1, BUFFER_BYTES)
    whole = bytes(10) + b"\2\0" + data
    for index in range(2):
        assert user.rx() == []
        chain = model.rings[RX].pop()
        assert chain is not None
        part = whole[BUFFER_BYTES * index :][:BUFFER_BYTES]
        model.memory(chain.parts[0][0], len(part))[:] = part
        model.rings[RX].push(chain.id, len(part))
    assert user.take() == [data]


@pytest.mark.parametrize("size", [0, 1, 13])
def test_a_frame_that_is_too_short(model: Model, user: PortUser, size: int) -> None:
    """It costs that frame, which is counted, and no other."""
    before, after = frame(1, 64), frame(2, 64)
    for each in (before, bytes(size), after):
        model.receive(each)
    assert user.take() == [before]
    assert user.take() == [after]
    assert user.port.rx_missed == 1
    test_receives_on_and_on(model, user)


def test_a_frame_that_is_too_long(model: Model, user: PortUser) -> None:
    model.receive(bytes(65563))
    model.receive(frame(1, 64))
    assert user.take() == [frame(1, 64)]
    assert user.port.rx_missed == 1


# ---- what no device may do


def assert_contained(model: Model, vf: VirtioNetVf, user: PortUser, words: str) -> None:
    """The port stays away, and says so; opened anew all is well."""
    assert user.rx() == []
    assert user.tx([frame(0, 60)] * 2) == ["vf_error"] * 2
    assert vf.look() == words
    chains = len(model.rings[TX].outstanding)
    assert user.tx([frame(0, 1000)]) == ["vf_error"]
    assert user.rx() == []
    assert len(model.rings[TX].outstanding) == chains
    user.close()
    vf.close()
    model.wire.clear()
    (spec,) = vf.open(1)
    with PortUser(spec) as again:
        assert vf.look() == ""
        assert again.tx([frame(7, 60)]) == ["sent"]
        model.run()
        model.receive(frame(8, 60))
        assert again.take() == [frame(8, 60)]
    assert model.sent == [frame(7, 60)]


@pytest.mark.parametrize("length", [0, BUFFER_BYTES + 1, 0xFFFF, 0xFFFFFFFF, 11])
def test_a_length_that_cannot_be(
    model: Model, vf: VirtioNetVf, user: PortUser, length: int
) -> None:
    chain = model.rings[RX].pop()
    assert chain is not None
    model.memory(chain.parts[0][0], 12)[:] = bytes(10) + b"\1\0"
    model.rings[RX].push(chain.id, length)
    assert_contained(model, vf, user, "it wrote more or less than a buffer can hold")


@pytest.mark.parametrize("count", [0, 65, 0xFFFF])
def test_a_number_of_buffers_that_cannot_be(
    model: Model, vf: VirtioNetVf, user: PortUser, count: int
) -> None:
    model.receive(frame(1, 64), buffers=count)
    assert_contained(model, vf, user, "it gave a frame an impossible number of buffers")


@pytest.mark.parametrize("queue", [RX, TX])
@pytest.mark.parametrize("id_", [SIZE_MAX, 0xFFFF, 5])
def test_a_buffer_that_it_does_not_have(
    model: Model, vf: VirtioNetVf, user: PortUser, queue: int, id_: int
) -> None:
    """Past the ring's end; and, to send, one that was never given."""
    user.tx([frame(0, 60)])
    if (queue, id_) == (RX, 5):  # given, taken back, used once more
        for number in range(6):
            model.receive(frame(number, 60))
        assert len(user.rx()) == 6
    model.rings[queue].push(id_, 60)
    words = "it used a buffer that it does not have"
    assert_contained(model, vf, user, words)


def test_a_frame_that_is_sent_twice(model: Model, vf: VirtioNetVf, user: PortUser) -> None:
    user.tx([frame(0, 60)] * 4)
    chain = model.take()
    assert chain is not None
    model.rings[TX].push(chain.id, 0)
    model.rings[TX].push(chain.id, 0)
    assert_contained(model, vf, user, "it used a buffer that it does not have")


@pytest.mark.parametrize("model", ["split", "split in order"], indirect=True)
@pytest.mark.parametrize("by", [2, 257, 0x8000, 0xFFFF])
@pytest.mark.parametrize("queue", [RX, TX])
def test_an_index_that_jumps(
    model: Model, vf: VirtioNetVf, user: PortUser, queue: int, by: int
) -> None:
    if queue == RX and by == 2:
        by = 300
    user.tx([frame(0, 60)])
    model.rings[queue].move_index(by)  # type: ignore[attr-defined]
    assert_contained(model, vf, user, "it used more buffers than it was given")


@pytest.mark.parametrize("model", ["split in order"], indirect=True)
def test_a_batch_of_more_than_was_reported(model: Model, vf: VirtioNetVf, user: PortUser) -> None:
    user.tx([frame(0, 60)] * 4)
    model.rings[TX].push(3, 0, chains=2)
    assert_contained(model, vf, user, "it used more buffers than it was given")


def test_a_device_that_writes_over_all_its_memory(
    model: Model, vf: VirtioNetVf, user: PortUser
) -> None:
    """Nothing that was written there is read back: at worst the device is set up anew."""
    user.tx([frame(i, 600) for i in range(20)])
    for pattern in (b"\xff", b"\x81", b"\x00", b"\x7f"):
        for iova, (_, size) in model.dma.items():
            model.memory(iova, size)[:] = pattern * size
        for _ in range(3):
            user.take()
            user.tx([frame(1, 60)])
    assert vf.look() in (
        "it used more buffers than it was given",
        "it used a buffer that it does not have",
        "it wrote more or less than a buffer can hold",
    )


def test_a_device_that_never_completes(model: Model, vf: VirtioNetVf, user: PortUser) -> None:
    frames = [frame(i, 64) for i in range(SIZE_MAX)]
    model.completes = False
    assert user.tx(frames) == ["sent"] * SIZE_MAX
    model.run()
    looks = [vf.look() for _ in range(10)]
    assert looks == [""] * 10  # nobody looks for what was sent: no loop runs
    looks = []
    for _ in range(6):
        assert user.tx([frame(0, 60)]) == []
        looks.append(vf.look())
    assert looks == ["", "", *["it stopped sending"] * 4]  # the first of the ten counted


def test_a_device_that_is_slow(model: Model, vf: VirtioNetVf, user: PortUser) -> None:
    user.tx([frame(i, 64) for i in range(20)])
    for _ in range(19):
        model.run(limit=1)
        user.tx([])
        assert vf.look() == ""
    model.link = 0
    for _ in range(10):
        user.tx([])
        assert vf.look() == ""
