"""The run: channels on lcores, changes as they come, signals, the end.

The main thread owns all of it and sleeps in a selector; only lcores poll. A change of one channel
pauses only the lcores that run it. Queue pairs, or groups of them that share a port, go to lcores
round-robin as they first appear, and stay with theirs; those of both ends of a patch go together.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import selectors
import sys
import time
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import DeviceGoneError, UsageError, VhostPciError
from pmd import stats
from pmd.kernel import Poll
from pmd.lcore import Lcore
from pmd.opening import Opening
from pmd.report import takes
from pmd.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pmd.channel import Channel
    from pmd.kernel import Work
    from pmd.report import View
    from pmd.signals import Signals

_log = logging.getLogger("pmd")

BUSY = Poll()
_RETRY_S = 0.5
# A channel without rings has no lcore that would see its generation change.
_IDLE_LOOK_S = 0.02
# A hypervisor does not tell a function that its server died; only reading it tells.
_VERIFY_S = 0.5


class Daemon(Closing):
    """Forwards on the channels given, until told to end.

    Thread rule: the main thread.

    Args:
        channels: Attached, but for those of slots. Their owner closes them after the daemon.
        cpus: One lcore each, at least one.
        burst: Chains a turn takes from a ring at most.
        signals: What ends the run.
        slots: The channels whose functions come and go, or None.
        poll: How the lcores poll.

    Raises:
        VhostPciError: A CPU cannot be used.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        cpus: Sequence[int],
        burst: int,
        signals: Signals,
        *,
        slots: Slots | None = None,
        poll: Poll = BUSY,
    ) -> None:
        self._channels = list(channels)
        self._signals = signals
        self._slots = slots
        self._verify_at = 0.0
        self._retry_at: dict[Channel, float] = {}
        self._openings: dict[Channel, Opening] = {}
        # Hardware VFs are looked at; the others have nothing to tell.
        self._look_at = {c: 0.0 for c in channels if c.look_period_s is not None}
        self._eventful: set[Lcore] = set()
        self._lcores: list[Lcore] = []
        self._lcore_of: dict[tuple[Channel, int] | str, Lcore] = {}
        with contextlib.ExitStack() as stack:
            self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._event)
            stack.callback(self._end_openings)
            self._selector = stack.enter_context(selectors.DefaultSelector())
            for cpu in cpus:
                self._lcores.append(Lcore(cpu, burst, self._wake, poll))
                stack.callback(self._lcores[-1].close)
            self._stack = stack.pop_all()
        self._turn = itertools.cycle(self._lcores)
        self._selector.register(self._event, selectors.EVENT_READ)
        self._selector.register(signals, selectors.EVENT_READ)

    def run(
        self, view: View, period_s: float, duration_s: float | None
    ) -> tuple[stats.Snapshot, stats.Snapshot]:
        """Forward until a signal or the duration's end; the first and the last snapshot.

        Whenever it is asked (SIGUSR1), the view tells what was counted so far.

        Raises:
            VhostPciError: A VF cannot be opened, before anything ran; or nobody can tell what
                functions come and go.
            BrokenPipeError: Nobody reads the view any more.
        """
        # Whoever sees VM1 served may end us: that is no bring-up that was cut short.
        self._signals.serve()
        self._begin()
        if self._slots is not None:
            self._watch(self._slots)
        first = before = self.snapshot()
        end = first.time_s + duration_s if duration_s is not None else float("inf")
        show_at = first.time_s + period_s
        try:
            while not self._signals.received and (now := time.monotonic()) < end:
                if now >= show_at:
                    after = self.snapshot()
                    view.show(before, after)
                    before = after
                    show_at = max(show_at + period_s, now)
                self._wait(min(end, show_at))
                if self._signals.asked() and takes(sys.stdout):
                    view.tell(first, self.snapshot())
        finally:
            view.close()
            for lcore in self._lcores:
                lcore.pause()
        return first, self.snapshot()

    def _begin(self) -> None:
        """Serve what was attached before, all placed at once; a function may have gone since.

        A VF that cannot be opened is tried again later, unless nothing else is served.
        """
        refused: dict[Channel, VhostPciError] = {}
        for channel in self._channels:
            if not channel.attached:
                continue
            self._selector.register(channel, selectors.EVENT_READ, channel)
            try:
                channel.configure()
            except UsageError:
                raise
            except VhostPciError as error:
                if not channel.alive:
                    self._lose(channel, str(error))
                elif self._is_tried_again(channel):
                    refused[channel] = error
                else:
                    raise
        if refused and not any(c.attached for c in self._channels if c not in refused):
            raise next(iter(refused.values()))
        for channel, why in refused.items():
            self._put_off(channel, why)
        self._place(*self._channels)

    def _watch(self, slots: Slots) -> None:
        """From now on; not earlier, since VM1 need not wait for it."""
        slots.watch()
        self._selector.register(slots, selectors.EVENT_READ, slots)
        self._lose_all(slots.changes(), "unplugged")
        self._follow(slots)  # of what came meanwhile no descriptor tells

    def snapshot(self) -> stats.Snapshot:
        """All counters, now."""
        return stats.Snapshot(
            time.monotonic(),
            tuple(channel.snapshot() for channel in self._channels),
            tuple(_lcore_stats(lcore) for lcore in self._lcores),
        )

    def _wait(self, deadline: float) -> None:
        """Sleep until deadline or until something is to be done, and do it."""
        # select() takes no infinite timeout, and a long one is as good.
        timeout_s = min(3600.0, max(0.0, self._next_wake(deadline) - time.monotonic()))
        for key, _ in self._selector.select(timeout_s):
            if key.fd == self._event:
                os.eventfd_read(self._event)
            elif isinstance(key.data, Slots):
                self._lose_all(key.data.changes(), "unplugged")
            elif key.data is not None:
                self._lose_all([key.data], "its device went away")
        self._take_events()
        for channel in self._channels:
            if channel.idle and channel.changed:
                self._settle(channel)
        self._look()
        self._retry()
        if self._slots is not None:
            self._follow(self._slots)

    def _next_wake(self, deadline: float) -> float:
        """When there is something to be done that no descriptor tells of."""
        wakes = [deadline, *self._retry_at.values(), *self._look_at.values()]
        if any(channel.idle for channel in self._channels):
            wakes.append(time.monotonic() + _IDLE_LOOK_S)
        if self._slots is not None:
            wakes.append(self._slots.due)
            if self._slots.attached:
                wakes.append(self._verify_at)
        return min(wakes)

    def _look(self) -> None:
        """See that the VFs are well, and settle the channels of those that are not."""
        for channel, due in tuple(self._look_at.items()):
            if time.monotonic() < due:
                continue
            if channel.vf_spoilt():
                self._settle(channel)
            self._look_at[channel] = time.monotonic() + (channel.look_period_s or _RETRY_S)

    def _wake(self, lcore: Lcore) -> None:
        """On the lcore's thread."""
        self._eventful.add(lcore)
        os.eventfd_write(self._event, 1)

    def _take_events(self) -> None:
        """Settle the channels whose works stopped."""
        # What comes up meanwhile has its turn later: channels that change all the time must not
        # keep signals, statistics and the other channels waiting.
        for lcore in tuple(self._eventful):
            self._eventful.discard(lcore)
            lcore.pause()
            stopped = {work for work in lcore.works if work.events}
            for channel in self._channels:
                if stopped.intersection(itertools.chain(*channel.groups.values())):
                    self._settle(channel)
            lcore.resume()

    def _settle(self, channel: Channel) -> None:
        """Let the channel adapt to its device while no lcore runs it, and run what it has then."""
        self._withdraw(channel)
        try:
            channel.configure()
        except DeviceGoneError as error:
            self._lose(channel, str(error))
        except VhostPciError as error:
            self._put_off(channel, error)
        self._place(channel)

    def _withdraw(self, channel: Channel) -> None:
        """Take the channel's works off the lcores that run them.

        The works of other channels go on at once: how long this one takes to adapt is up to its
        device and to VM1.
        """
        works = set(itertools.chain(*channel.groups.values()))
        for lcore in self._lcores:
            if works.intersection(lcore.works):
                lcore.pause()
                lcore.set_works([work for work in lcore.works if work not in works])
                lcore.resume()

    def _place(self, *channels: Channel) -> None:
        """Put the channels' works on their lcores, all of an lcore's at once, and let these run."""
        works: dict[Lcore, list[Work]] = {}
        for channel in channels:
            for pair, group in channel.groups.items():
                key = channel.one_lcore or (channel, pair)
                lcore = self._lcore_of.get(key)
                if lcore is None:
                    lcore = self._lcore_of[key] = next(self._turn)
                works.setdefault(lcore, []).extend(group)
        for lcore, more in works.items():
            lcore.pause()
            lcore.set_works([*lcore.works, *more])
            lcore.resume()

    def _follow(self, slots: Slots) -> None:
        """Attach functions that came, and let go of those that read all ones."""
        if time.monotonic() >= self._verify_at:
            self._lose_all([c for c in slots.attached if not c.alive], "its device is gone")
            self._verify_at = time.monotonic() + _VERIFY_S
        for channel in slots.assign():
            if channel not in self._channels:
                self._channels.append(channel)
                if channel.look_period_s is not None:
                    self._look_at[channel] = 0.0
            try:
                channel.attach()
            except VhostPciError as error:
                slots.again(channel.name, error)
            else:
                self._join(channel)

    def _lose_all(self, channels: Sequence[Channel], why: str) -> None:
        """Lose those that are not lost yet: one loss may be told in several ways at once."""
        for channel in channels:
            if channel.attached:
                self._lose(channel, why)

    def _lose(self, channel: Channel, why: str) -> None:
        """The channel's function is gone, or as good as gone."""
        _log.error("%s: %s", channel.name, why)
        self._withdraw(channel)
        self._selector.unregister(channel)
        channel.detach()
        self._place(channel)
        if channel.comes_back:
            _log.info("%s: trying again every %g s", channel.name, _RETRY_S)
            self._retry_at[channel] = time.monotonic() + _RETRY_S

    def _put_off(self, channel: Channel, error: VhostPciError) -> None:
        """Let go of a function whose VF cannot be opened, until both are tried again."""
        self._lose(channel, str(error))
        if self._slots is not None and channel in self._slots:
            self._slots.again(channel.name, error)

    def _is_tried_again(self, channel: Channel) -> bool:
        """Whether a channel that is lost may be back some day."""
        return channel.comes_back or (self._slots is not None and channel in self._slots)

    def _retry(self) -> None:
        """Attach again what is due, for as long as it takes and without a word about failures.

        A server that does not answer keeps nobody waiting but its own channel.
        """
        for channel, opening in tuple(self._openings.items()):
            if opening.ended:
                del self._openings[channel]
                with opening:
                    self._reattach(channel, opening)
        for channel, due in tuple(self._retry_at.items()):
            if time.monotonic() >= due:
                del self._retry_at[channel]
                self._openings[channel] = Opening(channel.source, self._wake_up)

    def _reattach(self, channel: Channel, opening: Opening) -> None:
        try:
            channel.attach(opening)
        except VhostPciError as error:
            _log.debug("%s", error)
            self._retry_at[channel] = time.monotonic() + _RETRY_S
        else:
            self._join(channel)

    def _wake_up(self) -> None:
        """On any thread."""
        os.eventfd_write(self._event, 1)

    def _end_openings(self) -> None:
        for opening in self._openings.values():
            opening.close()
        self._openings.clear()

    def _join(self, channel: Channel) -> None:
        """Serve a channel that has just been attached."""
        self._selector.register(channel, selectors.EVENT_READ, channel)
        self._settle(channel)

    def close(self) -> None:
        """End the lcores and let go of all works; the channels stay. Twice is fine."""
        self._stack.close()


def _lcore_stats(lcore: Lcore) -> stats.Lcore:
    counters = lcore.stats
    return stats.Lcore(
        lcore.cpu,
        counters.turns,
        counters.busy_turns,
        counters.cycles,
        counters.busy_cycles,
        counters.sleeps,
        counters.slept_cycles,
    )
