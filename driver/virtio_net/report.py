"""What a port tells of its device, and what that means: struct rk_virtio_report."""

from __future__ import annotations

import ctypes
from ctypes import c_uint32

from driver.sending import Sending, SendWatch

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
    sending: Sending
    _fields_ = [("trouble", c_uint32), ("sending", Sending)]


class Watch:
    """Looks at one port's report, once in a while.

    Attributes:
        report: The port's; its address stays.
    """

    def __init__(self) -> None:
        self.report = Report()
        self._sends = SendWatch(self.report.sending)

    def trouble(self, *, link_up: bool) -> str:
        """Why the device must be set up anew, or "": see `SendWatch`."""
        return _TROUBLES[self.report.trouble] or self._sends.trouble(link_up=link_up)
