"""The SIGBUS guard: a window whose memory shrinks must not kill the process (docs/device.md 8)."""

from __future__ import annotations

import ctypes
import os

from guest.closing import Closing
from guest.errors import VhostPciError
from pmd.kernel_library import library


class Guard(Closing):
    """One channel's windows, watched for SIGBUS: a window whose memory shrinks reads as zeros.

    The first Guard installs the process's handler. `faulted` then becomes true for good, and works
    that were given the guard stop with `Event.FAULT`.

    Raises:
        VhostPciError: The handler cannot be installed.
    """

    def __init__(self) -> None:
        self._fault = ctypes.c_uint32(0)
        self._bases: set[int] = set()
        if library().rk_guard_install() != 0:
            cause = os.strerror(ctypes.get_errno()).lower()
            raise VhostPciError("install", "the SIGBUS handler", cause)

    @property
    def fault_address(self) -> int:
        """Where the kernel's loop reads the flag."""
        return ctypes.addressof(self._fault)

    @property
    def faulted(self) -> bool:
        """Whether memory went away under one of the windows."""
        return self._fault.value != 0

    def add(self, address: int, length: int) -> None:
        """Watch length bytes from address, page aligned; `remove` it before it is unmapped."""
        if library().rk_guard_add(address, length, ctypes.byref(self._fault)) != 0:
            cause = os.strerror(ctypes.get_errno()).lower()
            raise VhostPciError("guard", f"{length} bytes at {address:#x}", cause)
        self._bases.add(address)

    def remove(self, address: int) -> None:
        """Stop watching; an address that is not watched is fine."""
        if address in self._bases:
            library().rk_guard_remove(address)
            self._bases.remove(address)

    def close(self) -> None:
        """Stop watching all. Twice is fine."""
        for address in tuple(self._bases):
            self.remove(address)
