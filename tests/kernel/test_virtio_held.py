"""The virtio-net port sends from VM1's memory, and has the device do what VM1's header asks for."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from driver.passthrough import OpenFunction
from driver.virtio_net.features import Feature
from driver.virtio_net.queue import SIZE_MAX
from driver.virtio_net.vf import VirtioNetVf
from guest.mapping import Mapping
from pmd.kernel import Port
from pmd.kernel_abi import Frame, Offload, Segment
from pmd.kernel_library import library
from tests.driver.virtio_net_model import OFFER
from tests.driver.virtio_net_model import VirtioNetModel as Model
from tests.kernel.holding_port import HELD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WINDOW = 1 << 20
TSO = Feature.CSUM | Feature.HOST_TSO4 | Feature.HOST_TSO6 | Feature.HOST_ECN | Feature.HOST_USO
TSO |= Feature.HOST_UFO
OVERSIZE, SENT = 7, 0
NEEDS_CSUM, DATA_VALID, TCPV4 = 1, 2, 1


class Sender:
    """A VF that shares one window, and frames that lie in it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        fd = os.memfd_create("window")
        os.ftruncate(fd, WINDOW)
        self.mapping = Mapping(fd, WINDOW, 0, writable=True, name="window")
        os.close(fd)
        opened = OpenFunction(model, ())
        self.vf = VirtioNetVf("virtio-net:01:00.0", model.name, None, lambda _: opened)
        (spec,) = self.vf.open(1)
        self.port = Port(spec)
        self.vf.share([self.mapping])

    def write(self, offset: int, data: bytes) -> None:
        self.mapping.array(np.uint8, offset, len(data))[:] = np.frombuffer(data, np.uint8)

    def tx(self, *frames: Sequence[tuple[int, int]], offload: Offload | None = None) -> list[int]:
        """Verdicts of those taken; a frame is segments: (offset in the window, length)."""
        array = (Frame * len(frames))()
        for frame, parts in zip(array, frames, strict=True):
            segments = (Segment * len(parts))()
            for segment, (offset, length) in zip(segments, parts, strict=True):
                segment.base, segment.length = self.mapping.address + offset, length
            frame.segments, frame.segment_count = segments, len(parts)
            frame.bytes = sum(length for _, length in parts)
            if offload is not None:
                frame.offload = offload
        taken = library().rk_port_tx(self.port.handle, array, len(frames))
        return [frame.verdict for frame in array[:taken]]

    def reclaim(self) -> int:
        ops = ctypes.cast(self.port.handle, ctypes.POINTER(ctypes.c_void_p))[0]
        reclaim = ctypes.cast(ops, ctypes.POINTER(ctypes.c_void_p))[4]
        return int(ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)(reclaim)(self.port.handle))

    @property
    def offloads(self) -> int:
        """rk_port.offloads: behind the operations and two counters."""
        return int(ctypes.cast(self.port.handle, ctypes.POINTER(ctypes.c_uint32))[6])

    def close(self) -> None:
        self.port.close()
        self.vf.close()
        self.mapping.close()


@pytest.fixture(params=[0, Feature.RING_PACKED], ids=["split", "packed"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    model = Model(OFFER | TSO | request.param)
    yield model
    assert model.faults == []
    assert model.dma == {}
    model.dispose()


@pytest.fixture
def sender(model: Model) -> Iterator[Sender]:
    sender = Sender(model)
    yield sender
    sender.close()


def test_a_long_frame_is_read_where_it_is(model: Model, sender: Sender) -> None:
    """What VM1 writes before the device reads is what goes out: there was no copy."""
    sender.write(0x1000, b"a" * 1000)
    assert sender.tx([(0x1000, 1000)]) == [HELD]
    sender.write(0x1000, b"b" * 1000)
    assert sender.reclaim() == 0
    model.run()
    assert model.sent == [b"b" * 1000]
    assert (sender.reclaim(), sender.reclaim(), sender.port.tx_held) == (1, 0, 1)


def test_a_short_frame_is_copied(model: Model, sender: Sender) -> None:
    sender.write(0, b"a" * 63)
    assert sender.tx([(0, 63)], [(0, 14)]) == [SENT, SENT]
    sender.write(0, b"b" * 63)
    model.run()
    assert model.sent == [b"a" * 63, b"a" * 14]
    assert (sender.reclaim(), sender.port.tx_held) == (0, 0)


def test_a_chain_is_one_frame(model: Model, sender: Sender) -> None:
    data = bytes(i % 251 for i in range(9000))
    sender.write(0x2000, data)
    assert sender.tx([(0x2000, 1), (0x2001, 13), (0x200E, 4000), (0x2FAE, 4986)]) == [HELD]
    model.run()
    assert model.sent == [data]
    assert sender.reclaim() == 1


def test_many_or_small_pieces_are_copied(model: Model, sender: Sender) -> None:
    sender.write(0, b"c" * 8192)
    assert sender.tx([(256 * i, 256) for i in range(25)]) == [SENT]
    assert sender.tx([(256 * i, 256) for i in range(24)]) == [HELD]
    assert sender.tx([(127 * i, 127) for i in range(8)]) == [SENT]
    assert sender.tx([(128 * i, 128) for i in range(8)]) == [HELD]
    model.run()
    assert model.sent == [b"c" * size for size in (6400, 6144, 1016, 1024)]


def test_where_nothing_is_to_be_copied_short_frames_are_held(model: Model, sender: Sender) -> None:
    library().rk_port_set_copy_below(sender.port.handle, 0)
    sender.write(0, b"d" * 100)
    assert sender.tx([(0, 14)], [(20 * i, 20) for i in range(5)]) == [HELD, HELD]
    model.run()
    assert model.sent == [b"d" * 14, b"d" * 100]


def test_memory_beyond_the_window_is_copied(model: Model, sender: Sender) -> None:
    outside = ctypes.create_string_buffer(b"y" * 400, 400)
    delta = ctypes.addressof(outside) - sender.mapping.address
    assert sender.tx([(0, 300), (delta, 400)]) == [SENT]
    assert sender.tx([(WINDOW - 300, 300)]) == [HELD]
    model.run()
    assert model.sent == [bytes(300) + b"y" * 400, bytes(300)]


def test_held_and_copied_keep_their_order(model: Model, sender: Sender) -> None:
    frames = []
    for number in range(5 * SIZE_MAX):
        size = 100 if number % 3 else 600
        data = bytes([number % 256]) * size
        sender.write(1024 * (number % 512), data)
        frames.append(data)
        verdict = sender.tx([(1024 * (number % 512), size)])
        assert verdict == [SENT if number % 3 else HELD]
        model.run()
    assert model.sent == frames
    assert sender.reclaim() == sender.port.tx_held == -(-5 * SIZE_MAX // 3)


def test_done_in_no_order_is_told_in_order(model: Model, sender: Sender) -> None:
    assert sender.tx(*[[(0, 300)]] * 3) == [HELD] * 3
    chains = [model.take() for _ in range(3)]
    told = []
    for index in (1, 2, 0):
        chain = chains[index]
        assert chain is not None
        model.rings[1].push(chain.id, 0)
        told.append(sender.reclaim())
    assert told == [0, 0, 3]


def test_the_ring_bounds_what_is_held(model: Model, sender: Sender) -> None:
    model.completes = False
    assert sender.tx(*[[(0, 300), (300, 300)]] * SIZE_MAX) == [HELD] * (SIZE_MAX // 3)
    model.run()
    assert (sender.reclaim(), sender.tx([(0, 14)])) == (0, [SENT])
    assert sender.tx([(0, 14)]) == []


def test_without_its_window_the_device_copies(model: Model, sender: Sender) -> None:
    assert (len(model.dma), len(model.read_only)) == (2, 1)
    for _ in range(3):
        sender.vf.unshare()
        assert len(model.dma) == 1
        assert sender.tx([(0, 1000)]) == [SENT]
        model.run()
        sender.vf.share([sender.mapping])
        assert sender.tx([(0, 1000)]) == [HELD]
        model.run()


# ---- offloads


def test_what_the_device_offers_is_what_the_port_does(sender: Sender) -> None:
    assert sender.offloads == 0b111111 << 8  # RK_RING_CSUM ... RK_RING_UFO


def test_a_device_without_offloads() -> None:
    model = Model(OFFER | Feature.CSUM | Feature.HOST_TSO6)
    sender = Sender(model)
    assert sender.offloads == (1 << 8 | 1 << 10)
    sender.close()
    model.offer = OFFER
    sender = Sender(model)
    assert sender.offloads == 0
    sender.close()
    model.dispose()


@pytest.mark.parametrize("size", [100, 1000])
def test_a_checksum_is_asked_for(model: Model, sender: Sender, size: int) -> None:
    asks = Offload(NEEDS_CSUM, 0, 0, 0, 34, 16)
    assert sender.tx([(0, size)], offload=asks) == [HELD if size == 1000 else SENT]
    assert sender.tx([(0, size)]) == [HELD if size == 1000 else SENT]
    model.run()
    assert [header for _, header, _ in model.wire] == [(1, 0, 0, 0, 34, 16), (0,) * 6]


def test_a_frame_to_be_segmented_may_be_long(model: Model, sender: Sender) -> None:
    asks = Offload(NEEDS_CSUM, TCPV4, 54, 1448, 34, 16)
    data = bytes(i % 253 for i in range(65549))
    sender.write(0, data)
    whole = [(0, 65549)]
    parts = [(2500 * i, min(2500, 65549 - 2500 * i)) for i in range(27)]
    assert sender.tx(whole, offload=asks) == [HELD]
    assert sender.tx(parts, offload=asks) == [SENT]
    assert sender.tx(whole) == [OVERSIZE]
    model.run()
    assert model.wire == [(0, (1, TCPV4, 54, 1448, 34, 16), data)] * 2


def test_what_vm1_has_no_business_to_ask(model: Model, sender: Sender) -> None:
    """Bits for the other direction, and a hint that is beyond the frame, stay here."""
    asks = Offload(NEEDS_CSUM | DATA_VALID | 0xFC, TCPV4, 301, 100, 34, 16)
    assert sender.tx([(0, 300)], offload=asks) == [HELD]
    model.run()
    assert model.wire[0][1] == (1, TCPV4, 0, 100, 34, 16)


def test_queue_pairs_do_not_mix() -> None:
    model = Model(OFFER | Feature.MQ)
    model.pairs = 2
    vf = VirtioNetVf("virtio-net:01:00.0", model.name, None, lambda _: OpenFunction(model, ()))
    ports = [Port(spec) for spec in vf.open(2)]
    for number, port in enumerate(ports):
        data = ctypes.create_string_buffer(bytes([number]) * 60, 60)
        segment = Segment(ctypes.addressof(data), 60)
        frame = Frame(ctypes.pointer(segment), 1, 60)
        assert library().rk_port_tx(port.handle, ctypes.byref(frame), 1) == 1
        assert model.receive(bytes([9 - number]) * 60, pair=number)
    model.run()
    assert [(pair, data) for pair, _, data in model.wire] == [(0, bytes(60)), (1, b"\1" * 60)]
    for number, port in enumerate(ports):
        frames = (Frame * 4)()
        assert library().rk_port_rx(port.handle, frames, 4) == 1
        found = ctypes.string_at(frames[0].segments[0].base, frames[0].bytes)
        assert found == bytes([9 - number]) * 60
    model.rings[3].push(77, 0)
    assert vf.look() == ""
    for port in ports:
        library().rk_port_tx(port.handle, None, 0)
    assert vf.look() == "it used more buffers than it was given"
    for port in ports:
        port.close()
    vf.close()
    assert model.faults == []
    model.dispose()
