"""A run, from its options to its statistics."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from driver.software_vf import KINDS, parse_vf
from guest.cpus import default_lcores, parse_lcores
from guest.errors import UsageError
from pmd.channel import Channel
from pmd.daemon import Daemon
from pmd.signals import Signals
from pmd.source import SimSource, sources
from pmd.window_map import WindowMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driver.software_vf import Vf
    from pmd import stats
    from pmd.config import Options
    from pmd.report import View
    from pmd.source import Source


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
        signals = stack.enter_context(Signals())
        cpus = parse_lcores(options.lcores) if options.lcores else default_lcores(1)
        found = sources(options.devices, cpus, WindowMap(options.window_map))
        channels: list[Channel] = []
        for source, vf in zip(found, _vfs(options.vfs, found), strict=True):
            channels.append(Channel(source, vf, options.bar))
            stack.callback(channels[-1].close)
        for channel in channels:
            channel.attach()
        daemon = stack.enter_context(Daemon(channels, cpus, options.burst, signals))
        return daemon.run(view, options.stats_period_s, options.duration_s)


def _vfs(specs: Sequence[str], found: Sequence[Source]) -> list[Vf]:
    """One VF for each source, in order."""
    if not specs:
        return [_default_vf(source) for source in found]
    if len(specs) != len(found):
        names = ", ".join(source.name for source in found)
        cause = f"there are {len(specs)} for {len(found)} devices ({names})"
        raise UsageError("use", "--vf", cause, "give one --vf for each device, in order")
    return [parse_vf(spec) for spec in specs]


def _default_vf(source: Source) -> Vf:
    if isinstance(source, SimSource):
        return parse_vf("loop")
    cause = f"{source.name} needs one"
    raise UsageError("run without", "--vf", cause, f"the kinds are {', '.join(KINDS)}")
