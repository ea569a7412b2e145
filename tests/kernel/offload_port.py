"""A port that takes some offloads, or none: frames with their headers, both ways.

It is a struct rk_port whose operations are Python's.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from driver.offload import Offload
from pmd.handle import Handle
from pmd.kernel_abi import Frame, Segment
from pmd.kernel_abi import Offload as OffloadStructure
from tests.kernel.holding_port import (
    WAKE_NONE,
    CloseFunction,
    DoneFunction,
    PortOps,
    PortStructure,
    ReclaimFunction,
    TransferFunction,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.offloads import Offloads

Told = tuple[bytes, Offload]


class OffloadPort(Handle):
    """Takes up to `room` frames a call, and has those of `given`.

    Attributes:
        sent: Frames and headers as VM1 sent them, done in software as far as the port lacks it.
        given: Frames and headers for VM1, oldest first, that were not taken.
    """

    _free = "rk_port_close"

    def __init__(self, offloads: Offloads, room: int = 1 << 30) -> None:
        self.sent: list[Told] = []
        self.given: list[Told] = []
        self.room = room
        self._shown: list[object] = []
        self._ops = PortOps(
            b"offload",
            TransferFunction(self._tx),
            TransferFunction(self._rx),
            DoneFunction(self._done),
            ReclaimFunction(),
            CloseFunction(lambda *_: None),
        )
        self._port = PortStructure(
            ctypes.pointer(self._ops), offloads=int(offloads), wake_fd=WAKE_NONE
        )
        super().__init__(ctypes.addressof(self._port))

    def _tx(self, _: object, frames: Any, count: int) -> int:  # noqa: ANN401 - a ctypes pointer
        taken = min(count, self.room)
        for frame in frames[:taken]:
            segments = frame.segments[: frame.segment_count]
            data = b"".join(ctypes.string_at(each.base, each.length) for each in segments)
            assert len(data) == frame.bytes
            self.sent.append((data, Offload.parse(bytes(frame.offload))))
        return taken

    def _rx(self, _: object, frames: Any, count: int) -> int:  # noqa: ANN401 - a ctypes pointer
        self._shown = []
        for index, (data, offload) in enumerate(self.given[:count]):
            buffer = ctypes.create_string_buffer(data, len(data))
            segment = Segment(ctypes.addressof(buffer), len(data))
            self._shown += [buffer, segment]
            header = OffloadStructure.from_buffer_copy(offload.pack())
            frames[index] = Frame(ctypes.pointer(segment), 1, len(data), 0, header)
        return len(self.given[:count])

    def _done(self, _: object, count: int) -> None:
        del self.given[:count]

    def give(self, frames: Iterable[Told]) -> None:
        """Have these for VM1."""
        self.given += frames
