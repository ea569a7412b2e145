"""An lcore: a thread pinned to one CPU that runs one kernel loop.

Works belong to the loop while the lcore runs, and to the caller between `pause` and `resume`. An
lcore without works sleeps.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from guest.cpus import pin_current_thread
from guest.errors import VhostPciError
from pmd.kernel import Event, Loop, LoopStats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pmd.kernel import Poll, Work

# 36 years: only what is to be told, or pause(), ends a run. To come back here and go in again takes
# tens of microseconds, and the interpreter's lock, which the main thread may hold for longer.
_BUDGET_NS = 1 << 60
_TO_TELL = Event.GENERATION | Event.FAULT | Event.UNSUITED | Event.MISSING | Event.SUITED


class Lcore:
    """Starts paused and without works.

    Thread rule: all methods on the thread that made it; `wake` is called on the lcore's own thread.

    Args:
        cpu: Where it is pinned.
        burst: Chains a turn takes from a ring at most.
        wake: Called with the lcore when a work of its is no longer polled because of its generation
            or a fault; which, the works' events tell once the lcore is paused. Must not block.
        poll: Whether the loop sleeps.

    Raises:
        VhostPciError: The CPU cannot be used.
    """

    def __init__(self, cpu: int, burst: int, wake: Callable[[Lcore], None], poll: Poll) -> None:
        self.cpu = cpu
        self._loop = Loop(burst, poll)
        self._wake = wake
        self._condition = threading.Condition()
        self._wanted = False
        self._parked = False
        self._closing = False
        self._pin_error: VhostPciError | None = None
        self._thread = threading.Thread(target=self._main, name=f"lcore-{cpu}", daemon=True)
        self._thread.start()
        self._wait_parked()
        if self._pin_error is not None:
            self.close()
            raise self._pin_error

    @property
    def works(self) -> tuple[Work, ...]:
        """What it runs, as last set."""
        return self._loop.works

    @property
    def stats(self) -> LoopStats:
        """The loop's counters; readable at any time."""
        return self._loop.stats

    def set_works(self, works: Sequence[Work]) -> None:
        """Run these from the next `resume` on. Only while paused."""
        self._loop.set(works)

    def pause(self) -> None:
        """Stop at the next burst boundary; the thread touches no work any more. Idempotent."""
        with self._condition:
            self._wanted = False
        self._loop.stop()
        self._wait_parked()

    def resume(self) -> None:
        """Run the works set. Idempotent."""
        with self._condition:
            self._wanted = True
            self._condition.notify_all()

    def close(self) -> None:
        """Pause for good, end the thread and free the loop. Twice is fine."""
        if self._closing:
            return
        self.pause()
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()
        self._loop.close()

    def _wait_parked(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._parked)

    def _main(self) -> None:
        try:
            pin_current_thread(self.cpu)
        except VhostPciError as error:
            self._pin_error = error
        try:
            while self._park_unless_wanted():
                if self._loop.run(_BUDGET_NS) & _TO_TELL:
                    self._wake(self)
        finally:
            with self._condition:  # a thread that failed touches nothing either: nobody waits
                self._parked = True
                self._condition.notify_all()

    def _may_run(self) -> bool:
        return self._wanted and bool(self._loop.works)

    def _park_unless_wanted(self) -> bool:
        """Sleep while there is nothing to run; False at the end."""
        with self._condition:
            if not self._may_run():
                self._parked = True
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._may_run() or self._closing)
                # Decided under the lock: pause() now waits for the next time round.
                self._parked = self._closing
            return not self._closing
