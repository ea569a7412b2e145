"""VM1's receive ring, a VF that receives into its buffers, and what moves between."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction
from driver.virtio_net.features import Feature
from driver.virtio_net.vf import VirtioNetVf
from pmd.kernel import DirectionStats, Event, Port, Work, drop_names
from tests.driver.virtio_net_model import OFFER
from tests.driver.virtio_net_model import VirtioNetModel as Model
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import BIG, WRITABLE, WRITE, Rig

if TYPE_CHECKING:
    from guest.mapping import Mapping
    from tests.driver.igb_model import IgbModel
    from tests.driver.virtio_ring_model import Chain

SIZE = 32  # of VM1's ring
PAGES = 16  # of BIG
PAGE = 4096
HEADER = 12
LEAST = HEADER + 1514
ORDINARY = 1536  # what Linux posts
NOISE = b"\xa5"
RX = 0


@dataclass(frozen=True)
class Window:
    """What of a mapping a VF needs to be let to it."""

    address: int
    size: int
    writable: bool = True


class Vm1:
    """Posts buffers, each in a page of its own among PAGES, and finds frames in them."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.posted: list[list[tuple[int, int]]] = []
        self._taken = 0

    def post(self, *sizes: int, apart: bool = False) -> None:
        """One buffer of each size; apart: its header's room has a descriptor of its own."""
        for size in sizes:
            number = len(self.posted)
            where = BIG + PAGE * (number % PAGES)
            self.rig.poke(where, NOISE * PAGE)
            parts = [(where, size)]
            if apart:
                parts = [(where, HEADER), (where + 64, size - HEADER)]
            self.posted.append(parts)
            self.rig.chain(2 * number % self.rig.layout.size, parts, WRITE)

    def _returned(self) -> list[int]:
        """Lengths of the buffers used since the last call; they are used in order."""
        if isinstance(self.rig, PackedRig):
            return [each.length or 0 for each in self.rig.driver.reap()]
        count = self.rig.used_index() - self._taken
        return [length for _, length in self.rig.used(count)]

    def received(self) -> list[bytes]:
        """New frames, put together by num_buffers; b"" for a buffer that has none."""
        frames: list[bytes] = []
        missing = 0
        for length in self._returned():
            data = self._content(self.posted[self._taken], length)
            self._taken += 1
            if missing:
                frames[-1] += data
                missing -= 1
                continue
            if length:
                assert data[:10] == bytes(10)  # no offload was negotiated
                missing = struct.unpack("<H", data[10:HEADER])[0] - 1
            frames.append(data[HEADER:])
        assert missing == 0
        return frames

    def _content(self, parts: list[tuple[int, int]], length: int) -> bytes:
        """The first bytes of a buffer; nothing was written behind its end."""
        page = self.rig.peek(parts[0][0], PAGE)
        data = b""
        for begin, size in parts:
            at = begin % PAGE
            data += page[at : at + size]
        assert page[at + size :] == NOISE * (PAGE - at - size)
        return data[:length]


class VfRig:
    """VM1's ring, a VF that receives into its buffers, and what moves between."""

    model: Model | IgbModel

    def __init__(self, rig: Rig, vf: VirtioNetVf | IgbVf) -> None:
        self.vm1 = Vm1(rig)
        self.vf = vf
        (spec,) = vf.open(1)
        self.port = Port(spec)
        windows = [
            Window(each.ctypes.data, len(each), number == WRITABLE)
            for number, each in rig.windows.items()
        ]
        self.windows = cast("list[Mapping]", windows)
        assert vf.share(self.windows) is None
        self.stats = DirectionStats()

    def begin(self) -> bool:
        """Whether what VM1 has posted suits the VF, which has its buffers then."""
        self.queue = self.vm1.rig.queue(self.stats)
        self.work = Work(None, self.queue, self.port)
        if not self.queue.set_direct(self.port):
            return False
        self.restart(direct=True)
        self.turn()
        return True

    def restart(self, *, direct: bool) -> None:
        self.vf.stop_receiving(0)
        self.vf.start_receiving(0)
        self.port.set_direct(direct)

    def turn(self) -> Event:
        self.work.turn(32)
        return self.work.events

    @property
    def drops(self) -> dict[str, int]:
        named = zip(drop_names(), self.stats.drops, strict=False)
        return {name: count for name, count in named if count}

    def close(self) -> None:
        self.port.close()
        self.vf.close()
        assert self.model.faults == []
        assert self.model.dma == {}
        self.model.dispose()


class DirectRig(VfRig):
    """With the VF of a virtio device."""

    model: Model

    def __init__(self, rig: Rig, offer: int) -> None:
        self.model = Model(offer | Feature.RING_RESET)
        name = "virtio-net:01:00.0"
        opened = OpenFunction(self.model, ())
        super().__init__(rig, VirtioNetVf(name, self.model.name, None, lambda _: opened))

    def pop(self) -> Chain:
        chain = self.model.rings[RX].pop()
        assert chain is not None
        return chain


class IgbRig(VfRig):
    """With the VF of an 82576."""

    model: IgbModel

    def __init__(self, rig: Rig, model: IgbModel) -> None:
        self.model = model
        opened = OpenFunction(model, ())
        super().__init__(rig, IgbVf("igbvf:01:10.0", model.name, None, lambda _: opened))


def make(
    *, packed: bool, kind: int, mergeable: bool = True, mtu: int = 0, size: int = SIZE
) -> DirectRig:
    make_rig = PackedRig if packed else Rig
    rig = make_rig(size, mergeable=mergeable, mtu=mtu)
    offer = OFFER if kind & Feature.MRG_RXBUF == 0 else OFFER & ~Feature.MRG_RXBUF
    return DirectRig(rig, offer | kind & ~Feature.MRG_RXBUF)


def frame(number: int, size: int) -> bytes:
    return bytes((number + at * 7) % 251 for at in range(size))
