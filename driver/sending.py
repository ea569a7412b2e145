"""How a port's sending goes, and what that means: struct rk_sending."""

from __future__ import annotations

import ctypes
from ctypes import c_uint32

_STALL_LOOKS = 4


class Sending(ctypes.Structure):
    """struct rk_sending: written by the port, read at any time."""

    looks: int
    given: int
    done: int
    _fields_ = [("looks", c_uint32), ("given", c_uint32), ("done", c_uint32)]


class SendWatch:
    """Looks at how one port's sending goes, once in a while.

    Attributes:
        sending: The port's, at first zeroed; its address stays.
    """

    def __init__(self, sending: Sending) -> None:
        self.sending = sending
        self._looks = 0
        self._done = 0
        self._stalled = 0

    def trouble(self, *, link_up: bool) -> str:
        """Why the device must be set up anew, or "".

        A transmit queue counts as one that never will move again where for several calls in a row
        it has frames in it, its port looks for those that were sent, the link is up, and none was.
        """
        sending = self.sending
        looked, done = sending.looks != self._looks, sending.done
        self._looks = sending.looks
        if not looked:
            return ""
        waits = link_up and done == self._done and sending.given != done
        self._stalled = self._stalled + 1 if waits else 0
        self._done = done
        return "it stopped sending" if self._stalled >= _STALL_LOOKS else ""
