"""Where two CPUs stand to each other, asked of the CPUs themselves."""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

from guest.closing import Closing
from guest.errors import UsageError, VhostPciError
from tools.vm1.engine_abi import ProbeResult, library


@dataclass(frozen=True, slots=True)
class Reading:
    """One probe: TSC cycles of a cache line's way to the other CPU, and of eight additions on each.

    None instead of a Reading: the helper did not get its CPU in time.
    """

    one_way_cycles: float
    own_alu_cycles: float
    peer_alu_cycles: float


class Probe(Closing):
    """A helper thread of real-time priority on the back-end's CPU, asleep but for probes.

    Owns the thread. Thread rule: one thread, pinned to another CPU.

    Args:
        peer_cpu: The back-end's CPU.

    Raises:
        UsageError: This process may not run there.
        VhostPciError: The kernel refuses the thread, such as for want of CAP_SYS_NICE.
    """

    def __init__(self, peer_cpu: int) -> None:
        self._library = library()
        self._handle = self._library.vm1_probe_new(peer_cpu)
        if not self._handle:
            number = ctypes.get_errno()
            if number == errno.EINVAL:
                raise UsageError("use", f"--peer-cpu {peer_cpu}", "this process may not run there")
            remedy = "it needs CAP_SYS_NICE" if number == errno.EPERM else ""
            cause = os.strerror(number).lower()
            raise VhostPciError("start", f"the probe on CPU {peer_cpu}", cause, remedy)

    def read(self) -> Reading | None:
        """Take both CPUs for under a millisecond."""
        result = ProbeResult()
        if self._library.vm1_probe_run(self._handle, ctypes.byref(result)):
            return None
        return Reading(
            one_way_cycles=result.one_way_milli / 1000,
            own_alu_cycles=result.own_alu_milli / 1000,
            peer_alu_cycles=result.peer_alu_milli / 1000,
        )

    def close(self) -> None:
        """End the helper. Twice is fine."""
        if self._handle:
            self._library.vm1_probe_free(self._handle)
            self._handle = None
