"""How a window is mapped, told by how fast it can be read."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from driver.state_area import Permission
from driver.vhost_pci import VhostPci
from guest.errors import VhostPciError
from guest.named_tuple import NamedTuple
from pmd.guard import Guard
from pmd.kernel_library import library

if TYPE_CHECKING:
    from driver.device_state import DeviceState
    from guest.function import Function

_BUDGET_NS = 10_000_000
_LINE_BYTES = 64
# A line in the first-level cache answers in 1 to 5 ns, an emulated processor in some 10. Past the
# caches a load is a transaction of its own, of 100 ns and more.
_CACHED_LOAD_NS_MAX = 50.0


class MemoryType(enum.Enum):
    """What the processor makes of a mapping."""

    CACHED = "cached"
    WRITE_COMBINING = "write-combining"
    UNCACHED = "uncached"


class WindowSpeed(NamedTuple):
    """What was measured.

    Attributes:
        load_ns: An 8-byte load that waits for the one before it.
        line_ns: A 64-byte line, read as a stream.
    """

    load_ns: float
    line_ns: float

    @property
    def memory_type(self) -> MemoryType:
        """Uncached, a line takes several loads, one after the other; write-combining, one."""
        if self.load_ns <= _CACHED_LOAD_NS_MAX:
            return MemoryType.CACHED
        if self.line_ns < 2 * self.load_ns:
            return MemoryType.WRITE_COMBINING
        return MemoryType.UNCACHED

    def __str__(self) -> str:
        gigabytes_per_s = _LINE_BYTES / self.line_ns
        return f"{self.memory_type.value}: {self.load_ns:.1f} ns a load, {gigabytes_per_s:.2f} GB/s"


def measure(address: int, size: int) -> WindowSpeed:
    """Read size bytes (a page or more) at address for some 20 ms.

    Raises:
        VhostPciError: It is less than a page.
    """
    begin = -(-address // _LINE_BYTES) * _LINE_BYTES
    arguments = (begin, address + size - begin, _BUDGET_NS)
    load_ps = library().rk_probe_load_ps(*arguments)
    line_ps = library().rk_probe_line_ps(*arguments)
    if not load_ps or not line_ps:
        raise VhostPciError("measure", f"{size} bytes", "that is less than a page")
    return WindowSpeed(load_ps / 1000, line_ps / 1000)


def measure_window(function: Function) -> WindowSpeed | None:
    """Attach to a vhost-pci function, measure VM1's memory, detach; None if none is there.

    Nothing but reads of memory: VM1 and its rings are left alone.

    Raises:
        VhostPciError: It is no vhost-pci function, or its window cannot be mapped or went away.
    """
    with VhostPci(function) as device:
        state = device.state()
        run = _largest_run(state)
        if run is None:
            return None
        with Guard() as guard:
            for mapping in device.mappings:
                guard.add(mapping.address, mapping.size)
            speed = measure(*run)
            if guard.faulted:
                cause = "its memory went away meanwhile"
                raise VhostPciError("measure", f"the window of {function.name}", cause)
            return speed


def _largest_run(state: DeviceState) -> tuple[int, int] | None:
    """Address and size of the longest piece of VM1's memory that this process may read."""
    readable = [each for each in state.regions if each.permission & Permission.READ]
    if not readable:
        return None
    longest = max(readable, key=lambda each: each.length)
    return longest.host, longest.length
