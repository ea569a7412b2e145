"""A run of the embedded VM1, from its memory to its result.

The ladder, upwards: TAP device, rings in memory with their endpoints, control socket, what is
measured, back-ends. Everything goes down in reverse, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from guest.errors import UsageError, VhostPciError
from tools.vm1.attachment import Attachment
from tools.vm1.control import Control
from tools.vm1.engine import tsc_hz
from tools.vm1.engine_abi import Outcome
from tools.vm1.latency import LatencyRun
from tools.vm1.options import Mode, Options
from tools.vm1.preemptions import Preemptions
from tools.vm1.probe import Probe
from tools.vm1.recorder import Recorder
from tools.vm1.report import Counters, Ended, Noticed, Result
from tools.vm1.tap import open_tap

if TYPE_CHECKING:
    from collections.abc import Callable

_BUDGET_S = 0.05
_DRAIN_S = 1.0


class Session:
    """One run.

    Thread rule: one thread; `snapshot` from any.

    Args:
        options: Checked here.
        stopped: True from the moment the run is told to end.

    Raises:
        UsageError: Options that cannot be meant.
    """

    def __init__(self, options: Options, stopped: Callable[[], bool]) -> None:
        options.check()
        self._options = options
        self._stopped = stopped
        # The rings at --vhost-user, and of a replay from one back-end to another those at --second.
        self._attachments: tuple[Attachment, ...] = ()
        self._noticed = Noticed()
        self._measure: Recorder | LatencyRun | None = None
        self._begin = time.monotonic()

    def snapshot(self) -> dict[str, Any]:
        """The counters now, for the control socket."""
        connected = bool(self._attachments) and all(each.connected for each in self._attachments)
        head = {"mode": self._options.mode.name.lower(), "connected": connected}
        seconds = {"seconds": round(time.monotonic() - self._begin, 6)}
        return head | seconds | self._counters().json_object()

    def run(self) -> Result:
        """Do it all; returns when it is done, or told to stop.

        Raises:
            VhostPciError: Bring-up failed. A back-end that leaves later is in the result instead.
        """
        options = self._options
        _pin(options.cpu)
        with contextlib.ExitStack() as stack:
            tap_fd = -1
            if options.mode == Mode.TAP:
                tap_fd = open_tap(options.traffic.tap)
                stack.callback(os.close, tap_fd)
            self._attachments = tuple(
                stack.enter_context(Attachment(each, self._stopped, tap_fd))
                for each in options.attachments()
            )
            if options.control is not None:
                stack.enter_context(Control(options.control, self.snapshot))
            self._measure = self._open_measure(stack)
            for each in self._attachments:
                if not each.connect(options.connect_timeout_s):
                    return self._end(Ended.SIGNAL)
            first, *others = self._attachments
            for second in others:
                first.engine.join(second.engine)
            self._begin = time.monotonic()
            while True:
                ended = self._poll(first)
                if ended != Ended.DISCONNECTED or not options.reconnect:
                    return self._end(ended)
                if not first.reconnect():
                    return self._end(Ended.SIGNAL)
                reconnects = self._noticed.reconnects + 1
                self._noticed = replace(self._noticed, reconnects=reconnects)

    def _open_measure(self, stack: contextlib.ExitStack) -> Recorder | LatencyRun | None:
        options = self._options
        if options.mode == Mode.LATENCY:
            peer = options.peer_pid
            preemptions = None if peer is None else Preemptions(peer)
            rates_pps = options.traffic.rates_pps
            return LatencyRun(rates_pps, options.seconds or 1.0, tsc_hz(), preemptions)
        if options.mode != Mode.REPLAY:
            return None
        cpu = options.peer_cpu
        probe = None if cpu is None else stack.enter_context(Probe(cpu))
        stats = [each.stats for each in self._attachments]
        return Recorder(stats, probe, tsc_hz(), self._options.traffic.sizes.most)

    def _poll(self, first: Attachment) -> Ended:
        """Run until something ends it."""
        outcomes = {Outcome.DONE: Ended.DONE, Outcome.TIMED_OUT: Ended.TIMEOUT}
        measure, engine = self._measure, first.engine
        seconds = 0.0 if self._options.mode == Mode.LATENCY else self._options.seconds
        while True:
            outcome = measure.run(engine) if measure else engine.run(_BUDGET_S)
            if outcome in outcomes:
                return outcomes[outcome]
            if outcome == Outcome.TAP_GONE:
                raise VhostPciError("use TAP device", self._options.traffic.tap, "it was deleted")
            if self._stopped():
                return Ended.SIGNAL
            if seconds and time.monotonic() >= self._begin + seconds:
                return Ended.SECONDS
            if any(each.hung_up() for each in self._attachments):
                return Ended.DISCONNECTED

    def _end(self, ended: Ended) -> Result:
        """Let what is in flight come home, stop the rings, and judge what the back-end says."""
        seconds = time.monotonic() - self._begin
        first = self._attachments[0]
        if not first.connected and not first.features:
            return Result(self._options, ended, 0.0, 0, self._counters())
        if ended in {Ended.SIGNAL, Ended.SECONDS} and self._options.mode == Mode.VERIFY:
            first.engine.finish()
            while first.engine.run(_BUDGET_S) == Outcome.BUDGET and not first.hung_up():
                pass
        drains = self._options.mode in {Mode.VERIFY, Mode.TAP}
        if drains and first.connected and not first.hung_up():
            first.engine.drain(_DRAIN_S)
        for each in self._attachments:
            each.stop()
        self._noticed = replace(
            self._noticed,
            base_mismatch=sum(each.base_mismatch for each in self._attachments),
            error_signals=sum(each.error_signals() for each in self._attachments),
        )
        measured = self._measure.json_object() if self._measure else {}
        return Result(self._options, ended, seconds, first.features, self._counters(), measured)

    def _counters(self) -> Counters:
        return Counters.of([each.stats for each in self._attachments], self._noticed)


def _pin(cpu: int | None) -> None:
    if cpu is None:
        return
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, ValueError, OverflowError) as error:
        allowed = ", ".join(str(number) for number in sorted(os.sched_getaffinity(0)))
        cause = "this process may not run there"
        raise UsageError("use", f"--cpu {cpu}", cause, f"it may on {allowed}") from error
