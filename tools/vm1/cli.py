"""`vhost-pci-vm1`: the command line. stdout holds the result, stderr errors, one line each."""

from __future__ import annotations

import json as json_format
import os
import secrets
import sys
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations when it runs
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from guest.errors import UsageError, VhostPciError
from pmd.signals import Signals
from tools.vm1 import options as facts
from tools.vm1.options import Direction, Mode, Options, Sizes, Socket
from tools.vm1.report import Ended, Result
from tools.vm1.session import Session

_FLAG = Parameter(negative=())
_COUNT = 1_000_000

app = App(
    name="vhost-pci-vm1",
    help="An embedded VM1: a virtio-net driver that any vhost-user back-end can serve.",
    result_action="return_value",
)


@app.default
def run(
    mode: Literal["replay", "verify", "tap", "idle"],
    *,
    vhost_user: str,
    direction: Literal["tx", "rx", "both"] = "both",
    size: str = "64",
    count: int = _COUNT,
    seconds: float = 0.0,
    window: int = 0,
    timeout: float = 5.0,
    rate: int = 0,
    touch: int = 1,
    transmit_only: Annotated[bool, _FLAG] = False,
    receive_only: Annotated[bool, _FLAG] = False,
    stream: int | None = None,
    peer_stream: int | None = None,
    source: str = "02:00:00:00:00:01",
    destination: str = "02:00:00:00:00:02",
    tap: str = "",
    poll: Annotated[bool, _FLAG] = False,
    queue_size: int = 256,
    queue_pairs: int = 1,
    chain: int = 1,
    receive_chain: int = 1,
    buffer_size: int = 0,
    indirect: Annotated[bool, _FLAG] = False,
    mergeable: bool = True,
    event_idx: bool = True,
    in_order: bool = True,
    legacy: Annotated[bool, _FLAG] = False,
    memory: str = "0",
    memory_regions: int = 1,
    bus_base: str = "1G",
    huge_pages: Annotated[bool, _FLAG] = False,
    cpu: int | None = None,
    reconnect: Annotated[bool, _FLAG] = False,
    connect_timeout: float = 5.0,
    control: Path | None = None,
    json: Annotated[bool, _FLAG] = False,
) -> int:
    """Drive a vhost-user back-end until done, --seconds, SIGINT or SIGTERM.

    Args:
        mode: replay (as fast as it takes them), verify (numbered, checksummed frames are accounted
            for), tap (bridge to a TAP device) or idle (stock the rings and wait).
        vhost_user: PATH to connect to, or PATH,listen to wait at for the back-end.
        direction: replay: the rings to use.
        size: Frame bytes without FCS: 64, 60-1514, or imix.
        count: verify: frames of all queue pairs; 0: until told to stop.
        seconds: How long to run; 0: no limit.
        window: verify: frames in flight of each stream; 0: what the receive rings have room for.
        timeout: verify: seconds without any frame that end the run.
        rate: verify: frames a second at most; 0: no limit.
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
        queue_size: Descriptors of each ring.
        queue_pairs: Receive and transmit rings, each so many.
        chain: Descriptors of a transmitted frame.
        receive_chain: Descriptors of a receive buffer.
        buffer_size: Bytes of a receive buffer; 0: what any frame needs.
        indirect: Put every chain into an indirect table.
        mergeable: Take VIRTIO_NET_F_MRG_RXBUF where it is offered.
        event_idx: Take VIRTIO_F_EVENT_IDX where it is offered.
        in_order: Take VIRTIO_F_IN_ORDER where it is offered.
        legacy: Leave VIRTIO_F_VERSION_1 out.
        memory: VM1's memory, such as 64M; 0: what is needed.
        memory_regions: Regions of the bus address space, with holes between them.
        bus_base: The first bus address: bytes, or such as 1G.
        huge_pages: Take the memory from huge pages.
        cpu: The CPU to run on.
        reconnect: When the back-end goes, wait for the next.
        connect_timeout: Seconds to wait for a back-end to listen.
        control: A socket that answers with the counters as JSON.
        json: Print one JSON object instead of a line.

    Returns:
        The exit status: 1 if a frame was lost, duplicated, reordered or corrupt, or the back-end
        broke the protocol.
    """
    directions = _direction(direction, transmit_only=transmit_only, receive_only=receive_only)
    own, peer = _streams(stream, peer_stream, receive_only=receive_only)
    traffic = facts.TrafficOptions(
        direction=directions,
        sizes=Sizes.parse(size),
        touch=touch,
        count=count,
        rate_pps=rate,
        window=window,
        timeout_s=timeout,
        stream=own,
        peer_stream=peer,
        source=facts.parse_mac("--source", source),
        destination=facts.parse_mac("--destination", destination),
        tap=tap,
        poll=poll,
    )
    rings = facts.RingOptions(
        size=queue_size,
        pairs=queue_pairs,
        chain=chain,
        receive_chain=receive_chain,
        buffer_bytes=buffer_size,
        indirect=indirect,
        mergeable=mergeable,
        event_idx=event_idx,
        in_order=in_order,
        legacy=legacy,
    )
    layout = facts.MemoryOptions(
        size_bytes=facts.parse_bytes("--memory", memory),
        regions=memory_regions,
        bus_base=facts.parse_bytes("--bus-base", bus_base),
        huge_pages=huge_pages,
    )
    wanted = Options(
        mode=Mode[mode.upper()],
        socket=Socket.parse(vhost_user),
        memory=layout,
        rings=rings,
        traffic=traffic,
        cpu=cpu,
        seconds=seconds,
        reconnect=reconnect,
        connect_timeout_s=connect_timeout,
        control=control,
    )
    return _report(_run(wanted), json=json)


def _direction(text: str, *, transmit_only: bool, receive_only: bool) -> Direction:
    if transmit_only and receive_only:
        raise UsageError("use", "--transmit-only", "--receive-only is there too")
    if transmit_only:
        return Direction.TX
    return Direction.RX if receive_only else Direction[text.upper()]


def _streams(own: int | None, peer: int | None, *, receive_only: bool) -> tuple[int, int]:
    """Stream numbers: a run's own are unlike another run's, whose frames may still be about."""
    if receive_only and peer is None:
        raise UsageError("use", "--receive-only", "it needs --peer-stream")
    stream = secrets.randbelow(1 << 30) if own is None else own
    return stream, stream if peer is None else peer


def _run(wanted: Options) -> Result:
    with Signals() as signals:
        signals.serve()
        return Session(wanted, lambda: signals.received).run()


def _report(result: Result, *, json: bool) -> int:
    print(json_format.dumps(result.json_object()) if json else result.line(), flush=True)
    if result.ended == Ended.DISCONNECTED:
        cause = "the back-end closed the connection"
        path = str(result.options.socket.path)
        raise VhostPciError("go on with", path, cause, "--reconnect waits for the next one")
    return result.exit_status


def main() -> None:
    """Entry point of `vhost-pci-vm1`: runs the command and exits with its status."""
    sys.exit(_status(sys.argv[1:]))


def _status(arguments: list[str]) -> int:
    try:
        status = app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        line = " ".join(str(error).split())
        print(f"vhost-pci-vm1: {line}; see vhost-pci-vm1 --help", file=sys.stderr)
        return UsageError.exit_status
    except VhostPciError as error:
        print(f"vhost-pci-vm1: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # Nobody reads any more, and nobody is to be told. Python would try to flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status or 0)


if __name__ == "__main__":
    main()
