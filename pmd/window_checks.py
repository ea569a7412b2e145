"""What `pmd doctor` says of a window, by attaching to its function and reading it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from driver.state_area import WINDOW_RW
from guest.errors import VhostPciError
from guest.write_combining import combining_bars
from pmd.finding import Finding, ok, problem, warning
from pmd.source import SimSource
from pmd.window_map import WindowMap, measure
from pmd.window_probe import MemoryType, WindowSpeed, measure_window

if TYPE_CHECKING:
    from guest.discovery import PciFunction
    from pmd.source import Source

# How long VM1 may take to connect: one that we start, and one that should be there.
_SIM_WAIT_S = 20.0
_VM1_WAIT_S = 1.0
_LOOK_S = 0.05
_NO_VM1 = "VM1's memory is not there to be measured"
_START_VM1 = "start VM1 and its driver"
_HOST = "only the host can make it cached (KVM on Intel does, on AMD does not)"


def check_source(source: Source) -> Finding:
    """The window of a function reached by vfio-user. Closes the source."""
    what = f"{source.name} window"
    deadline = time.monotonic() + (_SIM_WAIT_S if isinstance(source, SimSource) else _VM1_WAIT_S)
    try:
        with contextlib.closing(source), source.open() as function:
            while (speed := measure_window(function)) is None:
                if time.monotonic() > deadline:
                    return warning(what, _NO_VM1, _START_VM1)
                time.sleep(_LOOK_S)
    except VhostPciError as error:
        return _refused(what, error)
    return _judged(what, speed, _HOST)


def check_windows(pci: PciFunction) -> list[Finding]:
    """The window of a function of this machine, mapped both ways; it is free to be opened."""
    by_vfio = _measured(pci, WindowMap.VFIO)
    what = f"{pci.address} window by vfio"
    if isinstance(by_vfio, VhostPciError):
        return [_refused(what, by_vfio)]
    if by_vfio is None:
        return [warning(what, _NO_VM1, _START_VM1)]
    offered = WINDOW_RW in combining_bars(pci)
    by_wc = _measured(pci, WindowMap.WC) if offered else None
    return judge_windows(pci.address, by_vfio, by_wc)


def judge_windows(
    name: str, by_vfio: WindowSpeed, by_wc: WindowSpeed | VhostPciError | None
) -> list[Finding]:
    """Judge what was measured, or why it was not; by_wc is None where the kernel offers none."""
    remedy = _HOST
    if isinstance(by_wc, WindowSpeed) and by_wc.line_ns < by_vfio.line_ns:
        remedy = "run with --window-map wc, or auto, which finds that out by itself"
    found = [_judged(f"{name} window by vfio", by_vfio, remedy)]
    what = f"{name} window by wc"
    if by_wc is None:
        found.append(ok(what, "the kernel offers none"))
    elif isinstance(by_wc, WindowSpeed):
        found.append(_judged(what, by_wc, _HOST))
    elif by_vfio.memory_type is MemoryType.CACHED:
        found.append(ok(what, f"not to be had, nor needed: {by_wc.cause}"))
    else:
        found.append(warning(what, by_wc.cause, by_wc.remedy))
    return found


def _measured(pci: PciFunction, way: WindowMap) -> WindowSpeed | VhostPciError | None:
    try:
        return measure(pci, way)
    except VhostPciError as error:
        return error


def _judged(what: str, speed: WindowSpeed, remedy: str) -> Finding:
    if speed.memory_type is MemoryType.UNCACHED:
        return warning(what, str(speed), remedy)
    return ok(what, str(speed))


def _refused(what: str, error: VhostPciError) -> Finding:
    found = f"cannot {error.operation} {error.subject}: {error.cause}"
    return problem(what, found, error.remedy)
