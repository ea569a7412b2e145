"""Statistics for people and programs: the JSON object, the summary, the lines.

Gbit/s count frame bytes as the virtio-net driver sees them, from destination address to payload: no
FCS, preamble or inter-frame gap.
"""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from pmd import kernel

if TYPE_CHECKING:
    from pmd.stats import Channel, Direction, Lcore, Pair, Snapshot


def json_object(first: Snapshot, last: Snapshot) -> dict[str, Any]:
    """The final object of `--json`: everything counted from first to last, and its rates."""
    duration_s = last.time_s - first.time_s
    return {
        "duration_s": round(duration_s, 6),
        "tsc_hz": kernel.tsc_hz(),
        "channels": [_channel(channel, duration_s) for channel in last.channels],
        "lcores": [_lcore(lcore) for lcore in last.lcores],
    }


def _channel(channel: Channel, duration_s: float) -> dict[str, Any]:
    total = channel.total
    return {
        "device": channel.device,
        "vf": channel.vf,
        "vf_mode": channel.vf_mode,
        "vf_counters": dict(channel.vf_counters),
        "state": channel.state,
        **_pair(total, duration_s),
        "reconfigurations": channel.reconfigurations,
        "quarantines": channel.quarantines,
        "queue_pairs": [_pair(pair, duration_s) for pair in channel.pairs],
    }


def _pair(pair: Pair, duration_s: float) -> dict[str, Any]:
    return {
        "vm1_to_vf": _direction(pair.vm1_to_vf, duration_s),
        "vf_to_vm1": _direction(pair.vf_to_vm1, duration_s),
        "rx_missed": pair.at_vf.rx_missed,
        "tx_zero_copy": pair.at_vf.tx_zero_copy,
        "rx_zero_copy": pair.at_vf.rx_zero_copy,
        "rx_mode": pair.receives.mode,
        "rx_redecided": pair.receives.redecided,
        "cycles_per_packet": round(pair.both.cycles_per_packet, 2),
    }


def _direction(direction: Direction, duration_s: float) -> dict[str, Any]:
    return {
        "packets": direction.packets,
        "bytes": direction.bytes,
        "drops": drops(direction),
        "mpps": round(mpps(direction, duration_s), 6),
        "gbps": round(gbps(direction, duration_s), 6),
        "bursts": direction.bursts,
        "calls": direction.calls,
        "flushed": direction.flushed,
        "cycles": direction.cycles,
        "cycles_per_packet": round(direction.cycles_per_packet, 2),
    }


def _lcore(lcore: Lcore) -> dict[str, Any]:
    return {
        "cpu": lcore.cpu,
        "turns": lcore.turns,
        "busy_turns": lcore.busy_turns,
        "busy_ratio": round(lcore.busy_ratio, 4),
        "sleeps": lcore.sleeps,
        "slept_ratio": round(lcore.slept_ratio, 4),
    }


def drops(direction: Direction) -> dict[str, int]:
    """Dropped frames by the reason's name; reasons that never happened are left out."""
    pairs = zip(kernel.drop_names(), direction.drops, strict=False)
    return {name: count for name, count in list(pairs)[1:] if count}


def mpps(direction: Direction, seconds: float) -> float:
    """Millions of frames a second."""
    return direction.packets / seconds / 1e6 if seconds > 0 else 0.0


def gbps(direction: Direction, seconds: float) -> float:
    """Gbit/s of frame bytes."""
    return direction.bytes * 8 / seconds / 1e9 if seconds > 0 else 0.0


def summary(first: Snapshot, last: Snapshot) -> str:
    """The final statistics as text, without a trailing newline."""
    duration_s = last.time_s - first.time_s
    lines = [f"{duration_s:.3f} s"]
    for channel in last.channels:
        total = channel.total
        lines.append(f"{channel.device} - {channel.vf} ({channel.state})")
        lines += _summary_direction("VM1 -> VF", total.vm1_to_vf, duration_s)
        lines += _summary_direction("VF -> VM1", total.vf_to_vm1, duration_s)
        lines.append(
            f"  missed before the VF {total.at_vf.rx_missed}, reconfigurations "
            f"{channel.reconfigurations}, rings quarantined {channel.quarantines}"
        )
        lines += _summary_vf(channel)
    for lcore in last.lcores:
        slept = f", {lcore.slept_ratio:.1%} asleep" if lcore.sleeps else ""
        lines.append(f"lcore {lcore.cpu}: {lcore.busy_ratio:.1%} busy{slept}")
    return "\n".join(lines)


def _summary_vf(channel: Channel) -> list[str]:
    """How the VF was opened, how VM1 receives, and what was counted there; lines with a fact."""
    total = channel.total
    facts = [channel.vf_mode] if channel.vf_mode else []
    if total.at_vf.rx_zero_copy or total.receives.redecided:
        changed = f", changed {total.receives.redecided} times" if total.receives.redecided else ""
        facts.append(f"VM1 receives: {total.receives.mode}{changed}")
    facts += [f"{name} {count}" for name, count in channel.vf_counters.items() if count]
    return [f"  VF: {', '.join(facts)}"] if facts else []


def _summary_direction(name: str, direction: Direction, seconds: float) -> list[str]:
    head = (
        f"  {name}: {direction.packets} packets, {direction.bytes} bytes, "
        f"{mpps(direction, seconds):.3f} Mpps, {gbps(direction, seconds):.3f} Gbit/s, "
        f"{direction.cycles_per_packet:.0f} cycles/packet, {direction.dropped} dropped"
    )
    return [head, *(f"    dropped {reason}: {n}" for reason, n in drops(direction).items())]


class View(Protocol):
    """What a run shows while it goes on. Main thread only."""

    def show(self, before: Snapshot, now: Snapshot) -> None:
        """Show the rates between two snapshots, or nothing while stdout takes nothing.

        Raises:
            BrokenPipeError: Nobody reads any more.
        """
        ...

    def tell(self, first: Snapshot, now: Snapshot) -> None:
        """Print the statistics from first to now, in full.

        Raises:
            BrokenPipeError: As show.
        """
        ...

    def close(self) -> None:
        """Leave the terminal as it should be. Twice is fine."""
        ...


class Silent:
    """`--json`: nothing until asked, or the end."""

    def show(self, before: Snapshot, now: Snapshot) -> None:
        """Show nothing."""

    def tell(self, first: Snapshot, now: Snapshot) -> None:
        """The JSON object, in a line."""
        import json  # noqa: PLC0415 - a library that only this line needs

        print(json.dumps(json_object(first, now)), flush=True)

    def close(self) -> None:
        """Nothing to do."""


class Lines:
    """One line a channel and period, where stdout is not a terminal."""

    def show(self, before: Snapshot, now: Snapshot) -> None:
        """Print the lines and flush them."""
        seconds = now.time_s - before.time_s
        for old, new in both(before, now):
            moved = new.total - old.total
            parts = [
                f"{name} {mpps(direction, seconds):.3f} Mpps {gbps(direction, seconds):.3f} Gbit/s "
                f"{direction.dropped} drops"
                for name, direction in (
                    ("VM1->VF", moved.vm1_to_vf),
                    ("VF->VM1", moved.vf_to_vm1),
                )
            ]
            parts.append(f"{moved.both.cycles_per_packet:.0f} cycles/packet")
            if takes(sys.stdout):
                print(f"{new.device}: {', '.join(parts)}, {new.state}", flush=True)

    def tell(self, first: Snapshot, now: Snapshot) -> None:
        """The summary."""
        print(summary(first, now), flush=True)

    def close(self) -> None:
        """Nothing to do."""


def takes(stream: TextIO) -> bool:
    """Whether lines can be written at once: their reader may have stopped, or Ctrl-S the terminal.

    The thread that prints also answers the devices, which take one that does not for dead.
    """
    return bool(select.select([], [stream], [], 0)[1])


def both(before: Snapshot, now: Snapshot) -> list[tuple[Channel, Channel]]:
    """Each channel before and now; one that came in between was as it is."""
    came = now.channels[len(before.channels) :]
    return list(zip((*before.channels, *came), now.channels, strict=True))


def view(*, json: bool) -> View:
    """The View this stdout calls for."""
    if json:
        return Silent()
    if not sys.stdout.isatty():
        return Lines()
    from pmd.live_table import LiveTable  # noqa: PLC0415 - rich, which only a terminal needs

    return LiveTable()
