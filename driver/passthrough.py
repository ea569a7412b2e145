"""What VFs driven through VFIO share: the open function, and VM1's memory as its DMA sees it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.software_vf.vf import Vf
from guest.discovery import SYSFS, pci_function
from guest.errors import VhostPciError
from guest.syscalls import KERNEL
from guest.vfio import VfioFunction
from guest.vfio_container import Container

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from guest.dma import IovaSpace
    from guest.function import Function
    from guest.mapping import Mapping
    from guest.syscalls import Syscalls

_log = logging.getLogger("pmd")


@dataclass(frozen=True, slots=True)
class OpenFunction:
    """A function and the I/O addresses its container's IOMMU translates; closing it closes both."""

    function: Function
    iova_ranges: tuple[tuple[int, int], ...]


def open_by_vfio(address: str, syscalls: Syscalls = KERNEL, root: Path = SYSFS) -> OpenFunction:
    """The function at a PCI address, in a container of its own; root: where sysfs is.

    Raises:
        VhostPciError: There is none, or it cannot be used; the remedy says what to do.
    """
    pci = pci_function(address, root)
    container = Container(syscalls)
    function = VfioFunction(container, pci, owns_container=True)
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
    """

    def __init__(self) -> None:
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
    ) -> VhostPciError | None:
        """Let the function read the mappings, until `unmap`; one it cannot is left out.

        Why the first of those was left out; None: it reads all. writable: And writes those that
        this process may write.
        """
        self._mapped.callback(space.rewind, space.mark())
        refusal = None
        for mapping in mappings[: self._table.capacity]:
            try:
                iova = space.take(mapping.size)
                write = writable and mapping.writable
                function.dma_map(mapping.address, mapping.size, iova, writable=write)
            except VhostPciError as error:
                refusal = refusal or error
                continue
            self._mapped.callback(function.dma_unmap, iova, mapping.size)
            self._table.append(mapping.address, mapping.size, iova)
        if len(mappings) > self._table.capacity:
            parts = f"{len(mappings)} parts of VM1's memory"
            cause = f"a VF has room for {self._table.capacity}"
            refusal = refusal or VhostPciError("map for DMA", parts, cause)
        return refusal

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
        self._windows = SharedWindows()
        self._opened: tuple[Function, IovaSpace] | None = None

    def share(self, mappings: Sequence[Mapping]) -> VhostPciError | None:
        """See `Vf.share`: the VF may read all of them, and write where we may if it does that."""
        if self._opened is None:
            return self._error("it is not open")
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
