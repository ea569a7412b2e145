"""What `pmd bench` is told: the command line's words, turned into cases and places."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import Parameter

from guest.cpus import default_lcores, parse_lcores, usable_cpus
from guest.errors import UsageError, VhostPciError
from pmd import bench_case
from pmd.bench_case import Case, Direction, Mode, Poll, Ring
from pmd.bench_feature import Feature
from pmd.config import BURST_MAX

_FLAG = Parameter(negative=())
_LIST = Parameter(negative=())
_TESTPMD = "dpdk-testpmd"
QUICK_SECONDS = 4.0
FULL_SECONDS = 8.0
_RANGES = {
    "size": (60, 9216),
    "queue-size": (2, 32768),
    "burst": (1, BURST_MAX),
    "channels": (1, 64),
    "latency": (1, 100_000_000),
}
_COMBINED = ("mode", "direction", "size", "queue_size", "burst", "channels", "idle", "touch")
_Name = TypeVar("_Name", Mode, Direction, Ring, Poll, Feature)


@Parameter(name="*")
@dataclass(frozen=True)
class BenchFlags:
    """What is measured, and where. Lists are like 64,1518; all combinations are measured.

    Args:
        peer: Measured by turns with pmd: testpmd (DPDK's, with its vhost driver), or the path of
            one; or pmd with another build of its kernel, a FILE.so. May be repeated.
        full: The whole table of docs/performance.md instead of a quick one.
        mode: Our VF: null, copy, loop, patch, gen.
        direction: VM1's rings: tx, rx, both. By default tx for null and copy, rx for patch (its
            second function's) and gen, both for loop.
        size: Frame bytes without FCS.
        queue_size: Descriptors of each ring.
        ring: split, packed.
        burst: Frames taken from a ring at once.
        channels: Functions served at once, 1 to 64.
        idle: So many functions more, whose VM1s do nothing.
        touch: What VM1 writes or reads of each frame: 0 nothing, 1 its first 64 bytes, 2 all of it.
        feature: Instead, what these cost or gain, beside VM1 without each: packed, mrg_rxbuf,
            event_idx, indirect, in_order, mq (four pairs), csum, host_tso4, host_uso, host_ufo,
            guest_csum, or all of them: all.
        lcores: Forwarding CPUs, as of run. By default the last one allowed.
        vm1_cpus: CPUs of the VM1s. By default those below.
        latency: Instead of rates, how long frames of 64 bytes are under way from VM1 through loop
            and back, at these offered rates in frames a second: 10000,1000000.
        poll: With latency, how our lcores wait for them: busy, adaptive, interrupt, as of run.
        seconds: For each case and side.
    """

    peer: Annotated[list[str] | None, _LIST] = None
    full: Annotated[bool, _FLAG] = False
    mode: str | None = None
    direction: str | None = None
    size: str | None = None
    queue_size: str | None = None
    ring: str | None = None
    burst: str | None = None
    channels: str | None = None
    idle: int = 0
    touch: int = 1
    feature: str | None = None
    lcores: Annotated[str | None, Parameter(name=["--lcores", "-l"])] = None
    vm1_cpus: str | None = None
    latency: str | None = None
    poll: str | None = None
    seconds: float | None = None

    def options(self) -> BenchOptions:
        """As facts.

        Raises:
            UsageError: A value cannot be meant.
            VhostPciError: A peer is not installed, or there are too few CPUs.
        """
        lcores, vm1_cpus = _cpus(self.lcores, self.vm1_cpus)
        seconds = (
            (FULL_SECONDS if self.full else QUICK_SECONDS) if self.seconds is None else self.seconds
        )
        if not 0.5 <= seconds <= 3600:
            raise UsageError("use", f"--seconds {seconds:g}", "it is not 0.5 to 3600")
        if self.poll is not None and (self.latency is None or self.peer):
            remedy = "give it with --latency, and no peer"
            raise UsageError("use", f"--poll {self.poll}", "rates and peers are busy", remedy)
        cases = tuple(self._cases())
        peers = tuple(_find(peer) for peer in self.peer or ())
        rates_pps = tuple(_numbers("latency", self.latency))
        return BenchOptions(cases, peers, lcores, vm1_cpus, seconds, rates_pps)

    def _cases(self) -> list[Case]:
        rings = _names("ring", self.ring, Ring) or [Ring.SPLIT]
        _require("idle", self.idle, 0, 63)
        _require("touch", self.touch, 0, 2)
        usual = BenchFlags()
        chosen = [name for name in _COMBINED if getattr(self, name) != getattr(usual, name)]
        if self.latency is not None:
            if chosen or self.full or self.feature:
                raise UsageError("use", "--latency", "it says what is measured", "give it alone")
            return self._latency_cases(rings)
        if self.feature is not None:
            if chosen or self.full or self.peer:
                cause, remedy = "it says what is measured", "give it alone, or with --ring"
                raise UsageError("use", f"--feature {self.feature}", cause, remedy)
            every = ",".join(Feature) if self.feature == "all" else self.feature
            return bench_case.of_features(_names("feature", every, Feature), rings)
        if not chosen:
            return bench_case.full(rings) if self.full else bench_case.quick(rings)
        if self.full:
            name = chosen[0].replace("_", "-")
            raise UsageError("use", f"--{name}", "--full says what is measured", "give one of them")
        found = bench_case.cases(
            modes=_names("mode", self.mode, Mode) or [Mode.NULL],
            directions=_names("direction", self.direction, Direction),
            sizes=_numbers("size", self.size) or [64],
            queue_sizes=_numbers("queue-size", self.queue_size) or [256],
            rings=rings,
            bursts=_numbers("burst", self.burst) or [32],
            channels=_numbers("channels", self.channels) or [1],
            idle=self.idle,
            touch=self.touch,
        )
        if not found:
            cause = f"{self.mode or Mode.NULL} has no frames that way"
            remedy = "null and copy are tx, loop is both, patch is rx, gen is rx or both"
            raise UsageError("measure", f"--direction {self.direction}", cause, remedy)
        for case in found:
            if case.queue_size & (case.queue_size - 1) and case.ring == Ring.SPLIT:
                raise UsageError("use", f"--queue-size {case.queue_size}", "it is no power of two")
        return found

    def _latency_cases(self, rings: list[Ring]) -> list[Case]:
        polls = _names("poll", self.poll, Poll) or [Poll.BUSY]
        loop = Case(Mode.LOOP, Direction.BOTH, 64)
        return [replace(loop, ring=ring, poll=poll) for ring in rings for poll in polls]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """All of a benchmark.

    Attributes:
        peers: Programs.
        seconds: Of each case and side.
        rates_pps: Of latency; empty: rates are measured.
    """

    cases: tuple[Case, ...]
    peers: tuple[str, ...]
    lcores: tuple[int, ...]
    vm1_cpus: tuple[int, ...]
    seconds: float
    rates_pps: tuple[int, ...] = ()


def is_kernel(peer: str) -> bool:
    """Whether a peer is a build of our kernel, and no program."""
    return peer.endswith(".so")


def _find(peer: str) -> str:
    """The program that --peer names: `testpmd`, or the path of one; or the kernel that it is."""
    if is_kernel(peer):
        if not Path(peer).is_file():
            raise VhostPciError("find", f"--peer {peer}", "there is no such file")
        return str(Path(peer).absolute())
    found = shutil.which(_TESTPMD if peer == "testpmd" else peer)
    if found is None:
        remedy = "install it (Debian: dpdk-dev), give the path of one, or leave --peer out"
        raise VhostPciError("find", f"--peer {peer}", "there is no such program", remedy)
    return found


def _names(flag: str, text: str | None, kind: type[_Name]) -> list[_Name]:
    try:
        return [kind(word) for word in _words(text)]
    except ValueError as error:
        known = ", ".join(kind)
        raise UsageError("use", f"--{flag} {text}", "it is none", f"there are {known}") from error


def _numbers(flag: str, text: str | None) -> list[int]:
    least, most = _RANGES[flag]
    found = []
    for word in _words(text):
        if re.fullmatch("[0-9]{1,9}", word) is None or not least <= int(word) <= most:
            raise UsageError("use", f"--{flag} {text}", f"{word!r} is not {least} to {most}")
        found.append(int(word))
    return found


def _require(flag: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError("use", f"--{flag} {value}", f"it is not {least} to {most}")


def _words(text: str | None) -> list[str]:
    return [] if text is None else [word.strip() for word in text.split(",")]


def _cpus(lcores: str | None, vm1_cpus: str | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Forwarding CPUs and those of VM1s, none in both."""
    usable = sorted(usable_cpus())
    if len(usable) < 2:
        cause = f"this process may use {len(usable)} CPU"
        remedy = "it takes one that forwards and one that drives it"
        raise VhostPciError("measure on", "this machine", cause, remedy)
    forwarding = parse_lcores(lcores) if lcores else default_lcores(1)
    driving = (
        parse_lcores(vm1_cpus)
        if vm1_cpus
        else tuple(cpu for cpu in usable if cpu not in forwarding)
    )
    both = set(forwarding) & set(driving)
    if both or not driving:
        cause = f"CPU {min(both)} is there twice" if both else "no CPU is left for VM1"
        remedy = "VM1 and pmd need CPUs of their own"
        raise UsageError("use", f"--lcores {lcores or forwarding[0]}", cause, remedy)
    return forwarding, driving
