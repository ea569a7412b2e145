"""A port that holds frames, as a VF that reads them where they are does: late, in order, or never.

It is a struct rk_port whose operations are Python's. What it sends it reads at `finish`, not at
tx(): a buffer that was returned and used again before shows.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int32, c_uint32, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any

from pmd.handle import Handle
from pmd.kernel_abi import Frame

if TYPE_CHECKING:
    from collections.abc import Callable

HELD = 0x100  # RK_HELD
WAKE_NONE = -1  # RK_WAKE_NONE

TransferFunction = CFUNCTYPE(c_uint32, c_void_p, POINTER(Frame), c_uint32)
DoneFunction = CFUNCTYPE(None, c_void_p, c_uint32)
ReclaimFunction = CFUNCTYPE(c_uint32, c_void_p)
CloseFunction = CFUNCTYPE(None, c_void_p)


class PortOps(Structure):
    """struct rk_port_ops."""

    _fields_ = [
        ("kind", c_char_p),
        ("tx", TransferFunction),
        ("rx", TransferFunction),
        ("rx_done", DoneFunction),
        ("reclaim", ReclaimFunction),
        ("close", CloseFunction),
        ("direct", c_void_p),
        ("arm", c_void_p),
        ("disarm", c_void_p),
        ("takes", c_void_p),
    ]


class PortStructure(Structure):
    """struct rk_port."""

    _fields_ = [
        ("ops", POINTER(PortOps)),
        ("rx_missed", c_uint64),
        ("tx_held", c_uint64),
        ("offloads", c_uint32),
        ("reads", c_uint32),
        ("wake_fd", c_int32),
        ("copy_below", c_uint32),
        ("rx_direct", c_uint64),
        ("flush", c_uint32),
    ]


class HoldingPort(Handle):
    """Takes up to `room` frames at once; holds those whose running number `holds` says.

    Attributes:
        sent: Frames as they were read, in the order VM1 sent them; None while still held.
        lie: Added to what reclaim() reports.
        asked: Called when frames for VM1 are asked for; there are none.
    """

    _free = "rk_port_close"

    def __init__(self, holds: Callable[[int], bool], room: int = 1 << 30) -> None:
        self.sent: list[bytes | None] = []
        self.room = room
        self.lie = 0
        self.asked: Callable[[], None] = lambda: None
        self._holds = holds
        self._held: list[tuple[int, list[tuple[int, int]]]] = []
        self._finished = 0
        self._ops = PortOps(
            b"holding",
            TransferFunction(self._tx),
            TransferFunction(self._rx),
            DoneFunction(lambda *_: None),
            ReclaimFunction(self._reclaim),
            CloseFunction(lambda *_: None),
        )
        self._port = PortStructure(ctypes.pointer(self._ops), wake_fd=WAKE_NONE)
        super().__init__(ctypes.addressof(self._port))

    def _rx(self, *_: object) -> int:
        self.asked()
        return 0

    def _tx(self, _: object, frames: Any, count: int) -> int:  # noqa: ANN401 - a ctypes pointer
        taken = min(count, self.room - len(self._held))
        for index in range(taken):
            frame = frames[index]
            segments = [(s.base, s.length) for s in frame.segments[: frame.segment_count]]
            number = len(self.sent)
            if self._holds(number):
                frame.verdict = HELD
                self._held.append((number, segments))
                self.sent.append(None)
            else:
                self.sent.append(_read(segments))
        return taken

    def _reclaim(self, _: object) -> int:
        finished, self._finished = self._finished, 0
        return finished + self.lie

    @property
    def held(self) -> int:
        """Frames it still reads."""
        return len(self._held)

    def finish(self, count: int) -> None:
        """Send the oldest count held frames, as they are now."""
        for number, segments in self._held[:count]:
            self.sent[number] = _read(segments)
        self._finished += len(self._held[:count])
        del self._held[:count]


def _read(segments: list[tuple[int, int]]) -> bytes:
    return b"".join(ctypes.string_at(base, length) for base, length in segments)
