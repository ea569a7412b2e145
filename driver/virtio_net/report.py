"""What a port tells of its device, and what that means: struct rk_virtio_report."""

from __future__ import annotations

import ctypes
from ctypes import c_uint32

_STALL_LOOKS = 4

# By enum rk_virtio_trouble of pmd/csrc/ringk.h.
_TROUBLES = (
    "",
    "it used more buffers than it was given",
    "it used a buffer that it does not have",
    "it wrote more or less than a buffer can hold",
    "it gave a frame an impossible number of buffers",
)


class Report(ctypes.Structure):
    """struct rk_virtio_report: written by the port, read at any time."""

    trouble: int
    looks: int
    given: int
    done: int
    _fields_ = [("trouble", c_uint32), ("looks", c_uint32), ("given", c_uint32), ("done", c_uint32)]


class Watch:
    """Looks at one port's report, once in a while.

    Attributes:
        report: The port's; its address stays.
    """

    def __init__(self) -> None:
        self.report = Report()
        self._looks = 0
        self._done = 0
        self._stalled = 0

    def trouble(self, *, link_up: bool) -> str:
        """Why the device must be set up anew, or "".

        A transmit queue counts as one that never will move again where for several calls in a row
        it has frames in it, its port looks for those that were sent, the link is up, and none was.
        """
        report = self.report
        if report.trouble:
            return _TROUBLES[report.trouble]
        looked, done = report.looks != self._looks, report.done
        self._looks = report.looks
        if not looked:
            return ""
        waits = link_up and done == self._done and report.given != done
        self._stalled = self._stalled + 1 if waits else 0
        self._done = done
        return "it stopped sending" if self._stalled >= _STALL_LOOKS else ""
