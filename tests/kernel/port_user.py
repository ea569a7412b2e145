"""A port as the kernel's queues use it: frames in, frames out, nothing between."""

from __future__ import annotations

import ctypes
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from driver.offload import PLAIN, Offload
from guest.closing import Closing
from pmd.kernel import Port, drop_names
from pmd.kernel_abi import BURST_MAX, Frame, Segment
from pmd.kernel_abi import Offload as OffloadStructure
from pmd.kernel_library import library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from driver.software_vf import PortSpec, Vf

DEADLINE_S = 30.0


def until(done: Callable[[], bool], what: str) -> None:
    """Polls until done; fails after a generous time."""
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end, f"timed out: {what}"
        time.sleep(0.001)


class PortUser(Closing):
    """Opens a port and moves frames. A frame is bytes, or a list of bytes: its segments.

    offloads: of the frames last shown.
    """

    def __init__(self, spec: PortSpec) -> None:
        self.port = Port(spec)
        self.offloads: list[Offload] = []

    def tx(self, frames: Sequence[bytes | list[bytes]], offload: Offload = PLAIN) -> list[str]:
        """The verdicts of the frames it consumed, "sent" among them. offload: of each of them."""
        count = len(frames)
        array = (Frame * max(count, 1))()
        buffers = []
        for frame, parts in zip(array, frames, strict=False):
            parts_list = [parts] if isinstance(parts, bytes) else parts
            segments = (Segment * len(parts_list))()
            for segment, part in zip(segments, parts_list, strict=True):
                # Exactly as large as the part: a read past it is one the sanitizer sees.
                buffer = (ctypes.c_char * len(part)).from_buffer_copy(part)
                buffers.append(buffer)
                segment.base, segment.length = ctypes.addressof(buffer), len(part)
            frame.segments = segments
            frame.segment_count = len(parts_list)
            frame.bytes = sum(map(len, parts_list))
            frame.offload = OffloadStructure.from_buffer_copy(offload.pack())
        taken = library().rk_port_tx(self.port.handle, array, count)
        assert taken <= count
        return [drop_names()[frame.verdict] for frame in array[:taken]]

    def tx_all(self, frames: Sequence[bytes | list[bytes]]) -> None:
        """Sends all, however often it takes."""
        rest = list(frames)

        def send() -> bool:
            verdicts = self.tx(rest[:BURST_MAX])
            assert set(verdicts) <= {"sent"}
            del rest[: len(verdicts)]
            return not rest

        until(send, "the port to take all frames")

    def rx(self, count: int = BURST_MAX) -> list[bytes]:
        """The frames shown, which stay."""
        array = (Frame * count)()
        shown = library().rk_port_rx(self.port.handle, array, count)
        assert shown <= count
        frames = []
        self.offloads = [Offload.parse(bytes(frame.offload)) for frame in array[:shown]]
        for frame in array[:shown]:
            segments = frame.segments[: frame.segment_count]
            assert all(segment.length for segment in segments)
            whole = b"".join(ctypes.string_at(each.base, each.length) for each in segments)
            assert len(whole) == frame.bytes
            frames.append(whole)
        return frames

    def done(self, count: int) -> None:
        """Takes the first count off."""
        library().rk_port_rx_done(self.port.handle, count)

    def take(self, count: int = BURST_MAX) -> list[bytes]:
        """The frames shown, taken off; what is shown twice must be the same."""
        frames = self.rx(count)
        assert self.rx(count)[: len(frames)] == frames
        self.done(len(frames))
        return frames

    def take_all(self, count: int) -> list[bytes]:
        """Waits for count frames."""
        frames: list[bytes] = []

        def receive() -> bool:
            frames.extend(self.take(min(BURST_MAX, count - len(frames))))
            return len(frames) == count

        until(receive, f"{count} frames to arrive")
        return frames

    @property
    def missed(self) -> int:
        return self.port.rx_missed

    def close(self) -> None:
        self.port.close()


class VfUser(Closing):
    """An open VF with its ports, closed in reverse."""

    def __init__(self, vf: Vf, queue_pairs: int = 1) -> None:
        with ExitStack() as stack:
            stack.callback(vf.close)
            self.ports = [stack.enter_context(PortUser(spec)) for spec in vf.open(queue_pairs)]
            self._stack = stack.pop_all()

    def __getitem__(self, pair: int) -> PortUser:
        return self.ports[pair]

    def close(self) -> None:
        self._stack.close()
