"""A channel: one vhost-pci function and the VF that VM1's frames go to.

A channel is *down* without a function, *waiting* while VM1 has no ring to serve, else *forwarding*.
`configure` takes the device's state over: windows, guard, memory map, one kernel queue a started
ring, one work a queue pair that has a queue. `tear_down` takes them back in reverse. A ring that
cannot be set up is left out, reported to the device and logged; the others run (pmd/quarantine.py).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import time
from typing import TYPE_CHECKING

from driver.state_area import RingFlag, Status
from driver.vhost_pci import VhostPci
from guest.errors import DeviceGoneError, VhostPciError
from guest.log_limit import LogLimit
from pmd import stats
from pmd.announcing import Announcing
from pmd.kernel import DirectionStats, Guard, Queue, QueueError, fault_names
from pmd.own_lines import own_lines
from pmd.pair_works import PairWorks, Watched
from pmd.ports import Ports
from pmd.quarantine import Quarantine
from pmd.receiving import Receiving
from pmd.ring_config import ring_config
from pmd.translating import Translating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driver.device_state import DeviceState
    from driver.ring import Ring
    from driver.software_vf import Vf
    from guest.function import Doorbell
    from pmd.kernel import Work
    from pmd.opening import Opening
    from pmd.serving import Serving
    from pmd.source import Source


# QUEUE_ERROR reasons are ringk.h's enum rk_fault; 0 stands for a ring that could not be set up.
_NOT_SET_UP = 0
_INDEX_JUMP = 1
_WINDOW = 3
# What a VF may take to send what it has: much less than a device waits (docs/device.md 5.2).
_DRAIN_S = 0.5
_DRAIN_LOOK_S = 0.0002
_numbers = itertools.count()
_REASONS = {errno.ERANGE: _INDEX_JUMP, errno.EFAULT: _WINDOW}


class Channel:
    """One function and one VF.

    Thread rule: one thread, and while none of `works` is in a running loop; but `snapshot`,
    `changed` and `idle` at any time.

    Args:
        source: Where the function comes from; the channel owns it, and shows it.
        vf: Where frames go; the channel owns it.
        serving: How.
    """

    def __init__(self, source: Source, vf: Vf, serving: Serving) -> None:
        self.source = source
        self._serving = serving
        self._ports = Ports(vf, serving.copy)
        self._attached = contextlib.ExitStack()
        self._device: VhostPci | None = None
        self._fd = -1
        self._generation: int | None = None
        self._status = Status(0)
        self._served = contextlib.ExitStack()
        self._queues: dict[int, tuple[Ring, Queue]] = {}
        self._works: PairWorks | None = None
        self._guard: Guard | None = None
        self._translating: Translating | None = None
        self._stats: list[tuple[DirectionStats, DirectionStats]] = []
        self._quarantine = Quarantine()
        self._announcing = Announcing()
        self._configurations = 0
        self._said = ""
        # Each its own: what VM1 makes one channel say keeps no other from being heard.
        self._log = logging.getLogger(f"pmd.channel{next(_numbers)}")
        self._log.addFilter(LogLimit())
        self._receiving = Receiving(self._ports, self._log)

    @property
    def name(self) -> str:
        """The device's, as the user gave it."""
        return self.source.name

    @property
    def comes_back(self) -> bool:
        """Whether attaching again is worth trying after the function is gone."""
        return self.source.comes_back

    @property
    def one_lcore(self) -> str | None:
        """What the channels have alike that one lcore is to run; None: any may run this one."""
        return self._ports.one_lcore

    @property
    def works(self) -> dict[int, Work]:
        """By queue pair; to be run until the next `configure`, `detach` or `close`."""
        return self._works.of_pairs if self._works else {}

    @property
    def groups(self) -> dict[int, tuple[Work, ...]]:
        """Likewise, and all there are, by the first pair of each: those that one lcore runs."""
        return self._works.groups if self._works else {}

    @property
    def attached(self) -> bool:
        """Whether there is a function."""
        return self._device is not None

    @property
    def alive(self) -> bool:
        """Whether the function still answers: a trapped access, so not to be asked often."""
        return self._device is not None and self._device.present

    @property
    def idle(self) -> bool:
        """Attached, and nothing to run: somebody has to look at `changed`."""
        return self._device is not None and not self._works

    @property
    def changed(self) -> bool:
        """Whether the device's generation is another than the configured one."""
        return self._device is not None and self._device.generation() != self._generation

    @property
    def look_period_s(self) -> float | None:
        """How often `vf_spoilt` is to be asked; None: never."""
        return self._ports.look_period_s

    def vf_spoilt(self) -> bool:
        """Whether the VF has to be opened anew: `configure` is due. At any time."""
        return self._device is not None and self._ports.look()

    @property
    def state(self) -> str:
        """down, replug, forwarding or waiting."""
        if self._device is None:
            return "down"
        if Status.REPLUG in self._status:
            return "replug"
        return "forwarding" if self._works else "waiting"

    def fileno(self) -> int:
        """Readable when the function went away. Only while attached."""
        return self._fd

    def attach(self, opened: Opening | None = None) -> None:
        """Make this process the active driver of the function, opened now or before; no more yet.

        Raises:
            VhostPciError: It cannot be opened, or is no vhost-pci function of ours. Not attached.
        """
        self._ports.prepare()
        with contextlib.ExitStack() as stack:
            function = self.source.open() if opened is None else opened.take()
            stack.callback(function.close)
            device = stack.enter_context(VhostPci(function, self._serving.bar))
            device.activate()
            self._attached = stack.pop_all()
        self._device, self._fd = device, function.fileno()
        self._generation = None
        self._quarantine.clear()

    def configure(self) -> None:
        """Tear down, and set up what the device shows now; acknowledges its generation.

        Raises:
            DeviceGoneError: The function is lost: `detach` is due. Nothing is set up.
            VhostPciError: The VF cannot be opened, not even as it was. Nothing is set up.
        """
        device = self._device
        if device is None or self._retranslate():
            return
        if self._works is not None and self._receiving.redecide(self._works):
            return
        self._quarantine_faulted(device)
        self._receiving.end(self.works)
        self.tear_down()
        try:
            state = device.state()
        except DeviceGoneError:
            raise
        except (VhostPciError, OSError) as error:
            self._log.error("%s: %s; waiting for its next state", self.name, error)
            self._generation, self._status = device.generation(), Status(0)
            device.acknowledge(self._generation)
            return
        self._generation, self._status = state.generation, state.status
        rings = [ring for ring in state.rings if ring.started]
        self._receiving.forget({ring.pair for ring in rings if not ring.transmits})
        self._ports.ensure(max((ring.pair + 1 for ring in rings), default=1))
        # Asked of all rings: that one was stopped is what ends its quarantine.
        admitted = [r for r in state.rings if self._quarantine.admits(r, state.generation)]
        try:
            self._serve(device, state, [ring for ring in admitted if ring.started])
        except DeviceGoneError:
            self.tear_down()
            raise
        except (VhostPciError, OSError) as error:  # such as no descriptor left: of this channel
            self.tear_down()
            self._log.error("%s: %s; waiting for its next state", self.name, error)
        device.acknowledge(state.generation)
        self._configurations += 1
        if Status.CONNECTED in state.status:
            self.source.settled()
        self._log_state(len(rings))

    def _retranslate(self) -> bool:
        """Go on as before, if only translations have changed, or are to be asked for."""
        if not (self._translating and self._translating.active and self._works):
            return False
        if self._ports.spoilt or (self._guard is not None and self._guard.faulted):
            return False
        queues = [queue for _, queue in self._queues.values()]
        generation = self._translating.follow(queues, self._works)
        self._generation = self._generation if generation is None else generation
        return generation is not None

    def _log_state(self, started: int) -> None:
        """One line, where it is another than the last."""
        if self.state == "forwarding":
            line = f"serving {len(self._queues)} of {started} rings"
        elif self.state == "replug":
            line = "VM1's memory needs other windows; plug the function anew"
        else:
            line = "waiting for VM1"
        if line != self._said:
            self._said = line
            self._log.info("%s: %s", self.name, line)

    def _serve(self, device: VhostPci, state: DeviceState, rings: list[Ring]) -> None:
        if not rings:
            return
        self._guard = self._served.enter_context(Guard())
        for mapping in device.mappings:
            self._guard.add(mapping.address, mapping.size)
        translating = self._served.enter_context(Translating(device, state))
        self._translating = translating
        self._ports.share(device.mappings, translated=translating.active)
        self._served.callback(self._ports.unshare)
        kicks = self._kicks(device, rings)
        doorbells = device.doorbells(r.index for r in rings if RingFlag.CALLABLE in r.flags)
        for ring in rings:
            doorbell, kick_fd = doorbells.get(ring.index), kicks.get(ring.index, -1)
            queue = self._open_queue(translating, ring, doorbell=doorbell, kick_fd=kick_fd)
            if queue is not None:
                self._queues[ring.index] = (ring, self._served.enter_context(queue))
                queue.refuse(state.refused)
        watched = Watched.of(device, state.generation, self._guard)
        queues = {index: queue for index, (_, queue) in self._queues.items()}
        if queues:
            self._works = PairWorks(queues, self._ports, watched, self._receiving)
        self._announcing.follow(state.announcement, self._ports)
        for _, queue in self._queues.values():
            queue.call()  # docs/device.md 5.3: a call may have gone to nobody in between

    def _kicks(self, device: VhostPci, rings: Sequence[Ring]) -> dict[int, int]:
        """What tells of VM1's kicks, by ring; a loop looks by itself where nothing does."""
        if not self._serving.sleeps:
            return {}
        try:
            return device.kick_fds(r.index for r in rings if RingFlag.KICKABLE in r.flags)
        except VhostPciError as error:
            self._log.warning("%s; looking for VM1's frames every 50 us instead", error)
            return {}

    def _open_queue(
        self, translating: Translating, ring: Ring, *, doorbell: Doorbell | None, kick_fd: int
    ) -> Queue | None:
        """The ring's queue; None if it cannot run, which is then reported."""
        device, state = translating.device, translating.state
        name = f"ring {ring.index} of {self.name}"
        try:
            commit = device.commit_address(ring.index) if ring.packed else 0
            ring.check(state.memory, state.features, commit)
            combining = any(mapping.combining for mapping in device.mappings)
            config = ring_config(
                ring,
                state.features,
                doorbell,
                commit,
                combining=combining,
                kick_fd=kick_fd,
                mtu=state.mtu,
                dirty=state.dirty,
            )
            return Queue(config, translating.map, self._ring_stats(ring), name)
        except QueueError as error:
            reason = _REASONS.get(error.errno, _NOT_SET_UP)
            self._exclude(device, ring, reason, str(error))
        except VhostPciError as error:
            self._exclude(device, ring, _NOT_SET_UP, str(error))
        return None

    def _ring_stats(self, ring: Ring) -> DirectionStats:
        while len(self._stats) <= ring.pair:
            self._stats.append((own_lines(DirectionStats), own_lines(DirectionStats)))
        return self._stats[ring.pair][ring.transmits]

    def _exclude(self, device: VhostPci, ring: Ring, reason: int, text: str) -> None:
        """Quarantine a ring and say so: to the device, and in the log."""
        lasting = reason not in (_WINDOW, _NOT_SET_UP)
        self._quarantine.add(ring, self._generation or 0, lasting=lasting)
        self._log.warning("%s", text)
        device.report_queue_error(ring.index, reason)

    def _quarantine_faulted(self, device: VhostPci) -> None:
        gone = self._guard is not None and self._guard.faulted
        for ring, queue in self._queues.values():
            fault = _WINDOW if gone else queue.fault
            if fault:
                name = f"ring {ring.index} of {self.name}"
                text = f"{name} is quarantined until it is set up anew: {fault_names()[fault]}"
                self._exclude(device, ring, fault, text)

    def tear_down(self) -> None:
        """Close what `configure` made, but the ports. No loop may hold a work any more."""
        self._drain()
        if self._works:
            self._works.close()
        self._works = None
        self._queues = {}
        self._guard = None
        self._translating = None
        self._served.close()

    def _drain(self) -> None:
        """Have all that the VF has of VM1's returned to it; one that does not is closed first."""
        try:
            self._ports.let_go()
            self._drain_works()
            if not self._ports.spoilt:  # else it is opened anew
                self._ports.receive_by_copy()
        except VhostPciError as error:
            self._log.warning("%s; closing it", error)
            self._close_ports()

    def _drain_works(self) -> None:
        deadline = time.monotonic() + (0 if self._ports.spoilt else _DRAIN_S)
        while self._works and self._works.drain():
            if time.monotonic() > deadline:
                self._log.warning("%s: the VF does not finish sending; closing it", self.name)
                self._close_ports()
                return
            time.sleep(_DRAIN_LOOK_S)

    def _close_ports(self) -> None:
        """The VF no longer reads or writes VM1's memory: what it has of it goes back as it is."""
        if self._works:
            self._works.close()
        self._ports.close()
        for _, queue in self._queues.values():
            queue.abandon()

    def detach(self) -> None:
        """Tear down and close the function, as well as a lost one lets itself be. Twice is fine."""
        self.tear_down()
        self._device = None
        self._status = Status(0)
        self._said = ""
        self._attached.close()

    def close(self) -> None:
        """Detach, and close the VF and the source. Twice is fine."""
        self.detach()
        self._ports.close()
        self.source.close()

    def snapshot(self) -> stats.Channel:
        """Its counters, now."""
        ports, ways = self._ports, self._receiving
        ends = self._stats or [(DirectionStats(), DirectionStats())]
        return stats.Channel(
            self.name,
            ports.name,
            self.state,
            tuple(
                stats.pair(tx, rx, ports.counts(number), ways.counts(number))
                for number, (rx, tx) in enumerate(ends)
            ),
            max(0, self._configurations - 1),
            self._quarantine.count,
            ports.mode,
            ports.counters(),
        )
