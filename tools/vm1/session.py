"""A run of the embedded VM1, from its memory to its result.

The ladder, upwards: rings in memory, TAP device, control socket, endpoint, front-end with features,
engine, start. Everything goes down in reverse, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from guest.errors import UsageError, VhostPciError
from tools.vm1.control import Control
from tools.vm1.endpoint import Endpoint
from tools.vm1.engine import Engine, tsc_hz
from tools.vm1.engine_abi import Outcome, Stats
from tools.vm1.frontend import FrontEnd
from tools.vm1.options import Mode, Options
from tools.vm1.probe import Probe
from tools.vm1.recorder import Recorder
from tools.vm1.report import Counters, Ended, Noticed, Result
from tools.vm1.rings import Rings
from tools.vm1.tap import open_tap

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.vhost_user_abi import Feature

_BUDGET_S = 0.05
_DRAIN_S = 1.0
_ATTEMPTS = 10
_ATTEMPT_S = 0.1


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
        self._stats = Stats()
        self._noticed = Noticed()
        self._connected = False
        self._recorder: Recorder | None = None
        self._begin = time.monotonic()

    def snapshot(self) -> dict[str, Any]:
        """The counters now, for the control socket."""
        head = {"mode": self._options.mode.name.lower(), "connected": self._connected}
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
            rings = stack.enter_context(Rings(options))
            tap_fd = -1
            if options.mode == Mode.TAP:
                tap_fd = open_tap(options.traffic.tap)
                stack.callback(os.close, tap_fd)
            if options.control is not None:
                stack.enter_context(Control(options.control, self.snapshot))
            if options.mode == Mode.REPLAY:
                self._recorder = self._open_recorder(stack)
            endpoint = stack.enter_context(Endpoint(options.socket, self._stopped))
            connection = endpoint.connection(options.connect_timeout_s)
            if connection is None:
                return Result(options, Ended.SIGNAL, 0.0, 0, self._counters())
            front_end = stack.enter_context(FrontEnd(connection, str(options.socket.path)))
            features = front_end.negotiate(options.rings)
            engine = Engine(options, rings, features, tap_fd, self._stats)
            stack.enter_context(engine)
            self._bring_up(front_end, rings, engine)
            self._begin = time.monotonic()
            while True:
                ended = self._poll(engine, front_end)
                if ended != Ended.DISCONNECTED or not options.reconnect:
                    return self._end(ended, engine, front_end, rings)
                self._connected = False
                front_end.close()
                successor = self._reconnect(endpoint, rings, engine, features)
                if successor is None:
                    return self._end(Ended.SIGNAL, engine, front_end, rings)
                front_end = stack.enter_context(successor)

    def _open_recorder(self, stack: contextlib.ExitStack) -> Recorder:
        cpu = self._options.peer_cpu
        probe = None if cpu is None else stack.enter_context(Probe(cpu))
        return Recorder(self._stats, self._stats, probe, tsc_hz())

    def _bring_up(self, front_end: FrontEnd, rings: Rings, engine: Engine) -> None:
        front_end.share_memory(rings.memory)
        bases = [engine.base(index) for index in range(len(rings.rings))]
        front_end.start(rings.rings, bases)
        engine.kick()
        engine.touch_clock()
        self._connected = True

    def _reconnect(
        self, endpoint: Endpoint, rings: Rings, engine: Engine, features: Feature
    ) -> FrontEnd | None:
        """Wait for the next back-end, and give it the rings where the last one left them.

        None when told to stop. The last of several failures in a row is raised: the one before may
        still have been leaving.
        """
        for attempt in range(_ATTEMPTS):
            connection = endpoint.connection(None)
            if connection is None:
                return None
            front_end = FrontEnd(connection, str(self._options.socket.path))
            try:
                front_end.negotiate(self._options.rings, features)
                self._bring_up(front_end, rings, engine)
            except VhostPciError:
                front_end.close()
                if attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(_ATTEMPT_S)
            else:
                reconnects = self._noticed.reconnects + 1
                self._noticed = replace(self._noticed, reconnects=reconnects)
                return front_end
        return None

    def _poll(self, engine: Engine, front_end: FrontEnd) -> Ended:
        """Run until something ends it."""
        outcomes = {Outcome.DONE: Ended.DONE, Outcome.TIMED_OUT: Ended.TIMEOUT}
        deadline = self._begin + self._options.seconds
        while True:
            recorder = self._recorder
            outcome = recorder.run(engine) if recorder else engine.run(_BUDGET_S)
            if outcome in outcomes:
                return outcomes[outcome]
            if outcome == Outcome.TAP_GONE:
                raise VhostPciError("use TAP device", self._options.traffic.tap, "it was deleted")
            if self._stopped():
                return Ended.SIGNAL
            if self._options.seconds and time.monotonic() >= deadline:
                return Ended.SECONDS
            if front_end.hung_up():
                return Ended.DISCONNECTED

    def _end(self, ended: Ended, engine: Engine, front_end: FrontEnd, rings: Rings) -> Result:
        """Let what is in flight come home, stop the rings, and judge what the back-end says."""
        seconds = time.monotonic() - self._begin
        if ended in {Ended.SIGNAL, Ended.SECONDS} and self._options.mode == Mode.VERIFY:
            engine.finish()
            while engine.run(_BUDGET_S) == Outcome.BUDGET and not front_end.hung_up():
                pass
        if self._connected and not front_end.hung_up():
            if self._options.mode in {Mode.VERIFY, Mode.TAP}:
                engine.drain(_DRAIN_S)
            bases = front_end.stop(len(rings.rings))
            expected = [engine.base(index) for index in range(len(bases))]
            pairs = zip(bases, expected, strict=True)
            mismatch = sum(base not in {want, _available_half(want)} for base, want in pairs)
            self._noticed = replace(self._noticed, base_mismatch=mismatch)
        self._connected = False
        errors = sum(ring.error_count() for ring in rings.rings)
        self._noticed = replace(self._noticed, error_signals=errors)
        features = int(front_end.features)
        measured = self._recorder.json_object() if self._recorder else {}
        return Result(self._options, ended, seconds, features, self._counters(), measured)

    def _counters(self) -> Counters:
        return Counters.of(self._stats, self._noticed)


def _available_half(base: int) -> int:
    """A packed ring's base without its used half, of which some back-ends (DPDK 22.11) say nothing.

    A split ring's base has no other half.
    """
    return base & 0xFFFF


def _pin(cpu: int | None) -> None:
    if cpu is None:
        return
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, ValueError, OverflowError) as error:
        allowed = ", ".join(str(number) for number in sorted(os.sched_getaffinity(0)))
        cause = "this process may not run there"
        raise UsageError("use", f"--cpu {cpu}", cause, f"it may on {allowed}") from error
