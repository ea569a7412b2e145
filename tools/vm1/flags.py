"""The command line's flags in groups, as typed; each turns into checked facts of `options`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations when it runs
from typing import Annotated, Literal

from cyclopts import Parameter

from guest.errors import UsageError
from tools.vm1.options import (
    Direction,
    Leave,
    MemoryOptions,
    RingOptions,
    Sizes,
    TrafficOptions,
    parse_bytes,
    parse_mac,
    parse_rates,
)

_FLAG = Parameter(negative=())


@Parameter(name="*")
@dataclass(frozen=True)
class TrafficFlags:
    """What goes over the rings.

    Args:
        direction: replay: the rings to use.
        size: Frame bytes without FCS: 64, 60-1514, or imix.
        count: verify: frames of all queue pairs; 0: until told to stop.
        window: verify: frames in flight of each stream; 0: what the receive rings have room for.
        timeout: verify: seconds without any frame that end the run.
        rate: verify: frames a second at most; 0: no limit.
        rates: latency: frames a second, one after the other, each for --seconds (1 by default).
        touch: replay: 0 moves avail.idx only, 1 rewrites descriptor, header and 64 bytes,
            2 the whole frame.
        transmit_only: verify: send, and expect nothing.
        receive_only: verify: expect --peer-stream, and send nothing.
        stream: verify: the number of our first stream, one a queue pair; by default any.
        peer_stream: verify: another VM1's --stream to expect; by default our own, looped back.
        source: Our Ethernet address.
        destination: The Ethernet address frames go to.
        tap: tap: the TAP device's name.
        poll: tap: never sleep.
        sleep: verify: sleep when there is nothing to do, and look at a ring again only when the
            device has called; a frame is in flight until its buffer is back, too.
    """

    direction: Literal["tx", "rx", "both"] = "both"
    size: str = "64"
    count: int = 1_000_000
    window: int = 0
    timeout: float = 5.0
    rate: int = 0
    rates: str = "10000,100000,1000000"
    touch: int = 1
    transmit_only: Annotated[bool, _FLAG] = False
    receive_only: Annotated[bool, _FLAG] = False
    stream: int | None = None
    peer_stream: int | None = None
    source: str = "02:00:00:00:00:01"
    destination: str = "02:00:00:00:00:02"
    tap: str = ""
    poll: Annotated[bool, _FLAG] = False
    sleep: Annotated[bool, _FLAG] = False

    def options(self) -> TrafficOptions:
        """As facts; UsageError for what cannot be read."""
        direction = self._direction()
        stream, peer_stream = self._streams()
        return TrafficOptions(
            direction=direction,
            sizes=Sizes.parse(self.size),
            touch=self.touch,
            count=self.count,
            rate_pps=self.rate,
            rates_pps=parse_rates(self.rates),
            window=self.window,
            timeout_s=self.timeout,
            stream=stream,
            peer_stream=peer_stream,
            source=parse_mac("--source", self.source),
            destination=parse_mac("--destination", self.destination),
            tap=self.tap,
            poll=self.poll,
            sleep=self.sleep,
        )

    def _direction(self) -> Direction:
        if self.transmit_only and self.receive_only:
            raise UsageError("use", "--transmit-only", "--receive-only is there too")
        if self.transmit_only:
            return Direction.TX
        return Direction.RX if self.receive_only else Direction[self.direction.upper()]

    def _streams(self) -> tuple[int, int]:
        """A run's own streams are unlike an earlier run's, whose frames may still be about."""
        if self.receive_only and self.peer_stream is None:
            raise UsageError("use", "--receive-only", "it needs --peer-stream")
        stream = secrets.randbelow(1 << 30) if self.stream is None else self.stream
        return stream, stream if self.peer_stream is None else self.peer_stream


@Parameter(name="*")
@dataclass(frozen=True)
class RingFlags:
    """How the rings are made.

    Args:
        queue_size: Descriptors of each ring; of a split ring a power of two.
        queue_pairs: Receive and transmit rings, each so many.
        chain: Descriptors of a transmitted frame.
        receive_chain: Descriptors of a receive buffer.
        buffer_size: Bytes of a receive buffer; 0: what any frame needs.
        packed: Use packed rings (VIRTIO_F_RING_PACKED).
        indirect: Put every chain into an indirect table.
        mergeable: Take VIRTIO_NET_F_MRG_RXBUF where it is offered.
        event_idx: Take VIRTIO_F_EVENT_IDX where it is offered.
        in_order: Take VIRTIO_F_IN_ORDER where it is offered.
        offloads: verify: take checksum and TCP segmentation offload where they are offered, and
            leave them to the device in half of the frames.
        leave: replay: of each frame, TCP over IPv4, leave the checksum to the device (csum), or its
            cutting into segments of 1448 bytes as well (tso); of UDP over IPv4 its cutting into
            datagrams of as many (uso), or into IP fragments of 1480 bytes (ufo).
        guest_csum: replay: take VIRTIO_NET_F_GUEST_CSUM where it is offered.
        legacy: Leave VIRTIO_F_VERSION_1 out.
    """

    queue_size: int = 256
    queue_pairs: int = 1
    chain: int = 1
    receive_chain: int = 1
    buffer_size: int = 0
    packed: Annotated[bool, _FLAG] = False
    indirect: Annotated[bool, _FLAG] = False
    mergeable: bool = True
    event_idx: bool = True
    in_order: bool = True
    offloads: Annotated[bool, _FLAG] = False
    leave: Literal["nothing", "csum", "tso", "uso", "ufo"] = "nothing"
    guest_csum: Annotated[bool, _FLAG] = False
    legacy: Annotated[bool, _FLAG] = False

    def options(self) -> RingOptions:
        """As facts."""
        return RingOptions(
            size=self.queue_size,
            pairs=self.queue_pairs,
            chain=self.chain,
            receive_chain=self.receive_chain,
            buffer_bytes=self.buffer_size,
            packed=self.packed,
            indirect=self.indirect,
            mergeable=self.mergeable,
            event_idx=self.event_idx,
            in_order=self.in_order,
            offloads=self.offloads,
            leave=Leave[self.leave.upper()],
            guest_csum=self.guest_csum,
            legacy=self.legacy,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class MemoryFlags:
    """How the memory is laid out.

    Args:
        memory: VM1's memory, such as 64M; 0: what is needed.
        memory_regions: Regions of the bus address space, with holes between them.
        bus_base: The first bus address: bytes, or such as 1G.
        huge_pages: Take the memory from huge pages.
    """

    memory: str = "0"
    memory_regions: int = 1
    bus_base: str = "1G"
    huge_pages: Annotated[bool, _FLAG] = False

    def options(self) -> MemoryOptions:
        """As facts; UsageError for what cannot be read."""
        return MemoryOptions(
            size_bytes=parse_bytes("--memory", self.memory),
            regions=self.memory_regions,
            bus_base=parse_bytes("--bus-base", self.bus_base),
            huge_pages=self.huge_pages,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class RunFlags:
    """How the run goes.

    Args:
        seconds: How long to run; 0: no limit.
        cpu: The CPU to run on.
        peer_cpu: replay: the back-end's CPU; each slice is then tagged with the state of both.
        peer_pid: latency: the back-end's process; what came while one was preempted is left out.
        reconnect: When the back-end goes, wait for the next.
        connect_timeout: Seconds to wait for a back-end to listen.
        control: A socket that answers with the counters as JSON.
        json: Print one JSON object instead of a line.
    """

    seconds: float = 0.0
    cpu: int | None = None
    peer_cpu: int | None = None
    peer_pid: int | None = None
    reconnect: Annotated[bool, _FLAG] = False
    connect_timeout: float = 5.0
    control: Path | None = None
    json: Annotated[bool, _FLAG] = False
