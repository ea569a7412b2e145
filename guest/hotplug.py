"""PCI functions of one kind as they come and go.

The kernel broadcasts each change (a uevent); udevd, where it runs, repeats it once its rules are
done: device nodes have their permissions then.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.discovery import pci_functions
from guest.errors import VhostPciError, errno_text
from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    import pyudev

_UDEVD = Path("/run/udev/control")


class Change(NamedTuple):
    """A function is there to be used (plugged in, or given a driver), or it has gone."""

    address: str
    present: bool


class Hotplug(Closing):
    """The functions with these ids: those that are here, then every change.

    First `present`, and whatever that leads to; then `watch`, which takes longer than both, since
    it loads libudev. A change may be told twice, and one that `present` has seen already may
    follow: the caller looks at what it has. Thread rule: one thread at a time.

    Args:
        vendor: The PCI vendor.
        device: The PCI device id.
        source: "udev" or "kernel"; by default udevd's where it runs.
    """

    def __init__(self, vendor: int, device: int, source: str | None = None) -> None:
        self._ids = vendor, device
        self._pci_id = f"{vendor:04X}:{device:04X}"
        self._source = source or ("udev" if _UDEVD.exists() else "kernel")
        self._monitor: pyudev.Monitor | None = None
        self._socket: socket.socket | None = None
        self._known: set[str] = set()
        self._compares = True

    def watch(self) -> None:
        """Begin to, if need be; `changes` first tells what came and went since `present`.

        Raises:
            VhostPciError: libudev is missing, or the kernel has no uevents for us.
        """
        if self._socket is not None:
            return
        try:
            # Here, since the import itself looks for libudev, by way of other processes, and since
            # naming all of a socket's numbers takes a seventh of the time until VM1 is served.
            import socket  # noqa: PLC0415

            import pyudev  # noqa: PLC0415

            context = pyudev.Context()
        except (ImportError, OSError) as error:
            cause = f"libudev is missing ({error})"
            raise VhostPciError("watch", "PCI functions", cause, "install libudev1") from error
        try:
            self._monitor = pyudev.Monitor.from_netlink(context, self._source)
            self._monitor.filter_by("pci")
            self._monitor.start()
            self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))
        except OSError as error:
            raise VhostPciError("watch", "PCI functions", errno_text(error)) from error

    def fileno(self) -> int:
        """Readable when `changes` may have something; after `watch`."""
        return self._socket.fileno() if self._socket is not None else -1

    def present(self) -> list[str]:
        """The addresses of the functions that are here now, sorted."""
        found = [function.address for function in pci_functions(*self._ids)]
        self._known = set(found)
        return found

    def __contains__(self, address: str) -> bool:
        """Whether a function with these ids is there, as `present` and `changes` last told."""
        return address in self._known

    def changes(self) -> list[Change]:
        """What has changed since the last call, in order; does not wait. After `watch`."""
        # Looked at after `watch`: what comes in between is told twice, not never.
        found = self._compared() if self._compares else []
        self._compares = False
        try:
            for event in self._events():
                found += self._judge(event)
        except OSError:
            # The socket's queue ran over. Asking for the error takes it back.
            import socket  # noqa: PLC0415 - see `watch`

            if self._socket is not None:
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
        """Nobody heard all events: what has gone of what was known, and all that is here."""
        former = self._known
        here = self.present()
        gone = [Change(address, present=False) for address in sorted(former.difference(here))]
        return gone + [Change(address, present=True) for address in here]

    def close(self) -> None:
        """Stop watching. Twice is fine."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._monitor = None  # pyudev closes its descriptor with the last reference
