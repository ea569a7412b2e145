"""What a run of the embedded VM1 is to do: frozen facts, checked before anything is opened."""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from guest.errors import UsageError
from guest.vfio_user_abi import SOCKET_PATH_MAX

FRAME_MIN = 60  # vm1.h VM1_FRAME_MIN: our fields fit
FRAME_MAX = 9216  # vm1.h VM1_FRAME_MAX
CHAIN_MAX = 32  # vm1.h VM1_CHAIN_MAX
PAIRS_MAX = 64  # vm1.h VM1_PAIRS_MAX
REGIONS_MAX = 8  # vhost-user without CONFIGURE_MEM_SLOTS
IMIX_MIN, IMIX_MAX = 60, 1514
_LISTEN = ",listen"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Mode(enum.IntEnum):
    """What VM1 does (vm1.h enum vm1_mode)."""

    REPLAY = 0
    VERIFY = 1
    TAP = 2
    IDLE = 3
    LATENCY = 4


class Leave(enum.IntEnum):
    """What of each replayed frame is left to the device (vm1.h VM1_LEAVE_*)."""

    NOTHING = 0
    CSUM = 1
    TSO = 2
    USO = 3
    UFO = 4


class Direction(enum.IntFlag):
    """Which rings carry frames (vm1.h VM1_TRANSMIT, VM1_RECEIVE)."""

    TX = 1
    RX = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """Frame sizes in bytes without FCS: drawn evenly from least to most, or the simple IMIX."""

    least: int
    most: int
    imix: bool = False

    @classmethod
    def parse(cls, text: str) -> Sizes:
        """`64`, `60-1514` or `imix` (60, 590 and 1514 bytes as 7:4:1); UsageError for others."""
        if text.lower() == "imix":
            return cls(IMIX_MIN, IMIX_MAX, imix=True)
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
        if match is None:
            remedy = "give one size such as 64, a range such as 60-1514, or imix"
            raise UsageError("use", f"--size {text}", "it is no frame size", remedy)
        least = int(match.group(1))
        most = int(match.group(2) or least)
        if not FRAME_MIN <= least <= most <= FRAME_MAX:
            remedy = f"sizes go from {FRAME_MIN} to {FRAME_MAX} bytes, the smaller first"
            raise UsageError("use", f"--size {text}", "it is out of range", remedy)
        return cls(least, most)


@dataclass(frozen=True, slots=True)
class Socket:
    """Where the back-end is: a path to connect to, or to listen at."""

    path: Path
    listen: bool

    @classmethod
    def parse(cls, text: str, flag: str = "--vhost-user") -> Socket:
        """`PATH` or `PATH,listen`; UsageError for an empty path or an unknown suffix."""
        path, comma, suffix = text.partition(",")
        if not path or (comma and comma + suffix != _LISTEN):
            raise UsageError("use", f"{flag} {text}", "it is not PATH or PATH,listen")
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            cause = f"a socket's path has at most {SOCKET_PATH_MAX} bytes"
            raise UsageError("use", f"{flag} {text}", cause)
        return cls(Path(path), listen=bool(comma))


def parse_bytes(flag: str, text: str) -> int:
    """A number of bytes with an optional K, M or G; UsageError for anything else."""
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)", text.upper())
    if match is None:
        raise UsageError("use", f"{flag} {text}", "it is no size", "give bytes, or 64K, 16M, 1G")
    return int(match.group(1)) * _UNITS[match.group(2)]


def parse_rates(text: str) -> tuple[int, ...]:
    """Frames a second, separated by commas; UsageError for anything else."""
    if re.fullmatch(r"[0-9]{1,10}(,[0-9]{1,10}){0,31}", text) is None:
        remedy = "give up to 32 numbers of frames a second, such as 10000,1000000"
        raise UsageError("use", f"--rates {text}", "they are no rates", remedy)
    return tuple(int(number) for number in text.split(","))


def parse_mac(flag: str, text: str) -> bytes:
    """Six hexadecimal bytes with colons; UsageError for anything else."""
    if re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text) is None:
        raise UsageError("use", f"{flag} {text}", "it is no Ethernet address")
    return bytes.fromhex(text.replace(":", ""))


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """How VM1's memory is laid out. size_bytes 0: what is needed."""

    size_bytes: int = 0
    regions: int = 1
    bus_base: int = 1 << 30
    huge_pages: bool = False


@dataclass(frozen=True, slots=True)
class RingOptions:
    """How VM1's rings are made. buffer_bytes is a receive buffer's without header; 0: what fits."""

    size: int = 256
    pairs: int = 1
    chain: int = 1
    receive_chain: int = 1
    buffer_bytes: int = 0
    packed: bool = False
    indirect: bool = False
    mergeable: bool = True
    event_idx: bool = True
    in_order: bool = True
    offloads: bool = False
    leave: Leave = Leave.NOTHING
    guest_csum: bool = False
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """What goes over the rings. Counts and rates are of all queue pairs together."""

    direction: Direction = Direction.BOTH
    sizes: Sizes = Sizes(64, 64)
    touch: int = 1
    count: int = 0
    rate_pps: int = 0
    rates_pps: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    window: int = 0
    timeout_s: float = 5.0
    stream: int = 1
    peer_stream: int = 1
    source: bytes = bytes.fromhex("020000000001")
    destination: bytes = bytes.fromhex("020000000002")
    tap: str = ""
    poll: bool = False
    sleep: bool = False

    @property
    def loops(self) -> bool:
        """Whether our own frames are to come back."""
        return self.stream == self.peer_stream and self.direction == Direction.BOTH


@dataclass(frozen=True, slots=True)
class Options:
    """All of a run. seconds 0: until it is done or a signal comes."""

    mode: Mode
    socket: Socket
    memory: MemoryOptions
    rings: RingOptions
    traffic: TrafficOptions
    cpu: int | None = None
    peer_cpu: int | None = None
    peer_pid: int | None = None
    second: Socket | None = None
    seconds: float = 0.0
    reconnect: bool = False
    connect_timeout_s: float = 5.0
    control: Path | None = None

    def attachments(self) -> tuple[Options, ...]:
        """What each back-end's rings are for: the second's receive what the first's transmit."""
        if self.second is None:
            return (self,)
        transmit = replace(self.traffic, direction=Direction.TX)
        receive = replace(self.traffic, direction=Direction.RX)
        return (
            replace(self, traffic=transmit),
            replace(self, traffic=receive, socket=self.second),
        )

    def check(self) -> None:
        """Raises UsageError for what cannot be meant."""
        _check_rings(self.rings)
        _check_memory(self.memory)
        _check_traffic(self)
        _check_cpus(self)
        _check_second(self)
        _check_offloads(self)


def _require(flag: str, value: object, condition: bool, cause: str) -> None:
    if not condition:
        raise UsageError("use", f"{flag} {value}", cause)


def _check_rings(rings: RingOptions) -> None:
    size = rings.size
    _require("--queue-size", size, 2 <= size <= 32768, "it is not 2 to 32768")
    # 2.7, 2.8.10.1
    power = rings.packed or size & (size - 1) == 0
    _require("--queue-size", size, power, "it is no power of two, which a split ring needs")
    _require(
        "--queue-pairs", rings.pairs, 1 <= rings.pairs <= PAIRS_MAX, f"it is not 1 to {PAIRS_MAX}"
    )
    longest = CHAIN_MAX if rings.indirect else min(CHAIN_MAX, size)
    for flag, chain in ("--chain", rings.chain), ("--receive-chain", rings.receive_chain):
        _require(flag, chain, 1 <= chain <= longest, f"it is not 1 to {longest}")
    buffer = rings.buffer_bytes
    fits = buffer == 0 or FRAME_MIN <= buffer <= FRAME_MAX
    _require("--buffer-size", buffer, fits, f"it is not {FRAME_MIN} to {FRAME_MAX}")


def _check_memory(memory: MemoryOptions) -> None:
    limit = 1 <= memory.regions <= REGIONS_MAX
    _require("--memory-regions", memory.regions, limit, f"it is not 1 to {REGIONS_MAX}")
    aligned = memory.bus_base % 4096 == 0 and 0 <= memory.bus_base < 1 << 56
    _require("--bus-base", hex(memory.bus_base), aligned, "it is no page address below 2^56")


def _check_cpus(options: Options) -> None:
    latency = options.peer_pid is None or options.mode == Mode.LATENCY
    _require("--peer-pid", options.peer_pid, latency, "it is for latency only")
    peer = options.peer_cpu
    if peer is None:
        return
    _require("--peer-cpu", peer, options.mode == Mode.REPLAY, "it is for replay only")
    _require("--peer-cpu", peer, options.cpu is not None, "it needs --cpu")
    _require("--peer-cpu", peer, peer != options.cpu, "that is --cpu too")
    _require("--peer-cpu", peer, 0 <= peer < 1 << 16, "there is no such CPU")


def _check_offloads(options: Options) -> None:
    rings = options.rings
    if rings.offloads:
        _require("--offloads", "", options.mode == Mode.VERIFY, "it is for verify only")
        _require("--offloads", "", not rings.legacy, "it does not go with --legacy")
    if rings.guest_csum:
        _require("--guest-csum", "", options.mode == Mode.REPLAY, "it is for replay only")
        _require("--guest-csum", "", not rings.legacy, "it does not go with --legacy")
    leave, sizes = rings.leave, options.traffic.sizes
    if leave != Leave.NOTHING:
        name = leave.name.lower()
        _require("--leave", name, options.mode == Mode.REPLAY, "it is for replay only")
        _require("--leave", name, not rings.legacy, "it does not go with --legacy")
        _require("--leave", name, sizes.least == sizes.most, "it needs frames of one size")


def _check_second(options: Options) -> None:
    if options.second is None:
        return
    path = options.second.path
    _require("--second", path, options.mode == Mode.REPLAY, "it is for replay only")
    _require("--second", path, path != options.socket.path, "that is --vhost-user too")
    _require("--second", path, not options.reconnect, "it does not go with --reconnect")


def _check_traffic(options: Options) -> None:
    traffic, rings = options.traffic, options.rings
    _require("--touch", traffic.touch, traffic.touch in {0, 1, 2}, "it is not 0, 1 or 2")
    for flag, number in (
        ("--count", traffic.count),
        ("--rate", traffic.rate_pps),
        ("--window", traffic.window),
        ("--seconds", options.seconds),
        ("--connect-timeout", options.connect_timeout_s),
    ):
        _require(flag, number, number >= 0, "it is negative")
    for rate in traffic.rates_pps:
        _require("--rates", rate, 1 <= rate <= 1_000_000_000, "it is not 1 to 1000000000")
    _require("--count", traffic.count, traffic.count < 1 << 63, "it is too large")
    _require("--rate", traffic.rate_pps, traffic.rate_pps < 1 << 63, "it is too large")
    _require("--window", traffic.window, traffic.window < 1 << 31, "it is too large")
    _require("--timeout", traffic.timeout_s, 0 < traffic.timeout_s <= 86400, "it is out of range")
    for flag, stream in ("--stream", traffic.stream), ("--peer-stream", traffic.peer_stream):
        _require(flag, stream, 0 <= stream < 1 << 31, "it is not 0 to 2147483647")
    near = abs(traffic.stream - traffic.peer_stream)
    apart = near == 0 or near >= rings.pairs
    _require("--peer-stream", traffic.peer_stream, apart, "it overlaps the queue pairs' streams")
    _require("--sleep", "", not traffic.sleep or options.mode == Mode.VERIFY, "it is for verify")
    if options.mode == Mode.TAP:
        _require("--tap", traffic.tap, bool(traffic.tap), "tap mode needs a device's name")
    if not traffic.touch:
        for flag, chain in ("--chain", rings.chain), ("--receive-chain", rings.receive_chain):
            even = rings.indirect or chain & (chain - 1) == 0
            _require(flag, chain, even, "--touch 0 needs a power of two")
    buffer, most = rings.buffer_bytes, traffic.sizes.most
    whole = rings.mergeable or not buffer or buffer >= most
    _require("--buffer-size", buffer, whole, f"without merging it cannot hold {most} bytes")
