"""Latency by offered rate: how long a frame is under way from VM1 through the back-end and back.

Each frame has its time by the clock whatever comes back (an open loop), and its latency counts from
that time. A run is of pieces of 10 ms, or of 20 frames, each of which ends when its last frame is
back, or those that are not are lost: the back-end has returned their buffers, and 20 ms passed in
which none came. With --peer-pid those pieces are left out in which this thread or the back-end's
had to make way for another: what that costs is the scheduler's doing. The JSON result of
`vhost-pci-vm1 latency` has, beside what every mode has, "latency", a list with one object for each
of --rates:

    rate_pps        offered, frames a second
    pieces          how many there were
    pieces_dropped  how many of them were left out
    sent, received  frames of the others; those of the first 50 ms are not counted
    lost            which part of the frames did not come back, in the pieces left out too
    sent_pps        what could be sent: less than offered where the back-end does not keep up
    p50_ns, p99_ns, p999_ns, max_ns
                    of the frames received; percentiles to 1.6 %, null where none came
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tools.vm1.engine_abi import LATENCY_BUCKETS, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.vm1.engine import Engine
    from tools.vm1.engine_abi import LatencyCounts
    from tools.vm1.preemptions import Preemptions

_WARM_UP_S = 0.05
_PIECE_S = 0.01
_PIECE_FRAMES = 20  # at least: a piece has one frame more than its length says
_RETURN_S = 1.0  # what the last frames have to come back in
_LOST_S = 0.02
_EXACT = 128  # buckets of one cycle each: vm1.h struct vm1_latency


def bucket_cycles(bucket: int) -> float:
    """The middle of what a bucket of struct vm1_latency counts, in cycles."""
    if bucket < _EXACT:
        return float(bucket)
    shift = bucket // 64 - 1
    return ((bucket - 64 * shift) << shift) + (1 << shift) / 2


@dataclass(frozen=True, slots=True)
class Found:
    """What came of the frames of one rate; counts are by bucket."""

    rate_pps: int
    seconds: float
    sent: int
    received: int
    most_cycles: int
    counts: tuple[int, ...]
    pieces: int = 1
    dropped: int = 0
    lost: float = 0.0

    def percentile_cycles(self, share: float) -> float | None:
        """The latency that this share of the received frames did not exceed."""
        left = max(1, math.ceil(share * self.received))
        for bucket, count in enumerate(self.counts):
            left -= count
            if left <= 0:
                return min(bucket_cycles(bucket), float(self.most_cycles))
        return None

    def json_object(self, tsc_hz: float) -> dict[str, Any]:
        """An element of "latency"."""

        def in_ns(cycles: float | None) -> int | None:
            return None if cycles is None else round(cycles / tsc_hz * 1e9)

        return {
            "rate_pps": self.rate_pps,
            "pieces": self.pieces,
            "pieces_dropped": self.dropped,
            "sent": self.sent,
            "sent_pps": round(self.sent / self.seconds) if self.seconds else 0,
            "received": self.received,
            "lost": round(self.lost, 6),
            "p50_ns": in_ns(self.percentile_cycles(0.5)),
            "p99_ns": in_ns(self.percentile_cycles(0.99)),
            "p999_ns": in_ns(self.percentile_cycles(0.999)),
            "max_ns": in_ns(self.most_cycles if self.received else None),
        }


@dataclass(slots=True)
class _Sum:
    """Of the pieces of one rate."""

    seconds: float = 0.0
    sent: int = 0
    received: int = 0
    most_cycles: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)
    pieces: int = 0
    dropped: int = 0
    frames: int = 0
    lost: int = 0

    def add(self, piece: LatencyCounts, seconds: float) -> None:
        self.seconds += seconds
        self.sent += piece.sent
        self.received += piece.received
        self.most_cycles = max(self.most_cycles, piece.most_cycles)
        self.counts = [a + b for a, b in zip(self.counts, piece.counts, strict=True)]

    def found(self, rate_pps: int) -> Found:
        return Found(
            rate_pps=rate_pps,
            seconds=self.seconds,
            sent=self.sent,
            received=self.received,
            most_cycles=self.most_cycles,
            counts=tuple(self.counts),
            pieces=self.pieces,
            dropped=self.dropped,
            lost=self.lost / self.frames if self.frames else 0.0,
        )


class LatencyRun:
    """Goes through the rates, a piece at a time. Thread rule: one thread.

    Args:
        rates_pps: Frames a second, one step each.
        seconds: Of each step.
        tsc_hz: TSC cycles a second.
        preemptions: What tells pieces to be left out; None: none is.
    """

    def __init__(
        self,
        rates_pps: Sequence[int],
        seconds: float,
        tsc_hz: float,
        preemptions: Preemptions | None = None,
    ) -> None:
        self._rates_pps, self._seconds, self._tsc_hz = rates_pps, seconds, tsc_hz
        self._preemptions = preemptions
        self._found: list[Found] = []
        self._pieces: Iterator[None] | None = None

    def run(self, engine: Engine) -> Outcome:
        """Run one piece; DONE when there is none left."""
        if self._pieces is None:
            self._pieces = self._steps(engine)
        return Outcome.BUDGET if next(self._pieces, self) is None else Outcome.DONE

    def _steps(self, engine: Engine) -> Iterator[None]:
        for rate_pps in self._rates_pps:
            engine.begin_latency(self._tsc_hz / rate_pps)
            engine.run(_WARM_UP_S)
            found = _Sum()
            end = time.monotonic() + self._seconds
            while found.pieces == 0 or time.monotonic() < end:
                self._piece(engine, rate_pps, found)
                yield
            self._found.append(found.found(rate_pps))
            yield

    def _piece(self, engine: Engine, rate_pps: int, found: _Sum) -> None:
        before = self._preempted()
        # One frame first: once it is back, nobody that made way before that count is still away.
        self._out_and_back(engine, rate_pps, 0.0)
        seconds = self._out_and_back(engine, rate_pps, max(_PIECE_S, _PIECE_FRAMES / rate_pps))
        piece = engine.latency()
        found.pieces += 1
        found.frames += piece.sent
        found.lost += piece.sent - piece.received
        if self._preempted() != before:
            found.dropped += 1
        else:
            found.add(piece, seconds)

    def _out_and_back(self, engine: Engine, rate_pps: int, seconds: float) -> float:
        """Frames counted anew, for so long, until all came back; how long they were sent for."""
        engine.begin_latency(self._tsc_hz / rate_pps)
        begin = time.monotonic()
        engine.run(seconds)
        sent_for_s = time.monotonic() - begin
        engine.finish()
        _await_return(engine)
        return sent_for_s

    def _preempted(self) -> int:
        return self._preemptions.count() if self._preemptions else 0

    def json_object(self) -> dict[str, Any]:
        """The key "latency" of the module's docstring, of the steps that were finished."""
        return {"latency": [found.json_object(self._tsc_hz) for found in self._found]}


def _await_return(engine: Engine) -> None:
    """Until the last frames are back, or as good as lost.

    Time that one side alone spends waiting for lost frames would be pieces that it has fewer.
    """
    end = time.monotonic() + _RETURN_S
    before: int | None = None  # came back by then, when the back-end had no more of our buffers
    while engine.run(_LOST_S) != Outcome.DONE and time.monotonic() < end:
        received = engine.latency().received if engine.drain(0.0) == 0 else None
        if received is not None and received == before:
            return
        before = received
