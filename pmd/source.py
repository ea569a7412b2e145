"""Where a channel's function comes from: a device name of the command line, made openable."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from driver.state_area import WINDOW_RW
from guest.binding import Binding
from guest.discovery import is_pci_address, pci_function
from guest.errors import DeviceGoneError, UsageError, VhostPciError
from guest.pci_facts import GIVE_ROOM, NO_ROOM, read_pci
from pmd.window_map import WindowMap, open_function

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest.discovery import PciFunction
    from guest.function import Function

_log = logging.getLogger("pmd")

AUTO = "auto"
# Less than the two seconds that a device waits for the acknowledgement of a driver whose heartbeat
# stands still, as that of a channel without rings does (docs/device.md 5.2): one stuck server must
# not make other devices give us up.
_TIMEOUT_S = 1.5


class Source(Protocol):
    """Opens one function, and again after it was lost. One thread."""

    @property
    def name(self) -> str:
        """As the user gave it, for messages and statistics."""
        ...

    @property
    def comes_back(self) -> bool:
        """Whether it is worth opening again after the function is gone."""
        ...

    def open(self) -> Function:
        """Open it; the caller closes. VhostPciError if that cannot be done."""
        ...

    def settled(self) -> None:
        """VM1 has been seen: what only served to get there may go."""
        ...

    def close(self) -> None:
        """Undo all that is not the function's own. Twice is fine."""
        ...


class SocketSource:
    """`vfio-user:PATH`: a device server, which may be restarted."""

    comes_back = True

    def __init__(self, path: str) -> None:
        self._path = path
        self.name = f"vfio-user:{path}"

    def open(self) -> Function:
        """Connect."""
        return _connected(self._path)

    def settled(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class PciSource:
    """A function of this machine, by VFIO. Whether it is here is told by uevents (pmd/slots.py).

    Args:
        address: Its PCI address, or None: `auto`, whichever is put into `name` before `open`.
        window_map: How its windows are to be mapped.
    """

    comes_back = False

    def __init__(self, address: str | None, window_map: WindowMap) -> None:
        self.follows = address is None
        self.name = address or AUTO
        self._window_map = window_map

    def another(self) -> PciSource:
        """One more of the same kind."""
        return PciSource(None if self.follows else self.name, self._window_map)

    def open(self) -> Function:
        """Give it to vfio-pci where it is not, and open it through the kernel."""
        binding = Binding(self.name)
        former = binding.driver
        binding.bind()
        if binding.driver != former:
            _log.info("%s: bound to %s", self.name, binding.driver)
        pci = pci_function(self.name)
        require_usable(pci)
        return open_function(pci, self._window_map)

    def settled(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do: it stays bound, for the next run."""


class SimSource:
    """`sim`: child processes of ours. Should they die, the channel stays down."""

    comes_back = False

    def __init__(self, name: str) -> None:
        self.name = name
        from pmd.sim import Simulation, parameters  # noqa: PLC0415 - child processes: only here

        self._simulation = Simulation(parameters(name))

    def open(self) -> Function:
        """Start the children and connect."""
        self._simulation.start()
        return _connected(self._simulation.socket)

    def settled(self) -> None:
        """VM1 has connected as well: nobody needs the sockets any more."""
        self._simulation.hide()

    def close(self) -> None:
        """Stop the children."""
        self._simulation.close()


def sources(devices: Sequence[str], window_map: WindowMap) -> list[Source]:
    """One source for each device named, `auto` where none is.

    Args:
        devices: As on the command line.
        window_map: How windows are to be mapped.

    Raises:
        UsageError: A name is none, or comes twice, or its windows cannot be mapped so.
    """
    found = [_source(device, window_map) for device in devices or (AUTO,)]
    names = [source.name for source in found if not isinstance(source, SimSource)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError("use", f"--device {name}", "it is given more than once")
    return found


def require_usable(pci: PciFunction) -> None:
    """Refuse a function of which configuration space tells that opening it leads nowhere.

    Raises:
        DeviceGoneError: It reads all ones: its server died, or it is on its way out. The kernel
            would reset it when it is opened, and wait a minute for it to come out of that.
        VhostPciError: The window's BAR is there and has no addresses: firmware's or kernel's. The
            device cannot know: it offers the window, and publishes rings that nobody can reach.
    """
    facts = read_pci(pci)
    if facts is None:
        return
    if not facts.present:
        raise DeviceGoneError("use", pci.address, "the device is gone", "unplug it, and plug anew")
    window = facts.bars[WINDOW_RW]
    if window.implemented and not window.size:
        raise VhostPciError("map", f"BAR {WINDOW_RW} of {pci.address}", NO_ROOM, GIVE_ROOM)


def _connected(path: str) -> Function:
    from guest.vfio_user import VfioUserFunction  # noqa: PLC0415 - a VM has PCI functions only

    return VfioUserFunction(path, _TIMEOUT_S)


def _source(device: str, window_map: WindowMap) -> Source:
    kind, _, rest = device.partition(":")
    if device == AUTO:
        return PciSource(None, window_map)
    if kind in ("vfio-user", "sim") and window_map is WindowMap.WC:
        cause = f"the windows of {device} are memory files, mapped one way only"
        remedy = "leave it away; it is for PCI functions"
        raise UsageError("use", "--window-map wc", cause, remedy)
    if kind == "vfio-user":
        return SocketSource(rest)
    if kind == "sim":
        return SimSource(device)
    for address in (device.lower(), f"0000:{device.lower()}"):
        if is_pci_address(address):
            return PciSource(address, window_map)
    remedy = "it is auto, a PCI address such as 0000:00:05.0, vfio-user:PATH or sim"
    raise UsageError("use", f"--device {device}", "there is no such kind of device", remedy)
