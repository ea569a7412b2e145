"""Which channel serves which PCI function, as functions come and go.

A channel with a PCI source serves one function at a time: the one at its address, or, where the
source is `auto`, whichever comes. A function that comes while no channel is free waits; where the
VF's spec can be had several times, another channel is made for it. One that could not be attached,
or whose VF could not be opened, is tried again for as long as it is there: the kernel tells of a
function (uevent "add") before it gives it addresses and lets drivers have it (drivers/pci/bus.c
pci_bus_add_device), and one that another process holds is free some day.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from driver.software_vf import parse_vf
from guest.closing import Closing
from guest.named_tuple import NamedTuple
from pmd.channel import Channel
from pmd.source import AUTO, PciSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest.errors import VhostPciError
    from guest.hotplug import Hotplug
    from pmd.serving import Serving

_log = logging.getLogger("pmd")

NUMBER = "{n}"
# VFs that keep nothing which a second one would want: each channel can have one.
_PLENTIFUL = ("null", "copy", "loop", "gen")
# Before a function is tried again: the first time, and the longest.
_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 6.4


class VfTemplate(NamedTuple):
    """A `--vf` of `auto`: `{n}` in it stands for 0, 1, 2 ... of the channels made from it."""

    spec: str

    @property
    def repeats(self) -> bool:
        """Whether it can serve two functions at once."""
        return NUMBER in self.spec or self.spec.partition(":")[0] in _PLENTIFUL

    def numbered(self, number: int) -> str:
        """The spec of one channel."""
        return self.spec.replace(NUMBER, str(number))


class _Slot(NamedTuple):
    source: PciSource
    channel: Channel


class Slots(Closing):
    """The channels of PCI functions, which it owns.

    Thread rule: one thread.

    Args:
        hotplug: Of vhost-pci functions; stays the caller's.
        serving: How the channels serve.
    """

    def __init__(self, hotplug: Hotplug, serving: Serving) -> None:
        self._hotplug = hotplug
        self._serving = serving
        self._slots: list[_Slot] = []
        self._template: VfTemplate | None = None
        self._waiting: dict[str, None] = {}
        self._told: set[str] = set()
        # Functions that could not be attached: the last pause, and when they are tried again.
        self._pauses_s: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def fileno(self) -> int:
        """Readable when `changes` may have something; after `watch`."""
        return self._hotplug.fileno()

    def watch(self) -> None:
        """Begin to see functions come and go: `changes` is due, which has what came meanwhile.

        Raises:
            VhostPciError: That cannot be seen.
        """
        self._hotplug.watch()

    def add(self, source: PciSource, template: VfTemplate) -> Channel:
        """A channel, not attached, for the function of a source.

        Raises:
            UsageError: The VF's spec names none.
        """
        number = sum(slot.source.follows for slot in self._slots)
        vf = parse_vf(template.numbered(number))
        channel = Channel(source, vf, self._serving)
        self._slots.append(_Slot(source, channel))
        if source.follows:
            self._template = template
        return channel

    def __contains__(self, channel: Channel) -> bool:
        return any(slot.channel is channel for slot in self._slots)

    @property
    def attached(self) -> list[Channel]:
        """The channels that have a function."""
        return [slot.channel for slot in self._slots if slot.channel.attached]

    @property
    def due(self) -> float:
        """The monotonic time at which `assign` has something, whatever happens; or infinity."""
        return min(self._due.values(), default=float("inf"))

    def begin(self) -> Iterator[Channel]:
        """The channels to attach first: those of addresses, here or not, then those of auto."""
        here = self._hotplug.present()
        for slot in self._slots:
            if not slot.source.follows:
                yield slot.channel
        named = {slot.source.name for slot in self._slots if not slot.source.follows}
        self._waiting = {address: None for address in here if address not in named}
        yield from self.assign()
        if self._template is not None and not here:
            _log.info("%s: no vhost-pci function here yet; waiting for one", AUTO)

    def changes(self) -> list[Channel]:
        """Take note of what came and went; the channels whose function has gone."""
        lost: list[Channel] = []
        for change in self._hotplug.changes():
            served = [s.channel for s in self._slots if s.source.name == change.address]
            serving = [c for c in served if c.attached and c not in lost]
            if not change.present:
                self._forget(change.address)
                lost += serving
            elif not serving:
                self._due.pop(change.address, None)
                self._waiting[change.address] = None
        return lost

    def _forget(self, address: str) -> None:
        for kept in (self._waiting, self._pauses_s, self._due):
            kept.pop(address, None)
        self._told.discard(address)

    def again(self, address: str, error: VhostPciError) -> None:
        """That function could not be attached, or served: try it again, ever less often.

        Said once, and not of the first time, which is over in no time where the kernel was not
        done with it. A function that is not here is waited for.
        """
        if address not in self._hotplug:
            _log.error("%s; waiting for it", error)
            return
        former_s = self._pauses_s.get(address, 0.0)
        pause_s = min(2 * former_s or _PAUSE_S, _LONGEST_PAUSE_S)
        self._pauses_s[address] = pause_s
        self._due[address] = time.monotonic() + pause_s
        if former_s == _PAUSE_S:
            _log.error("%s; trying again for as long as it is there", error)

    def assign(self) -> Iterator[Channel]:
        """The channels to attach now, each with a function that waited for one."""
        now = time.monotonic()
        for address in [address for address, due in self._due.items() if due <= now]:
            del self._due[address]
            self._waiting[address] = None
        for address in tuple(self._waiting):
            fixed = [s for s in self._slots if s.source.name == address and not s.source.follows]
            slot = fixed[0] if fixed else self._free(address)
            if slot is None:
                self._tell_waiting(address)
                continue
            del self._waiting[address]
            if slot.channel.attached:
                continue
            if slot.source.follows:
                slot.source.name = address
            yield slot.channel

    def _free(self, address: str) -> _Slot | None:
        """A channel of auto for a function: the one it had before, any other, or a new one."""
        free = [s for s in self._slots if s.source.follows and not s.channel.attached]
        for slot in free:
            if slot.source.name == address:
                return slot
        if free:
            return free[0]
        template = self._template
        if template is None or not template.repeats:
            return None
        first = next(slot.source for slot in self._slots if slot.source.follows)
        self.add(first.another(), template)
        return self._slots[-1]

    def _tell_waiting(self, address: str) -> None:
        if address in self._told or self._template is None:
            return
        self._told.add(address)
        spec = self._template.spec
        _log.warning("%s: waits: --vf %s serves one function at a time", address, spec)
        _log.info("%s in it makes one for each function: 0, 1, 2 ...", NUMBER)

    def close(self) -> None:
        """Close the channels; no loop has their works any more. Twice is fine."""
        for slot in reversed(self._slots):
            slot.channel.close()
