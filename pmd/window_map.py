"""How VM1's memory is mapped from a function of this machine: `--window-map`.

VFIO maps it uncached in this VM's page tables. An Intel host's KVM overrides that (cached), an
AMD host's does not; there sysfs's write-combining mapping reads a line at a time.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from typing import TYPE_CHECKING

from driver.state_area import WINDOW_RW
from guest.errors import VhostPciError
from guest.vfio import VfioFunction
from guest.write_combining import combining_bars
from pmd.window_probe import MemoryType, measure_window

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest.discovery import PciFunction
    from pmd.window_probe import WindowSpeed

_log = logging.getLogger("pmd")


class WindowMap(enum.Enum):
    """The values of `--window-map`."""

    AUTO = "auto"
    VFIO = "vfio"
    WC = "wc"


def open_function(pci: PciFunction, wanted: WindowMap) -> VfioFunction:
    """Open a function whose windows will be mapped as wanted; auto measures, and logs its choice.

    Raises:
        VhostPciError: It cannot be opened, or be mapped as wanted.
    """
    if wanted is WindowMap.AUTO:
        return _open_faster(pci)
    if wanted is WindowMap.VFIO:
        return VfioFunction.attach(pci)
    function = VfioFunction.attach(pci, combine=(WINDOW_RW,))
    try:
        # Here, where a refusal ends the bring-up, rather than when VM1's memory comes.
        for area in function.region(WINDOW_RW).areas[:1]:
            function.map_area(WINDOW_RW, area, writable=True).close()
    except BaseException:
        function.close()
        raise
    return function


def _open_faster(pci: PciFunction) -> VfioFunction:
    """Open it as auto chooses; what was opened to be measured stays, if it is what was chosen."""
    opened: dict[WindowMap, VfioFunction] = {}
    with contextlib.ExitStack() as stack:

        def measured(way: WindowMap) -> WindowSpeed | None:
            stack.close()  # one at a time: guest/write_combining.py tells why
            opened.clear()
            opened[way] = stack.enter_context(open_function(pci, way))
            return measure_window(opened[way])

        chosen, why = choose(measured, offered=WINDOW_RW in combining_bars(pci))
        _log.info("%s: window mapped by %s: %s", pci.address, chosen.value, why)
        if chosen in opened:
            stack.pop_all()
            return opened[chosen]
    return open_function(pci, chosen)


def measure(pci: PciFunction, way: WindowMap) -> WindowSpeed | None:
    """How fast the window is, mapped by vfio or wc; None where VM1's memory is not there.

    Each time the function is opened anew: guest/write_combining.py tells why that has to be.

    Raises:
        VhostPciError: It cannot be opened, or be mapped so.
    """
    with open_function(pci, way) as function:
        return measure_window(function)


def choose(
    measured: Callable[[WindowMap], WindowSpeed | None], *, offered: bool
) -> tuple[WindowMap, str]:
    """The faster of vfio and wc, and why.

    Args:
        measured: How fast one of them is, None where there is nothing to read.
        offered: Whether there is a wc at all.

    Raises:
        VhostPciError: Vfio cannot be measured. That wc cannot is a reason against it.
    """
    if not offered:
        return WindowMap.VFIO, "the kernel offers no other way"
    by_vfio = measured(WindowMap.VFIO)
    if by_vfio is None:
        return WindowMap.VFIO, "VM1's memory is not there to be measured"
    if by_vfio.memory_type is MemoryType.CACHED:
        return WindowMap.VFIO, str(by_vfio)
    try:
        by_wc = measured(WindowMap.WC)
    except VhostPciError as error:
        return WindowMap.VFIO, f"{by_vfio}; {error}"
    # The lines count: rings are read and written in lines, whichever way they are mapped.
    if by_wc is None or by_wc.line_ns >= by_vfio.line_ns:
        return WindowMap.VFIO, f"{by_vfio}; no slower than {by_wc}"
    return WindowMap.WC, f"{by_wc}; faster than {by_vfio}"
