"""What VFs driven through VFIO share: the open function, and VM1's memory as its DMA sees it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.software_vf.vf import Vf
from guest.discovery import pci_function
from guest.errors import VhostPciError
from guest.vfio import VfioFunction
from guest.vfio_container import Container

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guest.dma import IovaSpace
    from guest.function import Function
    from guest.mapping import Mapping

_log = logging.getLogger("pmd")


@dataclass(frozen=True, slots=True)
class OpenFunction:
    """A function and the I/O addresses its container's IOMMU translates; closing it closes both."""

    function: Function
    iova_ranges: tuple[tuple[int, int], ...]


def open_by_vfio(address: str) -> OpenFunction:
    """The function at a PCI address, in a container of its own."""
    container = Container()
    function = VfioFunction(container, pci_function(address), owns_container=True)
    try:
        return OpenFunction(function, container.iommu_info().iova_ranges)
    except BaseException:
        function.close()
        raise


class WindowTable:
    """Parts of VM1's memory that the VF reaches: RK_VF_WINDOWS of struct rk_vf_window.

    Changed only while no loop runs the VF's ports.
    """

    capacity = 16

    def __init__(self) -> None:
        self._words = (ctypes.c_uint64 * (3 * self.capacity))()
        self.count = 0

    @property
    def address(self) -> int:
        """Of the table in this process, as long as it lives."""
        return ctypes.addressof(self._words)

    def append(self, address: int, size: int, iova: int) -> None:
        """One more; count must be less than capacity."""
        self._words[3 * self.count : 3 * self.count + 3] = [address, size, iova]
        self.count += 1

    def clear(self) -> None:
        """None any more."""
        ctypes.memset(self._words, 0, ctypes.sizeof(self._words))
        self.count = 0


class SharedWindows:
    """`Vf.share` and `Vf.unshare` for a VF with DMA: it may read all of VM1.

    Thread rule: as of the VF.

    Args:
        spec: The VF's, for messages.
    """

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._table = WindowTable()
        self._mapped = contextlib.ExitStack()

    @property
    def address(self) -> int:
        """Of the `WindowTable`, as long as this lives."""
        return self._table.address

    def map(
        self,
        function: Function,
        space: IovaSpace,
        mappings: Sequence[Mapping],
        *,
        writable: bool = False,
    ) -> bool:
        """Let the function read the mappings, until `unmap`; one it cannot is left out.

        Whether none was. writable: And write those that this process may write.
        """
        self._mapped.callback(space.rewind, space.mark())
        for mapping in mappings[: self._table.capacity]:
            try:
                iova = space.take(mapping.size)
                write = writable and mapping.writable
                function.dma_map(mapping.address, mapping.size, iova, writable=write)
            except VhostPciError as error:
                _log.warning("VF %s: %s; frames there are copied", self._spec, error)
                continue
            self._mapped.callback(function.dma_unmap, iova, mapping.size)
            self._table.append(mapping.address, mapping.size, iova)
        return self._table.count == len(mappings)

    def unmap(self) -> None:
        """Take all of it back. Twice is fine."""
        self._table.clear()
        self._mapped.close()


class PassthroughVf(Vf):
    """A VF driven through VFIO: its link, and VM1's memory as it reaches it.

    Args:
        spec: The user's words.
        address: Its PCI address in full.
        mac: VM1's MAC address, 6 bytes; None: the one that the VF has, which VM1 must use.
        open_function: Opens it.
    """

    look_period_s = 0.5
    opens_slowly = True
    reads_vm1 = True

    def __init__(
        self,
        spec: str,
        address: str,
        mac: bytes | None = None,
        open_function: Callable[[str], OpenFunction] = open_by_vfio,
    ) -> None:
        super().__init__(spec)
        self._address = address
        self._mac = mac
        self._open_function = open_function
        self._link_up = ctypes.c_uint32()
        self._windows = SharedWindows(spec)
        self._opened: tuple[Function, IovaSpace] | None = None

    def share(self, mappings: Sequence[Mapping]) -> bool:
        """See `Vf.share`: the VF may read all of them, and write where we may if it does that."""
        if self._opened is None:
            return False
        return self._windows.map(*self._opened, mappings, writable=self.writes_vm1)

    def unshare(self) -> None:
        """See `Vf.unshare`."""
        self._windows.unmap()

    def _wanted_back(self) -> str:
        """Why it must be let go of for good: it is being unplugged, or unbound; or ""."""
        if self._opened is None:
            return ""
        function, _ = self._opened
        readable, _, _ = select.select([function.fileno()], [], [], 0)
        return "the kernel wants it back" if readable else ""

    def _see_link(self, *, up: bool, first: bool = False) -> None:
        if first or up != bool(self._link_up.value):
            _log.info("VF %s: link %s", self.spec, "up" if up else "down")
        self._link_up.value = up
