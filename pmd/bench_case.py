"""What a benchmark moves where: one case, and the tables of cases."""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pmd.bench_feature import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FULL_SIZES = (64, 256, 512, 1024, 1518, 9000)


BURST = 32


class Mode(enum.StrEnum):
    """Our VF. What a peer does instead is in pmd/bench_testpmd.py."""

    NULL = "null"
    COPY = "copy"
    LOOP = "loop"
    PATCH = "patch"
    GEN = "gen"


class Direction(enum.StrEnum):
    """Which of VM1's rings carry frames: tx VM1 -> VF, rx VF -> VM1."""

    TX = "tx"
    RX = "rx"
    BOTH = "both"


class Ring(enum.StrEnum):
    """How VM1 lays its rings out (virtio 1.3, 2.7 and 2.8)."""

    SPLIT = "split"
    PACKED = "packed"


class Poll(enum.StrEnum):
    """How our lcores wait for frames: `pmd run --poll`."""

    BUSY = "busy"
    ADAPTIVE = "adaptive"
    INTERRUPT = "interrupt"


_DIRECTIONS = {
    Mode.NULL: (Direction.TX,),
    Mode.COPY: (Direction.TX,),
    Mode.LOOP: (Direction.BOTH,),
    Mode.PATCH: (Direction.RX,),
    Mode.GEN: (Direction.RX, Direction.BOTH),
}
_WORDS = {
    (Mode.NULL, Direction.TX): "VM1 -> VF",
    (Mode.COPY, Direction.TX): "VM1 -> VF, copied",
    (Mode.LOOP, Direction.BOTH): "VM1 -> loop -> VM1",
    (Mode.PATCH, Direction.RX): "VM1 -> VM1'",
    (Mode.GEN, Direction.RX): "VF -> VM1",
    (Mode.GEN, Direction.BOTH): "both ways, each",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table.

    Attributes:
        direction: null and copy only take frames, and loop gives back what it takes; patch takes
            them at one function and gives them to another, where they are counted; gen has frames,
            and may take some as well.
        frame_bytes: Without FCS.
        queue_size: Descriptors of each ring.
        burst: Chains a turn takes from a ring at most.
        channels: Functions, each with a VM1 and a VF of its own; of patch, so many pairs of them.
        idle: So many more whose VM1 neither sends nor is sent anything.
        touch: What VM1 does for each frame. 1: writes (reads) descriptor, header and 64 bytes anew;
            2: the whole frame; 0: nothing but its indices, which shows the back-end alone.
        feature: What is measured beside the same without it; without: that is this one.
        poll: How ours waits.
    """

    mode: Mode
    direction: Direction
    frame_bytes: int
    queue_size: int = 256
    ring: Ring = Ring.SPLIT
    burst: int = BURST
    channels: int = 1
    idle: int = 0
    touch: int = 1
    feature: Feature | None = None
    without: bool = False
    poll: Poll = Poll.BUSY

    @property
    def counterpart(self) -> Self:
        """The same without its feature."""
        split = self.feature == Feature.PACKED
        return replace(self, without=True, ring=Ring.SPLIT if split else self.ring)

    @property
    def name(self) -> str:
        """Tells it from all others."""
        parts = [self.mode, self.direction, f"{self.frame_bytes}B", self.ring]
        parts += [f"q{self.queue_size}", f"b{self.burst}", f"c{self.channels}"]
        parts += [*[f"i{self.idle}"] * (self.idle > 0), f"t{self.touch}"]
        return "-".join([*parts, *([self.feature] if self.feature else [])])

    @property
    def ends(self) -> int:
        """Functions that a channel takes."""
        return 2 if self.mode == Mode.PATCH else 1

    @property
    def functions(self) -> int:
        """Of all its channels, then those that are idle."""
        return self.channels * self.ends + self.idle

    def vf(self, function: int) -> str:
        """Our VF's spec for a function; an idle one's sends nothing."""
        if function >= self.channels * self.ends:
            return str(Mode.NULL)
        if self.mode == Mode.PATCH:
            return f"{self.mode}:{function // self.ends}"
        return f"gen:{self.frame_bytes}" if self.mode == Mode.GEN else str(self.mode)

    def functions_of(self, vm1: int) -> range:
        """The functions a VM1 drives: it transmits at the first, and receives at the last."""
        if vm1 < self.channels:
            return range(vm1 * self.ends, (vm1 + 1) * self.ends)
        first = self.channels * (self.ends - 1) + vm1
        return range(first, first + 1)

    @property
    def way(self) -> str:
        """Where frames go, and what is unusual, for people."""
        words = [_WORDS[self.mode, self.direction]]
        words += [f"{self.channels} channels"] * (self.channels > 1)
        words += [f"{self.idle} idle"] * (self.idle > 0)
        words += [f"burst {self.burst}"] * (self.burst != BURST)
        words += [f"touch {self.touch}"] * (self.touch != 1)
        words += [f"with {self.feature}"] * (self.feature is not None)
        return ", ".join(words)


def quick(rings: Sequence[Ring]) -> list[Case]:
    """What `pmd bench` alone measures."""
    return [
        Case(mode, direction, size, ring=ring)
        for ring in rings
        for mode, direction, size in (
            (Mode.NULL, Direction.TX, 64),
            (Mode.NULL, Direction.TX, 1518),
            (Mode.GEN, Direction.RX, 64),
            (Mode.LOOP, Direction.BOTH, 64),
        )
    ]


def full(rings: Sequence[Ring]) -> list[Case]:
    """The whole table: frame sizes each way, then queue sizes, bursts and channels at 64 bytes."""
    found = []
    for ring in rings:
        for mode, direction, size in itertools.product(Mode, Direction, FULL_SIZES):
            if direction in _DIRECTIONS[mode]:
                found += [Case(mode, direction, size, ring=ring)]
        usual = Case(Mode.NULL, Direction.TX, 64, ring=ring)
        for queue_size in (128, 1024, 4096):
            found += _each_way(replace(usual, queue_size=queue_size))
        for burst in (8, 256):
            found += _each_way(replace(usual, burst=burst))
        # Not towards VM1s, which take turns on a CPU: a peer makes frames for all of them.
        for channels in (2, 4, 8):
            found.append(replace(usual, channels=channels))
        found += _each_way(replace(usual, touch=0))
    return found


_OF_FEATURES = {
    Feature.PACKED: ((Mode.NULL, 64), (Mode.GEN, 64)),
    Feature.MRG_RXBUF: ((Mode.GEN, 64), (Mode.GEN, 9000)),
    Feature.EVENT_IDX: ((Mode.NULL, 64), (Mode.GEN, 64)),
    Feature.INDIRECT: ((Mode.NULL, 64),),
    Feature.IN_ORDER: ((Mode.NULL, 64), (Mode.GEN, 64)),
    Feature.MQ: ((Mode.NULL, 64),),
    # What the VF does not do is done in software: copy's does neither.
    Feature.CSUM: ((Mode.COPY, 1518),),
    Feature.HOST_TSO4: ((Mode.COPY, 9000),),
    Feature.HOST_USO: ((Mode.COPY, 9000),),
    Feature.HOST_UFO: ((Mode.COPY, 9000),),
    # loop gives VM1 back what it left undone.
    Feature.GUEST_CSUM: ((Mode.LOOP, 1518),),
}


def of_features(features: Sequence[Feature], rings: Sequence[Ring]) -> list[Case]:
    """What shows what each of them costs or gains; packed rings only once."""
    found = []
    for feature in features:
        for ring in (Ring.PACKED,) if feature == Feature.PACKED else rings:
            for mode, size in _OF_FEATURES[feature]:
                found.append(Case(mode, _DIRECTIONS[mode][0], size, ring=ring, feature=feature))
    return found


def _each_way(sends: Case) -> Iterator[Case]:
    yield sends
    yield replace(sends, mode=Mode.GEN, direction=Direction.RX)


def cases(
    *,
    modes: Sequence[Mode],
    directions: Sequence[Direction],
    sizes: Sequence[int],
    queue_sizes: Sequence[int],
    rings: Sequence[Ring],
    bursts: Sequence[int],
    channels: Sequence[int],
    idle: int = 0,
    touch: int = 1,
) -> list[Case]:
    """All combinations that mean something, perhaps none; directions empty: a mode's usual one."""
    found = []
    for mode, ring, many, queue_size, burst, size in itertools.product(
        modes, rings, channels, queue_sizes, bursts, sizes
    ):
        possible = _DIRECTIONS[mode]
        chosen = [each for each in directions if each in possible] if directions else possible[:1]
        found += [
            Case(mode, each, size, queue_size, ring, burst, many, idle, touch) for each in chosen
        ]
    return found
