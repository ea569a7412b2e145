"""Counters as frozen snapshots. All are monotonic u64 counts since start; rates are differences.

A snapshot is taken while the loops run: each counter is exact by itself, and counters of one
snapshot may be a burst apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pmd.kernel import DirectionStats


def _sums(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _differences(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(left, right, strict=True))


class Direction(NamedTuple):
    """One direction of a queue pair, or of several summed (ringk.h rk_direction_stats).

    Attributes:
        packets, bytes: Forwarded frames, and their bytes without virtio-net header and FCS.
        drops: Dropped frames by `enum rk_drop`.
        bursts: Turns that moved at least one chain.
        cycles: TSC cycles of those turns.
        calls: Interrupts sent to VM1.
        flushed: Chains whose lines were flushed from the caches, as frames went faster so.
    """

    packets: int
    bytes: int
    drops: tuple[int, ...]
    bursts: int
    cycles: int
    calls: int
    flushed: int

    def __add__(self, other: Direction) -> Direction:  # type: ignore[override] # tuples are joined
        return Direction(
            self.packets + other.packets,
            self.bytes + other.bytes,
            _sums(self.drops, other.drops),
            self.bursts + other.bursts,
            self.cycles + other.cycles,
            self.calls + other.calls,
            self.flushed + other.flushed,
        )

    def __sub__(self, other: Direction) -> Direction:
        return Direction(
            self.packets - other.packets,
            self.bytes - other.bytes,
            _differences(self.drops, other.drops),
            self.bursts - other.bursts,
            self.cycles - other.cycles,
            self.calls - other.calls,
            self.flushed - other.flushed,
        )

    @property
    def dropped(self) -> int:
        """Frames dropped, whatever the reason."""
        return sum(self.drops)

    @property
    def cycles_per_packet(self) -> float:
        """TSC cycles of busy turns for each forwarded frame; 0 where none was."""
        return self.cycles / self.packets if self.packets else 0.0


def direction(counters: DirectionStats) -> Direction:
    """The kernel's counters, now."""
    return Direction(
        counters.packets,
        counters.bytes,
        tuple(counters.drops),
        counters.bursts,
        counters.cycles,
        counters.calls,
        counters.flushed,
    )


class AtVf(NamedTuple):
    """What the VF's side of a queue pair counted: frames.

    Attributes:
        rx_missed: Lost before we saw them, as far as it tells.
        tx_zero_copy: Read by the VF from VM1's memory, not copied by us; of those that ask for a
            checksum or to be cut, the VF's driver may copy the headers.
        rx_zero_copy: Written by the VF to VM1's memory, not copied by us.
    """

    rx_missed: int = 0
    tx_zero_copy: int = 0
    rx_zero_copy: int = 0

    def __add__(self, other: AtVf) -> AtVf:  # type: ignore[override] # tuples are joined
        return AtVf(
            self.rx_missed + other.rx_missed,
            self.tx_zero_copy + other.tx_zero_copy,
            self.rx_zero_copy + other.rx_zero_copy,
        )

    def __sub__(self, other: AtVf) -> AtVf:
        return AtVf(
            self.rx_missed - other.rx_missed,
            self.tx_zero_copy - other.tx_zero_copy,
            self.rx_zero_copy - other.rx_zero_copy,
        )


class Receives(NamedTuple):
    """How VM1 receives.

    Attributes:
        mode: "zero-copy": the VF writes to VM1's buffers itself; "copy"; "mixed": of several pairs.
        redecided: How often that changed, by what VM1 posted.
    """

    mode: str = "copy"
    redecided: int = 0

    @classmethod
    def of(cls, direct: bool, redecided: int) -> Receives:
        """By whether the VF writes to VM1's buffers."""
        return cls("zero-copy" if direct else "copy", redecided)

    def __add__(self, other: Receives) -> Receives:  # type: ignore[override] # tuples are joined
        mode = self.mode if self.mode == other.mode else "mixed"
        return Receives(mode, self.redecided + other.redecided)

    def __sub__(self, other: Receives) -> Receives:
        return Receives(self.mode, self.redecided - other.redecided)


class Pair(NamedTuple):
    """A queue pair: its directions, what the VF's side of it counted, and how VM1 receives."""

    vm1_to_vf: Direction
    vf_to_vm1: Direction
    at_vf: AtVf
    receives: Receives = Receives()

    def __add__(self, other: Pair) -> Pair:  # type: ignore[override] # tuples are joined
        return Pair(
            self.vm1_to_vf + other.vm1_to_vf,
            self.vf_to_vm1 + other.vf_to_vm1,
            self.at_vf + other.at_vf,
            self.receives + other.receives,
        )

    def __sub__(self, other: Pair) -> Pair:
        return Pair(
            self.vm1_to_vf - other.vm1_to_vf,
            self.vf_to_vm1 - other.vf_to_vm1,
            self.at_vf - other.at_vf,
            self.receives - other.receives,
        )

    @property
    def both(self) -> Direction:
        """The two directions summed."""
        return self.vm1_to_vf + self.vf_to_vm1


def pair(tx: DirectionStats, rx: DirectionStats, at_vf: AtVf, receives: Receives) -> Pair:
    """The kernel's counters of what VM1 sends and receives, now."""
    return Pair(direction(tx), direction(rx), at_vf, receives)


class Channel(NamedTuple):
    """A channel: one entry a queue pair it ever ran, at least one.

    Attributes:
        state: "forwarding", "waiting" (for VM1), "replug" or "down" (no device).
        reconfigurations: Generations taken over after the first.
        quarantines: Rings taken out since start.
        vf_mode: How the VF was opened, where there are several ways.
        vf_counters: What its device or the kernel counted by itself.
    """

    device: str
    vf: str
    state: str
    pairs: tuple[Pair, ...]
    reconfigurations: int
    quarantines: int
    vf_mode: str
    vf_counters: Mapping[str, int]

    @property
    def total(self) -> Pair:
        """All queue pairs summed."""
        total = self.pairs[0]
        for pair in self.pairs[1:]:
            total += pair
        return total


class Lcore(NamedTuple):
    """A poll loop (ringk.h rk_loop_stats): rounds, and TSC cycles inside the loop."""

    cpu: int
    turns: int
    busy_turns: int
    cycles: int
    busy_cycles: int
    sleeps: int = 0
    slept_cycles: int = 0

    def __sub__(self, other: Lcore) -> Lcore:
        return Lcore(
            self.cpu,
            self.turns - other.turns,
            self.busy_turns - other.busy_turns,
            self.cycles - other.cycles,
            self.busy_cycles - other.busy_cycles,
            self.sleeps - other.sleeps,
            self.slept_cycles - other.slept_cycles,
        )

    @property
    def slept_ratio(self) -> float:
        """Part of the loop's cycles it slept, 0 to 1."""
        return self.slept_cycles / self.cycles if self.cycles else 0.0

    @property
    def busy_ratio(self) -> float:
        """Part of the loop's cycles spent in turns that moved something, 0 to 1."""
        return self.busy_cycles / self.cycles if self.cycles else 0.0


class Snapshot(NamedTuple):
    """Everything at time_s of the monotonic clock."""

    time_s: float
    channels: tuple[Channel, ...]
    lcores: tuple[Lcore, ...]
