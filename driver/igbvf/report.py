"""What a port tells of its VF, and what that means: struct rk_igbvf_report.

A VF that takes what it was given and reports nothing looks like a quiet wire in its ring. Its own
registers witness against it: the counters of what it received, and its ring's ends.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint32
from typing import TYPE_CHECKING

from driver.igbvf.device import FRAME_BYTES_MAX, Counters
from driver.igbvf.queue import BUFFER_BYTES, DESCRIPTOR_BYTES
from driver.sending import Sending, SendWatch

if TYPE_CHECKING:
    from driver.igbvf.device import Device
    from driver.igbvf.queue import Ring

_STALL_LOOKS = 4
_STATUS, _DONE = 8, 1 << 0  # of a receive descriptor that was written back: datasheet, 7.1.5
_LONGEST_DESCRIPTORS = -(-FRAME_BYTES_MAX // BUFFER_BYTES)


class Trouble(enum.IntEnum):
    """enum rk_igbvf_trouble."""

    WELL = 0
    OVERRUN = 1
    FOREIGN = 2


_WORDS = {
    Trouble.WELL: "",
    Trouble.OVERRUN: "it wrote more to a buffer of VM1's than its PF lets it receive: "
    "it is at fault",
    Trouble.FOREIGN: "it reported a buffer that it does not have",
}


class Report(ctypes.Structure):
    """struct rk_igbvf_report: written by the port, read at any time."""

    trouble: int
    received: int
    sending: Sending
    _fields_ = [("trouble", c_uint32), ("received", c_uint32), ("sending", Sending)]


class Watch:
    """Looks at the report of a VF's only port, and at the VF, once in a while.

    Args:
        rx: The receive ring, whose memory lasts for as long as `trouble` is asked.
        frame_bytes: Longer frames are not received; with tag and FCS.

    Attributes:
        report: The port's, at first zeroed; its address stays.
        unreported: Frames that the VF counted since it reported one.
    """

    def __init__(self, rx: Ring, frame_bytes: int) -> None:
        self.report = Report()
        self._rx = rx
        self._frame_bytes = frame_bytes
        self._sends = SendWatch(self.report.sending)
        self._counters = Counters()
        self._received = 0
        self._stalled = 0
        self.unreported = 0

    def trouble(self, device: Device, *, link_up: bool) -> str:
        """Why the VF must be set up anew, or "".

        Raises:
            DeviceGoneError: It left the bus.
        """
        stopped = self._receives(device, link_up=link_up)
        told = _WORDS[Trouble(self.report.trouble)]
        return told or stopped or self._sends.trouble(link_up=link_up)

    def _receives(self, device: Device, *, link_up: bool) -> str:
        """A receive queue stopped where at several calls a frame was due, and none was reported."""
        before, self._counters = self._counters, device.counters()
        # Only now: what was counted has had the time since to be reported.
        received = self.report.received
        if received != self._received or self._next_reported(received):
            self._received, self._stalled, self.unreported = received, 0, 0
        elif link_up:
            self._stalled += self._is_stalled(device, before)
        return "it stopped receiving" if self._stalled >= _STALL_LOOKS else ""

    def _next_reported(self, received: int) -> bool:
        """Whether the oldest descriptor is: then nobody takes it, which is not the VF's fault."""
        at = self._rx.address + received % self._rx.count * DESCRIPTOR_BYTES
        return bool(c_uint32.from_address(at + _STATUS).value & _DONE)

    def _is_stalled(self, device: Device, before: Counters) -> bool:
        """Whether by its own registers there is more to report than it did."""
        head, tail = device.receive_ends(0)
        given, left = ((tail - begin) % self._rx.count for begin in (self._received, head))
        packets = self._counters.packets_received - before.packets_received
        size = self._counters.bytes_received - before.bytes_received
        self.unreported += packets
        if left > given or given > left == 0:  # it is behind what it reported, or has used up all
            return True
        # It may count what there was no room for, or was too long for it: 8.26 does not say.
        # The mean says that one at least was not.
        fits = given >= _LONGEST_DESCRIPTORS and size <= packets * self._frame_bytes
        return packets > 0 and fits
