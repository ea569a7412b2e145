"""Runs a replay piece by piece and keeps what each moved."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tools.vm1.slices import BLOCK_S, Block, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.vm1.engine import Engine
    from tools.vm1.engine_abi import Outcome, Stats
    from tools.vm1.probe import Probe, Reading

_PIECE_S = 0.05
# What is kept of a run without an end: the pieces of an hour, the slices of three minutes.
_PIECES_MAX = 1 << 16
_BLOCKS_MAX = 1 << 13


@dataclass(frozen=True, slots=True)
class _Piece:
    seconds: float
    sent: int
    received: int


class Recorder:
    """Keeps pieces, and blocks of slices with the probes around each.

    Thread rule: one thread.

    Args:
        stats: The counters of the engine, and of the one that runs with it.
        probe: Borrowed; None: blocks have no tag.
        tsc_hz: TSC cycles a second.
        frame_bytes: Of the longest frame.
    """

    def __init__(
        self, stats: Sequence[Stats], probe: Probe | None, tsc_hz: float, frame_bytes: int
    ) -> None:
        self._stats = stats
        self._probe, self._tsc_hz, self._frame_bytes = probe, tsc_hz, frame_bytes
        self._pieces: list[_Piece] = []
        self._blocks: list[Block] = []

    def run(self, engine: Engine) -> Outcome:
        """Let the engine run for one piece."""
        before = self._read()
        begin, (sent, received) = time.monotonic(), self._moved()
        outcome = engine.run(_PIECE_S if self._probe is None else BLOCK_S)
        end = time.monotonic()
        seconds = max(end - begin, 1e-9)
        if len(self._pieces) < _PIECES_MAX:
            sent_now, received_now = self._moved()
            self._pieces.append(_Piece(seconds, sent_now - sent, received_now - received))
        if len(self._blocks) < _BLOCKS_MAX:
            # Before the probe: the back-end finishes what it has meanwhile.
            slices = engine.slices()
            self._blocks.append(Block(slices, before, self._read(), begin, end))
        return outcome

    def _moved(self) -> tuple[int, int]:
        sent = sum(each.sent for each in self._stats)
        return sent, sum(each.received for each in self._stats)

    def _read(self) -> Reading | None:
        return None if self._probe is None else self._probe.read()

    def json_object(self) -> dict[str, Any]:
        """What the run found, with the keys that tools/vm1/slices.py tells."""
        rates: dict[str, Any] = {}
        if not self._pieces:
            return rates
        for name in "tx", "rx":
            counts = [(p.sent if name == "tx" else p.received, p.seconds) for p in self._pieces]
            each = sorted(count / seconds / 1e6 for count, seconds in counts)
            rates[f"{name}_mpps_median"] = round(statistics.median(each), 3)
            rates[f"{name}_mpps_best"] = round(each[-1], 3)
        return rates | summary(self._blocks, self._tsc_hz, self._frame_bytes)
