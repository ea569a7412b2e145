"""PCI functions of one kind as they come and go.

The kernel broadcasts each change (a uevent); udevd, where it runs, repeats it once its rules are
done: device nodes have their permissions then.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.discovery import pci_functions, udev_context
from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyudev

_UDEVD = Path("/run/udev/control")


@dataclass(frozen=True, slots=True)
class Change:
    """A function is there to be used (plugged in, or given a driver), or it has gone."""

    address: str
    present: bool


class Hotplug(Closing):
    """The functions with these ids: those that are here, then every change.

    A change may be told twice, and one that `present` has seen already may follow: the caller
    looks at what it has. Thread rule: one thread at a time.

    Args:
        vendor: The PCI vendor.
        device: The PCI device id.
        source: "udev" or "kernel"; by default udevd's where it runs.

    Raises:
        VhostPciError: libudev is missing, or the kernel has no uevents for us.
    """

    def __init__(self, vendor: int, device: int, source: str | None = None) -> None:
        context = udev_context()
        import pyudev  # noqa: PLC0415 - udev_context has seen that it can be imported

        self._ids = vendor, device
        self._pci_id = f"{vendor:04X}:{device:04X}"
        try:
            self._monitor: pyudev.Monitor | None = pyudev.Monitor.from_netlink(
                context, source or ("udev" if _UDEVD.exists() else "kernel")
            )
            self._monitor.filter_by("pci")
            # Before anybody enumerates: a function that comes in between is told twice, not never.
            self._monitor.start()
            self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))
        except OSError as error:
            raise VhostPciError("watch", "PCI functions", errno_text(error)) from error
        self._known: set[str] = set()

    def fileno(self) -> int:
        """Readable when `changes` may have something."""
        return self._socket.fileno()

    def present(self) -> list[str]:
        """The addresses of the functions that are here now, sorted.

        Raises:
            VhostPciError: They cannot be listed.
        """
        found = [function.address for function in pci_functions(*self._ids)]
        self._known = set(found)
        return found

    def changes(self) -> list[Change]:
        """What has changed since the last call, in order; does not wait.

        Raises:
            VhostPciError: The functions cannot be listed, after the kernel's queue ran over.
        """
        found: list[Change] = []
        try:
            for event in self._events():
                found += self._judge(event)
        except OSError:
            # The socket's queue ran over. Asking for the error takes it back.
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            for _ in self._events():
                pass  # older than what is looked at now
            found += self._compared()
        return found

    def _events(self) -> Iterator[pyudev.Device]:
        while self._monitor is not None and (event := self._monitor.poll(0)) is not None:
            yield event

    def _judge(self, event: pyudev.Device) -> list[Change]:
        address = str(event.sys_name)
        if event.action in ("add", "bind") and event.properties.get("PCI_ID") == self._pci_id:
            self._known.add(address)
            return [Change(address, present=True)]
        if event.action == "remove" and address in self._known:
            self._known.discard(address)
            return [Change(address, present=False)]
        return []

    def _compared(self) -> list[Change]:
        """Events were lost: what has gone of what was known, and all that is here."""
        former = self._known
        here = self.present()
        gone = [Change(address, present=False) for address in sorted(former.difference(here))]
        return gone + [Change(address, present=True) for address in here]

    def close(self) -> None:
        """Stop watching. Twice is fine."""
        self._socket.close()
        self._monitor = None  # pyudev closes its descriptor with the last reference
