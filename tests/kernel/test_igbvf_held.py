"""The igbvf port sends from VM1's memory: what the VF reads there, and when VM1 has it back."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from driver.igbvf.queue import TX_COUNT
from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction
from guest.mapping import Mapping
from pmd.kernel import Port
from pmd.kernel_abi import Frame, Segment
from pmd.kernel_library import library
from tests.driver.igb_model import IgbModel
from tests.kernel.holding_port import HELD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WINDOW = 1 << 20


class Sender:
    """A VF that shares one window, and frames that lie in it."""

    def __init__(self, model: IgbModel) -> None:
        self.model = model
        fd = os.memfd_create("window")
        os.ftruncate(fd, WINDOW)
        self.mapping = Mapping(fd, WINDOW, 0, writable=True, name="window")
        os.close(fd)
        self.vf = IgbVf("igbvf:01:10.0", model.name, None, lambda _: OpenFunction(model, ()))
        (spec,) = self.vf.open(1)
        self.port = Port(spec)

    def write(self, offset: int, data: bytes) -> None:
        self.mapping.array(np.uint8, offset, len(data))[:] = np.frombuffer(data, np.uint8)

    def tx(self, *frames: Sequence[tuple[int, int]]) -> list[int]:
        """Verdicts of those taken; a frame is segments: (offset in the window, length)."""
        array = (Frame * len(frames))()
        for frame, parts in zip(array, frames, strict=True):
            segments = (Segment * len(parts))()
            for segment, (offset, length) in zip(segments, parts, strict=True):
                segment.base, segment.length = self.mapping.address + offset, length
            frame.segments, frame.segment_count = segments, len(parts)
            frame.bytes = sum(length for _, length in parts)
        taken = library().rk_port_tx(self.port.handle, array, len(frames))
        return [frame.verdict for frame in array[:taken]]

    def reclaim(self) -> int:
        ops = ctypes.cast(self.port.handle, ctypes.POINTER(ctypes.c_void_p))[0]
        reclaim = ctypes.cast(ops, ctypes.POINTER(ctypes.c_void_p))[4]
        return int(ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)(reclaim)(self.port.handle))

    def close(self) -> None:
        self.port.close()
        self.vf.close()
        self.mapping.close()


@pytest.fixture
def model() -> Iterator[IgbModel]:
    model = IgbModel()
    yield model
    assert model.faults == []
    assert model.dma == {}
    model.dispose()


@pytest.fixture
def sender(model: IgbModel) -> Iterator[Sender]:
    sender = Sender(model)
    sender.vf.share([sender.mapping])
    yield sender
    sender.close()


def test_a_long_frame_is_read_where_it_is(model: IgbModel, sender: Sender) -> None:
    """What VM1 writes before the VF reads is what goes out: there was no copy."""
    sender.write(0x1000, b"a" * 1000)
    assert sender.tx([(0x1000, 1000)]) == [HELD]
    sender.write(0x1000, b"b" * 1000)
    assert sender.reclaim() == 0
    model.run()
    assert model.wire == [b"b" * 1000]
    assert (sender.reclaim(), sender.reclaim(), sender.port.tx_held) == (1, 0, 1)


def test_a_short_frame_is_copied(model: IgbModel, sender: Sender) -> None:
    sender.write(0, b"a" * 63)
    assert sender.tx([(0, 63)], [(0, 14)]) == [0, 0]
    sender.write(0, b"b" * 63)
    model.run()
    assert model.wire == [b"a" * 63, b"a" * 14 + bytes(46)]
    assert (sender.reclaim(), sender.port.tx_held) == (0, 0)


def test_a_chain_is_one_frame_of_several_descriptors(model: IgbModel, sender: Sender) -> None:
    data = bytes(i % 251 for i in range(9000))
    sender.write(0x2000, data)
    parts = [(0x2000, 1), (0x2001, 13), (0x200E, 4000), (0x2FAE, 4986)]
    assert sender.tx(parts) == [HELD]
    model.run()
    assert model.wire == [data]
    assert sender.reclaim() == 1


def test_many_pieces_are_copied(model: IgbModel, sender: Sender) -> None:
    sender.write(0, b"c" * 900)
    assert sender.tx([(100 * i, 100) for i in range(9)]) == [0]
    assert sender.tx([(100 * i, 100) for i in range(8)]) == [HELD]
    model.run()
    assert model.wire == [b"c" * 900, b"c" * 800]


def test_the_windows_last_byte(model: IgbModel, sender: Sender) -> None:
    sender.write(WINDOW - 300, b"z" * 300)
    assert sender.tx([(WINDOW - 300, 300)]) == [HELD]
    model.run()
    assert model.wire == [b"z" * 300]


def test_a_segment_that_leaves_the_window_is_copied(model: IgbModel) -> None:
    """Only the first half of what is mapped here is shared."""
    sender = Sender(model)

    class FirstHalf:
        address = sender.mapping.address
        size = WINDOW // 2
        writable = True

    sender.vf.share([cast("Mapping", FirstHalf)])
    sender.write(WINDOW // 2 - 600, b"x" * 1200)
    assert sender.tx([(WINDOW // 2 - 600, 601)], [(WINDOW // 2 - 600, 600)]) == [0, HELD]
    model.run()
    assert model.wire == [b"x" * 601, b"x" * 600]
    sender.close()


def test_memory_beyond_the_window_is_copied(model: IgbModel, sender: Sender) -> None:
    """The frame begins inside; all of it is readable here, but not by the VF."""
    outside = ctypes.create_string_buffer(b"y" * 400, 400)
    delta = ctypes.addressof(outside) - sender.mapping.address
    assert sender.tx([(0, 300), (delta, 400)]) == [0]
    model.run()
    assert model.wire == [bytes(300) + b"y" * 400]


def test_held_and_copied_keep_their_order(model: IgbModel, sender: Sender) -> None:
    frames = []
    for number in range(5 * TX_COUNT):
        size = 60 if number % 3 else 600
        data = bytes([number % 256]) * size
        sender.write(1024 * (number % 512), data)
        frames.append(data)
        verdict = sender.tx([(1024 * (number % 512), size)])
        assert verdict == [0 if number % 3 else HELD]
        model.run()
    assert model.wire == frames
    assert sender.reclaim() == sender.port.tx_held == -(-5 * TX_COUNT // 3)


def test_the_ring_bounds_what_is_held(model: IgbModel, sender: Sender) -> None:
    model.completes = False
    taken = sender.tx(*[[(0, 300), (300, 300)]] * TX_COUNT)
    assert taken == [HELD] * ((TX_COUNT - 1) // 2)
    model.run()
    assert (sender.reclaim(), sender.tx([(0, 300)])) == (0, [HELD])
    assert sender.tx([(0, 300)]) == []
    model.run()


def test_without_its_window_the_vf_copies(model: IgbModel, sender: Sender) -> None:
    assert len(model.dma) == 2
    assert len(model.read_only) == 0  # we may write it, and so may the VF
    for _ in range(3):
        sender.vf.unshare()
        assert len(model.dma) == 1
        assert sender.tx([(0, 1000)]) == [0]
        model.run()
        sender.vf.share([sender.mapping])
        assert sender.tx([(0, 1000)]) == [HELD]
        model.run()
    iovas = sorted(model.dma)
    sender.vf.unshare()
    sender.vf.share([sender.mapping])
    assert sorted(model.dma) == iovas  # addresses come back: they cannot run out


def test_a_window_that_cannot_be_mapped(model: IgbModel) -> None:
    sender = Sender(model)
    model.dma_limit = 1 << 20
    assert "may not lock that much memory" in str(sender.vf.share([sender.mapping]))
    assert sender.tx([(0, 1000)]) == [0]
    model.run()
    assert model.wire == [bytes(1000)]
    sender.close()
