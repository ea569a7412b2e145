"""What a run found, as one JSON object or a line."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tools.vm1.engine_abi import PROTOCOL_COUNTERS, TRAFFIC_COUNTERS, Stats
from tools.vm1.options import Direction, Mode, Options

if TYPE_CHECKING:
    from collections.abc import Sequence


class Ended(enum.StrEnum):
    """Why a run ended."""

    DONE = "done"
    TIMEOUT = "timeout"
    SIGNAL = "signal"
    SECONDS = "seconds"
    DISCONNECTED = "disconnected"


@dataclass(frozen=True, slots=True)
class Noticed:
    """What the control path noticed.

    base_mismatch: rings whose GET_VRING_BASE was not the used index seen. error_signals: writes
    of the back-end to error eventfds. reconnects: back-ends after the first.
    """

    base_mismatch: int = 0
    error_signals: int = 0
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot of vm1_stats by name, and what the control path noticed."""

    values: dict[str, int]
    noticed: Noticed

    @classmethod
    def of(cls, stats: Sequence[Stats], noticed: Noticed) -> Counters:
        """The counters as they are now, of all engines together."""
        names = TRAFFIC_COUNTERS + PROTOCOL_COUNTERS
        return cls(
            {name: sum(int(getattr(each, name)) for each in stats) for name in names}, noticed
        )

    @property
    def protocol_error_kinds(self) -> dict[str, int]:
        """What the back-end did wrong, by kind, none of them 0."""
        kinds = {name: self.values[name] for name in PROTOCOL_COUNTERS}
        kinds["base_mismatch"] = self.noticed.base_mismatch
        return {name: count for name, count in kinds.items() if count}

    def json_object(self) -> dict[str, Any]:
        """For the control socket, and the middle of the result."""
        traffic = {name: self.values[name] for name in TRAFFIC_COUNTERS}
        kinds = self.protocol_error_kinds
        return traffic | {
            "protocol_errors": sum(kinds.values()),
            "protocol_error_kinds": kinds,
            "error_signals": self.noticed.error_signals,
            "reconnects": self.noticed.reconnects,
        }


def lost(options: Options, counters: Counters, *, complete: bool) -> int:
    """Frames that should have come and did not.

    In a loop those sent; of a peer's stream --count of them, where the run went to its end, or
    else those that others came after.
    """
    values, traffic = counters.values, options.traffic
    if options.mode != Mode.VERIFY or not traffic.direction & Direction.RX:
        return 0
    if traffic.loops:
        return values["sent"] - values["distinct"]
    expected = traffic.count if complete else 0
    return max(expected, values["highest"]) - values["distinct"]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run. measured: what a recorder or a latency run adds to the JSON object."""

    options: Options
    ended: Ended
    seconds: float
    features: int
    counters: Counters
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """See `lost`."""
        complete = self.ended in {Ended.DONE, Ended.TIMEOUT}
        return lost(self.options, self.counters, complete=complete)

    @property
    def exit_status(self) -> int:
        """0 if nothing was wrong; foreign frames are nobody's fault."""
        wrong = sum(self.counters.protocol_error_kinds.values()) + self.lost
        for name in "duplicated", "reordered", "corrupt":
            wrong += self.counters.values[name]
        return int(wrong != 0 or self.ended == Ended.DISCONNECTED)

    def json_object(self) -> dict[str, Any]:
        """One JSON object: rates in million frames a second, sizes in bytes."""
        head: dict[str, Any] = {
            "mode": self.options.mode.name.lower(),
            "ended": str(self.ended),
            "seconds": round(self.seconds, 6),
            "features": hex(self.features),
            "queue_pairs": self.options.rings.pairs,
            "queue_size": self.options.rings.size,
            "lost": self.lost,
        }
        return head | self.counters.json_object() | self._rates() | self.measured

    def _rates(self) -> dict[str, Any]:
        rates: dict[str, Any] = {}
        values = self.counters.values
        seconds = max(self.seconds, 1e-9)
        for name, total in ("tx", values["sent"]), ("rx", values["received"]):
            rates[f"{name}_mpps"] = round(total / seconds / 1e6, 3)
        return rates

    def line(self) -> str:
        """For people."""
        found = self.json_object()
        names = ["sent", "received"]
        if self.options.mode == Mode.VERIFY:
            names += ["lost", "duplicated", "reordered", "corrupt", "foreign"]
        counts = ", ".join(f"{name} {found[name]}" for name in [*names, "protocol_errors"])
        rates = f"tx {found['tx_mpps']:.3f} rx {found['rx_mpps']:.3f} Mpps"
        kinds = ", ".join(f"{name} {n}" for name, n in found["protocol_error_kinds"].items())
        tail = f" ({kinds})" if kinds else ""
        return (
            f"{found['mode']} ended after {self.seconds:.3f} s ({self.ended}): {counts}{tail}; "
            f"{rates}"
        )
