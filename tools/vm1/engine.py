"""The hot loop as Python owns it."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError
from tools.vhost_user_abi import Feature
from tools.vm1.engine_abi import (
    SLICES_MAX,
    Config,
    LatencyCounts,
    Offload,
    Outcome,
    RingConfig,
    SliceCounts,
    Stats,
    library,
)
from tools.vm1.options import Direction, Mode
from tools.vm1.rings import header_bytes
from tools.vm1.slices import SLICE_S, Slice

if TYPE_CHECKING:
    from tools.vm1.options import Options
    from tools.vm1.rings import Rings

_NS = 1_000_000_000
_UNBOUNDED = (1 << 32) - 1


def window(options: Options, rings: Rings) -> int:
    """How many frames of one stream may be in flight: what the receive rings surely have room for.

    All streams may end in one receive ring. In a dialogue of two VM1s half is left for
    acknowledgements.
    """
    traffic = options.traffic
    if traffic.window:
        return traffic.window
    if traffic.direction != Direction.BOTH:
        return _UNBOUNDED
    shape = rings.rings[0].shape
    buffers = -(-(traffic.sizes.most + 12) // (shape.frame_capacity + 10))
    room = shape.slot_count // buffers // options.rings.pairs
    return max(1, room if traffic.loops else room // 2)


def _offloads(features: Feature) -> Offload:
    found = Offload(0)
    for offload in Offload:
        name = offload.name or ""
        feature = name if name.startswith("GUEST_") else name.replace("TSO", "HOST_TSO")
        if features & Feature[f"NET_{feature}"]:
            found |= offload
    return found


@functools.cache
def tsc_hz() -> int:
    """TSC cycles a second; measured once, for 20 ms."""
    return int(library().vm1_tsc_hz())


class Engine(Closing):
    """One vm1 object over rings, which must outlive it.

    Thread rule: one thread.

    Args:
        options: What to do.
        rings: On what.
        features: What was negotiated; it does not change afterwards.
        tap_fd: The open TAP device in tap mode, borrowed; else -1.
        stats: Written while it runs; may be read from any thread at any time.

    Raises:
        VhostPciError: No memory, or no library.
    """

    def __init__(
        self, options: Options, rings: Rings, features: Feature, tap_fd: int, stats: Stats
    ) -> None:
        self._library = library()
        self._stats = stats
        traffic = options.traffic
        # Without transmission a VM1 still stocks its receive rings, and the reverse.
        directions = Direction.BOTH if options.mode == Mode.TAP else traffic.direction
        config = Config(
            mode=options.mode,
            pairs=options.rings.pairs,
            header_bytes=header_bytes(features),
            mergeable=bool(features & Feature.NET_MRG_RXBUF),
            directions=Direction.RX if options.mode == Mode.IDLE else directions,
            touch=traffic.touch,
            size_min=traffic.sizes.least,
            size_max=traffic.sizes.most,
            imix=traffic.sizes.imix,
            window=window(options, rings),
            stream=traffic.stream,
            peer_stream=traffic.peer_stream,
            count=traffic.count,
            timeout_ns=round(traffic.timeout_s * _NS),
            rate=traffic.rate_pps,
            destination=(ctypes.c_uint8 * 8)(*traffic.destination),
            source=(ctypes.c_uint8 * 8)(*traffic.source),
            tap_fd=tap_fd,
            poll=traffic.poll,
            offloads=_offloads(features) if options.mode == Mode.VERIFY else Offload(0),
            leave=options.rings.leave,
            sleep=traffic.sleep,
            slice_cycles=round(SLICE_S * tsc_hz()) if options.mode == Mode.REPLAY else 0,
        )
        configs = [ring.config(features) for ring in rings.rings]
        array = (RingConfig * len(configs))(*configs)
        self._handle = self._library.vm1_new(ctypes.byref(config), array, ctypes.byref(stats))
        if not self._handle:
            raise VhostPciError("start", "VM1", os.strerror(ctypes.get_errno()).lower())

    def run(self, budget_s: float) -> Outcome:
        """Run the mode, without the GIL, for budget_s or until it has an outcome."""
        return Outcome(self._library.vm1_run(self._handle, round(budget_s * _NS)))

    def slices(self) -> tuple[Slice, ...]:
        """Those of the last run in replay mode."""
        counts = (SliceCounts * SLICES_MAX)()
        found = self._library.vm1_slices(self._handle, counts, SLICES_MAX)
        return tuple(
            Slice(each.cycles, each.sent, each.received, each.still_cycles)
            for each in counts[:found]
        )

    def join(self, second: Engine) -> None:
        """In replay mode, run the second, which must outlive this one's last run, with this one."""
        self._library.vm1_join(self._handle, second._handle)

    def begin_latency(self, cycles: float) -> None:
        """In latency mode, a frame every so many TSC cycles from now on, counted anew."""
        self._library.vm1_latency_begin(self._handle, cycles)

    def latency(self) -> LatencyCounts:
        """What came of the frames since `begin_latency`."""
        found = LatencyCounts()
        self._library.vm1_latency_found(self._handle, ctypes.byref(found))
        return found

    def touch_clock(self) -> None:
        """Let verify's timeout start anew."""
        self._library.vm1_touch_clock(self._handle)

    def kick(self) -> None:
        """Kick every ring."""
        self._library.vm1_kick(self._handle)

    def base(self, ring: int) -> int:
        """What SET_VRING_BASE says of a ring for a device that goes on behind what is used now.

        A split ring's used index; of a packed one its position and wrap counter, twice.
        """
        return int(self._library.vm1_base(self._handle, ring))

    def finish(self) -> None:
        """Make no further frame: a run is done when those in flight came back."""
        self._library.vm1_finish(self._handle)

    def drain(self, budget_s: float) -> int:
        """Wait until all transmitted chains are used; how many are not."""
        return int(self._library.vm1_drain(self._handle, round(budget_s * _NS)))

    def close(self) -> None:
        """Free it. Twice is fine."""
        if self._handle:
            self._library.vm1_free(self._handle)
            self._handle = None
