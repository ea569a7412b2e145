"""A replay cut into slices, told apart by the state the machine was in.

On a shared host two figures are comparable only if the CPUs stood to each other alike, and nobody
else had the other half of a core. A replay with --peer-cpu therefore runs in blocks of 20 ms, with
a probe before and after each, and every slice of 500 us bears its block's tag:

    near_quiet, near_busy, far_quiet, far_busy, untagged

near: a cache line goes one way in 45 ns or less at both ends of the block. quiet: at both ends, on
both CPUs, eight additions took at most 1.1 times as long as they did at best in this run; where
the host's other half of a core is busy they take 1.4 times or more. untagged: without --peer-cpu,
or the probe did not get its CPU. Not counted, but told as "slices_dropped": slices in which nothing
moved, or VM1's thread did not run, for more than 12 us at a stretch (and as long as a burst of 32
frames takes at 4 GB/s: 72 us more for 9000 bytes), and each block's first one.

The JSON result of `vhost-pci-vm1 replay` has, beside what every mode has:

    tx_mpps, rx_mpps            all frames by all time, in million frames a second
    tx_mpps_median, .._best     of pieces of 50 ms (20 ms with --peer-cpu), whatever the tag
    slices                      a list, one object a tag that occurred:
        tag                     as above
        slices                  how many
        tx_mpps_p10, tx_mpps_median, tx_mpps_p90, and the same with rx
    slices_dropped              how many were not counted
    stretches                   a list, one object for as long as blocks bore the same tag:
        tag, begin_s, end_s     seconds of CLOCK_MONOTONIC
    probe                       with --peer-cpu: one_way_ns_best and one_way_ns_median,
                                alu_cycles_best (of eight additions, TSC cycles)
    tsc_hz                      TSC cycles a second
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.vm1.probe import Reading

SLICE_S = 500e-6
BLOCK_S = 0.02
NEAR_S = 45e-9
QUIET_RATIO = 1.1
STILL_S = 12e-6
# A back-end may show a burst at once. A slow copy of it is no standstill.
_BURST = 32
_COPY_BYTES_PER_S = 4e9
UNTAGGED = "untagged"


@dataclass(frozen=True, slots=True)
class Slice:
    """Frames of a short piece of the run, its length, and its longest standstill, in TSC cycles."""

    cycles: int
    sent: int
    received: int
    still_cycles: int


@dataclass(frozen=True, slots=True)
class Block:
    """Slices in a row, and the probes before and after them; None where there is none.

    begin_s, end_s: of CLOCK_MONOTONIC.
    """

    slices: tuple[Slice, ...]
    before: Reading | None = None
    after: Reading | None = None
    begin_s: float = 0.0
    end_s: float = 0.0

    def tag(self, tsc_hz: float, alu_best: float) -> str:
        """The state the machine was in, as the module says."""
        if self.before is None or self.after is None:
            return UNTAGGED
        readings = (self.before, self.after)
        near = max(reading.one_way_cycles for reading in readings) <= NEAR_S * tsc_hz
        slowest = max(max(each.own_alu_cycles, each.peer_alu_cycles) for each in readings)
        quiet = slowest <= QUIET_RATIO * alu_best
        return f"{'near' if near else 'far'}_{'quiet' if quiet else 'busy'}"


def _readings(blocks: Sequence[Block]) -> list[Reading]:
    ends = [end for block in blocks for end in (block.before, block.after)]
    return [end for end in ends if end is not None]


def alu_best_of(readings: Sequence[Reading]) -> float:
    """What eight additions took at best, TSC cycles: the measure of quiet; 0 without a reading."""
    each = [min(reading.own_alu_cycles, reading.peer_alu_cycles) for reading in readings]
    return min(each, default=0.0)


def _rank(values: list[float], share: float) -> float:
    """The value below which that share of the sorted values lies."""
    return values[min(len(values) - 1, int(share * len(values)))]


def still_s(frame_bytes: int) -> float:
    """How long nothing may move, where frames have so many bytes."""
    return STILL_S + _BURST * frame_bytes / _COPY_BYTES_PER_S


def summary(blocks: Sequence[Block], tsc_hz: float, frame_bytes: int) -> dict[str, Any]:
    """The keys "slices" to "tsc_hz" of the module's docstring."""
    still_cycles = still_s(frame_bytes) * tsc_hz
    readings = _readings(blocks)
    alu_best = alu_best_of(readings)
    by_tag: dict[str, list[Slice]] = defaultdict(list)
    seen = 0
    tagged = [(block.tag(tsc_hz, alu_best), block) for block in blocks]
    for tag, block in tagged:
        seen += len(block.slices)
        by_tag[tag] += [s for s in block.slices[1:] if s.still_cycles <= still_cycles]
    tags = [_of_tag(tag, slices, tsc_hz) for tag, slices in sorted(by_tag.items()) if slices]
    found: dict[str, Any] = {
        "slices": tags,
        "slices_dropped": seen - sum(tag["slices"] for tag in tags),
        "stretches": _stretches(tagged),
        "tsc_hz": round(tsc_hz),
    }
    if readings:
        ways = sorted(reading.one_way_cycles / tsc_hz * 1e9 for reading in readings)
        found["probe"] = {
            "one_way_ns_best": round(ways[0], 1),
            "one_way_ns_median": round(statistics.median(ways), 1),
            "alu_cycles_best": round(alu_best, 3),
        }
    return found


def _stretches(tagged: Sequence[tuple[str, Block]]) -> list[dict[str, Any]]:
    """Neighbours of one tag as one, what lies between them included."""
    found = []
    for tag, group in itertools.groupby(tagged, key=lambda each: each[0]):
        blocks = [block for _, block in group]
        begin_s, end_s = round(blocks[0].begin_s, 6), round(blocks[-1].end_s, 6)
        found.append({"tag": tag, "begin_s": begin_s, "end_s": end_s})
    return found


def _of_tag(tag: str, slices: Sequence[Slice], tsc_hz: float) -> dict[str, Any]:
    found: dict[str, Any] = {"tag": tag, "slices": len(slices)}
    for name in "tx", "rx":
        counts = [(s.sent if name == "tx" else s.received, s.cycles) for s in slices]
        rates = sorted(count / cycles * tsc_hz / 1e6 for count, cycles in counts)
        found[f"{name}_mpps_p10"] = round(_rank(rates, 0.1), 3)
        found[f"{name}_mpps_median"] = round(statistics.median(rates), 3)
        found[f"{name}_mpps_p90"] = round(_rank(rates, 0.9), 3)
    return found
