"""`vhost-pci-vm1`: the command line. stdout holds the result, stderr errors, one line each."""

from __future__ import annotations

import json
from typing import Literal

from cyclopts import App

from guest.errors import VhostPciError
from pmd import command_line
from pmd.signals import Signals
from tools.vm1.flags import MemoryFlags, RingFlags, RunFlags, TrafficFlags
from tools.vm1.options import Mode, Options, Socket
from tools.vm1.report import Ended, Result
from tools.vm1.session import Session

_NAME = "vhost-pci-vm1"

app = App(
    name=_NAME,
    help="An embedded VM1: a virtio-net driver that any vhost-user back-end can serve.",
    version=lambda: command_line.version(_NAME),
    suppress_keyboard_interrupt=False,
)
_TRAFFIC, _RINGS, _MEMORY, _RUN = TrafficFlags(), RingFlags(), MemoryFlags(), RunFlags()


@app.default
def drive(
    mode: Literal["replay", "verify", "latency", "tap", "idle"],
    *,
    vhost_user: str,
    second: str = "",
    traffic: TrafficFlags = _TRAFFIC,
    rings: RingFlags = _RINGS,
    memory: MemoryFlags = _MEMORY,
    run: RunFlags = _RUN,
) -> int:
    """Drive a vhost-user back-end until done, --seconds, SIGINT or SIGTERM.

    Args:
        mode: replay (as fast as it takes them), verify (numbered, checksummed frames are accounted
            for), latency (stamped frames at offered rates, which the back-end returns), tap (bridge
            to a TAP device) or idle (stock the rings and wait).
        vhost_user: PATH to connect to, or PATH,listen to wait at for the back-end.
        second: replay: the back-end's other port, likewise; transmit at the first, receive here.
        traffic: What goes over the rings.
        rings: How the rings are made.
        memory: How the memory is laid out.
        run: How the run goes.

    Returns:
        The exit status: 1 if a frame was lost, duplicated, reordered or corrupt, or the back-end
        broke the protocol.
    """
    wanted = Options(
        mode=Mode[mode.upper()],
        socket=Socket.parse(vhost_user),
        memory=memory.options(),
        rings=rings.options(),
        traffic=traffic.options(),
        cpu=run.cpu,
        peer_cpu=run.peer_cpu,
        peer_pid=run.peer_pid,
        second=Socket.parse(second, "--second") if second else None,
        seconds=run.seconds,
        reconnect=run.reconnect,
        connect_timeout_s=run.connect_timeout,
        control=run.control,
    )
    return _report(_run(wanted), as_json=run.json)


def _run(wanted: Options) -> Result:
    with Signals() as signals:
        signals.serve()
        return Session(wanted, lambda: signals.received).run()


def _report(result: Result, *, as_json: bool) -> int:
    print(json.dumps(result.json_object()) if as_json else result.line(), flush=True)
    if result.ended == Ended.DISCONNECTED:
        cause = "the back-end closed the connection"
        path = str(result.options.socket.path)
        raise VhostPciError("go on with", path, cause, "--reconnect waits for the next one")
    return result.exit_status


def perform(words: list[str]) -> int:
    """Run what these words ask for; its exit status: 0, 1 on failure, 2 on wrong use.

    Raises:
        VhostPciError: It failed.
    """
    return command_line.perform(app, words)
