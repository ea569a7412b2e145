"""Latency by offered rate: how long a frame is under way from VM1 through the back-end and back.

Each frame has its time by the clock whatever comes back (an open loop), and its latency counts from
that time. The JSON result of `vhost-pci-vm1 latency` has, beside what every mode has, "latency", a
list with one object for each of --rates:

    rate_pps        offered, frames a second
    sent, received  frames; those of the first 50 ms are not counted
    sent_pps        what could be sent: less than offered where the back-end does not keep up
    p50_ns, p99_ns, p999_ns, max_ns
                    of the frames received; percentiles to 1.6 %, null where none came
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tools.vm1.engine_abi import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.vm1.engine import Engine

_WARM_UP_S = 0.05
_PIECE_S = 0.05
_RETURN_S = 0.2  # what the last frames have to come back in
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
            "sent": self.sent,
            "sent_pps": round(self.sent / self.seconds),
            "received": self.received,
            "p50_ns": in_ns(self.percentile_cycles(0.5)),
            "p99_ns": in_ns(self.percentile_cycles(0.99)),
            "p999_ns": in_ns(self.percentile_cycles(0.999)),
            "max_ns": in_ns(self.most_cycles if self.received else None),
        }


class LatencyRun:
    """Goes through the rates, a piece at a time. Thread rule: one thread.

    Args:
        rates_pps: Frames a second, one step each.
        seconds: Of each step.
        tsc_hz: TSC cycles a second.
    """

    def __init__(self, rates_pps: Sequence[int], seconds: float, tsc_hz: float) -> None:
        self._rates_pps, self._seconds, self._tsc_hz = rates_pps, seconds, tsc_hz
        self._found: list[Found] = []
        self._pieces: Iterator[None] | None = None

    def run(self, engine: Engine) -> Outcome:
        """Run one piece; DONE when there is none left."""
        if self._pieces is None:
            self._pieces = self._steps(engine)
        return Outcome.BUDGET if next(self._pieces, self) is None else Outcome.DONE

    def _steps(self, engine: Engine) -> Iterator[None]:
        for rate_pps in self._rates_pps:
            cycles = self._tsc_hz / rate_pps
            engine.begin_latency(cycles)
            engine.run(_WARM_UP_S)
            engine.begin_latency(cycles)
            begin = time.monotonic()
            while (left_s := begin + self._seconds - time.monotonic()) > 0:
                engine.run(min(left_s, _PIECE_S))
                yield
            sent, seconds = engine.latency().sent, time.monotonic() - begin
            engine.finish()
            engine.run(_RETURN_S)
            found = engine.latency()
            self._found.append(
                Found(
                    rate_pps=rate_pps,
                    seconds=seconds,
                    sent=sent,
                    received=found.received,
                    most_cycles=found.most_cycles,
                    counts=tuple(found.counts),
                )
            )
            yield

    def json_object(self) -> dict[str, Any]:
        """The key "latency" of the module's docstring, of the steps that were finished."""
        return {"latency": [found.json_object(self._tsc_hz) for found in self._found]}
