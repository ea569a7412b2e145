"""A run, from its options to its statistics."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING

from driver.software_vf import KINDS, parse_vf
from driver.software_vf.patch import PREFIX
from driver.state_area import DEVICE_ID, VENDOR_ID
from guest.cpus import default_lcores, kept_off, parse_lcores
from guest.errors import DeviceGoneError, UsageError, VhostPciError
from guest.hotplug import Hotplug
from pmd.channel import Channel
from pmd.daemon import Daemon
from pmd.kernel import Poll
from pmd.ports import Copy
from pmd.serving import Serving
from pmd.signals import Signals
from pmd.slots import NUMBER, Slots, VfTemplate
from pmd.source import AUTO, PciSource, SimSource, sources
from pmd.window_map import WindowMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pmd import stats
    from pmd.config import Options
    from pmd.report import View
    from pmd.source import Source

_log = logging.getLogger("pmd")
# --poll: how long nothing may have moved before an lcore sleeps.
_IDLE_NS = {"busy": None, "adaptive": 1_000_000, "interrupt": 0}


def run(options: Options, view: View) -> tuple[stats.Snapshot, stats.Snapshot]:
    """Bring everything up, forward, take everything down; the first and the last snapshot.

    Main thread, no other threads yet. Whatever ends it, nothing stays open, mapped or running.

    Raises:
        UsageError: The options do not fit together, or name what is not there.
        VhostPciError: A function or VF cannot be used.
        SystemExit: A signal came before forwarding began.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(view.close)
        signals = stack.enter_context(Signals(asks=True))
        cpus = parse_lcores(options.lcores) if options.lcores else default_lcores(1)
        stack.enter_context(kept_off(cpus))  # only lcores run there
        found = sources(options.devices, WindowMap(options.window_map))
        specs = _resolve(_specs(options.vfs, found))
        idle_ns = _IDLE_NS[options.poll]
        serving = Serving(options.bar, idle_ns is not None, Copy(options.copy))
        slots = _slots(stack, found, serving)
        channels: list[Channel] = []
        for source, spec in zip(found, specs, strict=True):
            if slots is not None and isinstance(source, PciSource):
                channels.append(slots.add(source, VfTemplate(spec)))
                continue
            vf = parse_vf(spec)
            channels.append(Channel(source, vf, serving))
            stack.callback(channels[-1].close)
        for channel in channels:
            if slots is None or channel not in slots:
                channel.attach()
        if slots is not None:
            attach(slots, channels)
        poll = Poll(idle_ns, options.coalesce_us * 1000)
        daemon = stack.enter_context(
            Daemon(channels, cpus, options.burst, signals, slots=slots, poll=poll)
        )
        period_s = math.inf if options.json else options.stats_period_s  # nothing to be shown
        return daemon.run(view, period_s, options.duration_s)


def attach(slots: Slots, channels: list[Channel]) -> None:
    """Attach the functions that are here. What cannot be is tried again, as if it came later.

    Unless nothing else is to be served: whoever waits for this run wants to know then.

    Args:
        slots: Of the functions.
        channels: All of the run, each but those of slots attached; what slots adds is put to them.

    Raises:
        UsageError: The options cannot be meant, whatever else is served.
        VhostPciError: None could be attached: the first one's, unless that has merely gone.
    """
    refused: list[tuple[str, VhostPciError]] = []
    for channel in slots.begin():
        if channel not in channels:  # one more than auto's first
            channels.append(channel)
        try:
            channel.attach()
        except UsageError:
            raise
        except VhostPciError as error:
            refused.append((channel.name, error))
    lasting = [error for _, error in refused if not isinstance(error, DeviceGoneError)]
    if lasting and not any(channel.attached for channel in channels):
        raise lasting[0]
    for address, why in refused:
        slots.again(address, why)


def _slots(stack: contextlib.ExitStack, found: Sequence[Source], serving: Serving) -> Slots | None:
    """The slots of this run, closed by the stack; None where no PCI function is wanted."""
    if not any(isinstance(source, PciSource) for source in found):
        return None
    hotplug = stack.enter_context(Hotplug(VENDOR_ID, DEVICE_ID))
    return stack.enter_context(Slots(hotplug, serving))


def _specs(specs: Sequence[str], found: Sequence[Source]) -> list[str]:
    """One VF's spec for each source, in order."""
    if not specs:
        return [_default_vf(source) for source in found]
    if len(specs) != len(found):
        names = ", ".join(source.name for source in found)
        cause = f"there are {len(specs)} for {len(found)} devices ({names})"
        raise UsageError("use", "--vf", cause, "give one --vf for each device, in order")
    for spec, source in zip(specs, found, strict=True):
        if NUMBER in spec and source.name != AUTO:
            cause = f"{NUMBER} counts the functions of {AUTO}, and {source.name} is one"
            raise UsageError("use", f"--vf {spec}", cause, f"leave {NUMBER} away")
    _check_patches(specs, found)
    return list(specs)


def _check_patches(specs: Sequence[str], found: Sequence[Source]) -> None:
    """Refuse a patch that has not two ends, each at a device of its own."""
    for spec in specs:
        if not spec.startswith(PREFIX):
            continue
        names = [source.name for each, source in zip(specs, found, strict=True) if each == spec]
        if AUTO in names:
            cause = f"it joins two devices, and {AUTO} is as many as there are"
            raise UsageError("use", f"--vf {spec}", cause, "name each of the two with --device")
        if len(names) != 2:
            cause = f"a patch has two ends, and this one {len(names)} ({', '.join(names)})"
            raise UsageError("use", f"--vf {spec}", cause, "give it to two devices")


def _resolve(specs: list[str]) -> list[str]:
    """The specs with what was picked for each auto."""
    if AUTO not in specs:
        return specs
    from driver.auto_vf import resolve  # noqa: PLC0415 - every VF driver, of which most runs need one

    chosen = resolve(specs)
    for choice in chosen:
        if choice.what:
            _log.info("VF %s: %s, %s", AUTO, choice.spec, choice.what)
    return [choice.spec for choice in chosen]


def _default_vf(source: Source) -> str:
    """In a VM the one VF that it has been given; a host's network cards are not ours to pick."""
    if isinstance(source, SimSource):
        return "loop"
    if isinstance(source, PciSource):
        return AUTO
    cause = f"{source.name} needs one"
    raise UsageError("run without", "--vf", cause, f"the kinds are {', '.join(KINDS)}, or {AUTO}")
