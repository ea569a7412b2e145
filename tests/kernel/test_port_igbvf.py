"""The igbvf port against a model of the VF: rings, completion, what a VF may lie about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.igbvf.device import FRAME_BYTES_MAX, MTU_MAX
from driver.igbvf.queue import BUFFER_BYTES, RX_COUNT, TX_COUNT
from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction
from tests.driver.igb_model import IgbModel
from tests.kernel.port_user import PortUser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DONE, END, TAG, ERROR = 1, 2, 8, 1 << 31
SIZES = [14, 59, 60, 61, 64, 1514, 1518, 2047, 2048, 2049, 4096, 9000, FRAME_BYTES_MAX]


def _opener(model: IgbModel) -> Callable[[str], OpenFunction]:
    return lambda _: OpenFunction(model, ())


@pytest.fixture
def model() -> Iterator[IgbModel]:
    model = IgbModel()
    yield model
    assert model.faults == []
    model.dispose()


@pytest.fixture
def user(model: IgbModel) -> Iterator[PortUser]:
    vf = IgbVf("igbvf:01:10.0", model.name, None, _opener(model), mtu=MTU_MAX)
    (spec,) = vf.open(1)
    with PortUser(spec) as user:
        yield user
    vf.close()


def frame(number: int, size: int) -> bytes:
    return bytes((number * 31 + at * 7) % 256 for at in range(size))


def padded(data: bytes) -> bytes:
    return data.ljust(60, b"\0")


def test_sends_every_size_whole_and_pads_short_ones(model: IgbModel, user: PortUser) -> None:
    frames = [frame(i, size) for i, size in enumerate(SIZES)]
    assert user.tx(frames) == ["sent"] * len(frames)
    model.run()
    assert model.wire == [padded(each) for each in frames]


def test_padding_is_never_an_earlier_frame(model: IgbModel, user: PortUser) -> None:
    for _ in range(TX_COUNT):
        user.tx([b"\xff" * 60])
        model.run()
    user.tx([b"\x01" * 14])
    model.run()
    assert model.wire[-1] == b"\x01" * 14 + bytes(46)


def test_joins_segments_wherever_the_ring_ends(model: IgbModel, user: PortUser) -> None:
    sent = []
    for number in range(TX_COUNT):  # 3 descriptors each: the ring's end falls everywhere in one
        data = frame(number, 2 * BUFFER_BYTES + 100)
        sent.append(data)
        assert user.tx([[data[:14], data[14:3000], data[3000:]]]) == ["sent"]
        model.run()
    assert model.wire == sent


def test_takes_no_more_than_the_ring_holds(model: IgbModel, user: PortUser) -> None:
    frames = [frame(i, 64) for i in range(TX_COUNT)]
    assert user.tx(frames) == ["sent"] * (TX_COUNT - 1)
    assert user.tx(frames[-1:]) == []
    model.run(limit=1)
    assert user.tx(frames[-1:]) == ["sent"]
    assert user.tx(frames[-1:]) == []
    model.run()
    assert model.wire == frames


def test_a_long_frame_waits_for_all_its_descriptors(model: IgbModel, user: PortUser) -> None:
    short = [frame(i, 64) for i in range(TX_COUNT - 3)]
    assert user.tx(short) == ["sent"] * len(short)
    long = frame(9, 3 * BUFFER_BYTES)
    assert user.tx([long]) == []
    model.run(limit=1)
    assert user.tx([long]) == ["sent"]
    model.run()
    assert model.wire == [*short, long]


def test_a_vf_that_never_completes_only_fills_up(model: IgbModel, user: PortUser) -> None:
    model.completes = False
    frames = [frame(i, 64) for i in range(TX_COUNT - 1)]
    assert user.tx(frames) == ["sent"] * len(frames)
    model.run()
    for _ in range(3):
        assert user.tx([frame(0, 64)]) == []
    assert len(model.wire) == TX_COUNT - 1


def test_refuses_what_the_vf_cannot_send(model: IgbModel, user: PortUser) -> None:
    verdicts = user.tx([frame(0, 64), frame(1, FRAME_BYTES_MAX + 1), frame(2, 64)])
    assert verdicts == ["sent", "oversize", "sent"]
    model.run()
    assert model.wire == [frame(0, 64), frame(2, 64)]


def test_receives_every_size(model: IgbModel, user: PortUser) -> None:
    frames = [frame(i, size) for i, size in enumerate(SIZES)]
    for each in frames:
        assert model.receive(each)
    assert user.rx() == frames
    assert user.rx() == frames  # shown until taken off
    user.done(2)
    assert user.rx() == frames[2:]
    user.done(len(frames) - 2)
    assert user.rx() == []


def test_receives_on_and_on(model: IgbModel, user: PortUser) -> None:
    """Several times round the ring, spans that cross its end, no descriptor lost."""
    number = 0
    for turn in range(4 * RX_COUNT // 8):
        batch = [frame(number + i, size) for i, size in enumerate((60, 5000, 1514, 2048))]
        number += len(batch)
        assert all(model.receive(each) for each in batch)
        shown = user.rx(2 if turn % 2 else 256)
        assert shown == batch[: len(shown)]
        user.done(len(shown))
        assert user.rx() == batch[len(shown) :]
        user.done(len(batch) - len(shown))
    for i in range(RX_COUNT - 1):
        assert model.receive(frame(i, 60))
    assert not model.receive(frame(0, 60))
    assert user.rx(256) == [frame(i, 60) for i in range(256)]


def test_puts_a_vlan_tag_back(model: IgbModel, user: PortUser) -> None:
    frames = [frame(1, 60), frame(2, 5000), frame(3, 64)]
    model.receive(frames[0], tag=0x2064)
    model.receive(frames[1], tag=1)
    model.receive(frames[2])
    assert user.rx() == [
        frames[0][:12] + bytes.fromhex("81002064") + frames[0][12:],
        frames[1][:12] + bytes.fromhex("81000001") + frames[1][12:],
        frames[2],
    ]


@pytest.mark.parametrize(
    ("status", "length"),
    [
        (DONE | END, 0),
        (DONE | END, 13),
        (DONE | END, BUFFER_BYTES + 1),
        (DONE | END, 0xFFFF),
        (DONE | END | ERROR, 64),
    ],
)
def test_a_report_that_cannot_be(model: IgbModel, user: PortUser, status: int, length: int) -> None:
    """It costs that frame, which is counted, and no other."""
    before, after = frame(1, 64), frame(2, 64)
    model.receive(before)
    model.report(b"", status, length)
    model.receive(after)
    assert user.rx() == [before]
    user.done(1)
    assert user.rx() == [after]
    user.done(1)
    assert user.port.rx_missed == 1
    test_receives_on_and_on(model, user)


def test_a_frame_without_end(model: IgbModel, user: PortUser) -> None:
    for _ in range(RX_COUNT - 1):
        model.report(bytes(64), DONE, 64)
    assert user.rx() == []
    assert user.port.rx_missed == (RX_COUNT - 1) // 62
    for _ in range(62 - (RX_COUNT - 1) % 62):
        model.report(bytes(64), DONE, 64)
    assert user.rx() == []
    test_receives_on_and_on(model, user)


def test_a_link_that_is_down_takes_frames_away(model: IgbModel) -> None:
    vf = IgbVf("igbvf:01:10.0", model.name, None, lambda _: OpenFunction(model, ()))
    (spec,) = vf.open(1)
    with PortUser(spec) as user:
        model.link(up=False)
        assert vf.look() == ""
        assert user.tx([frame(0, 64)] * 2) == ["vf_down"] * 2
        model.link(up=True)
        assert vf.look() == ""
        assert user.tx([frame(0, 64)]) == ["sent"]
        model.run()
    vf.close()
    assert len(model.wire) == 1
