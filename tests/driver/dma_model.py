"""What a function reaches by DMA: memory that was mapped for it, and nothing else."""

from __future__ import annotations

import ctypes

from guest.closing import Closing
from guest.errors import VhostPciError

NO_MEMORY = (
    "the process may not lock that much memory",
    "raise the limit: ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit",
)


class DmaModel(Closing):
    """The mappings of one function, as its container has them: it bites what breaks their rules.

    Attributes:
        dma: By I/O address: address and length. read_only: Those that it must not write.
        dma_limit: Bytes that may be mapped. dma_log: "map", "unmap" ..., as they came.
        iova_ranges: What the IOMMU translates.
        faults: Broken rules.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.iova_ranges: tuple[tuple[int, int], ...] = ((0, (1 << 39) - 1),)
        self.dma: dict[int, tuple[int, int]] = {}
        self.read_only: set[int] = set()
        self.dma_limit = 1 << 40
        self.dma_log: list[str] = []

    def memory(self, iova: int, size: int) -> memoryview:
        """What it reaches at iova; outside all mappings it is a fault, and zeros."""
        for base, (address, length) in self.dma.items():
            if base <= iova and iova + size <= base + length:
                array = (ctypes.c_char * size).from_address(address + iova - base)
                view = memoryview(array).cast("B")
                return view.toreadonly() if base in self.read_only else view
        self.faults.append(f"DMA to {size} bytes at {iova:#x}")
        return memoryview(bytearray(size))

    def dma_map(self, address: int, size: int, iova: int, *, writable: bool) -> None:
        """See guest.function.Function."""
        assert not (address | size | iova) % 4096
        assert any(first <= iova and iova + size - 1 <= last for first, last in self.iova_ranges)
        if size + sum(length for _, length in self.dma.values()) > self.dma_limit:
            raise VhostPciError("map for DMA", f"{size} bytes at {iova:#x}", *NO_MEMORY)
        for base, (_, length) in self.dma.items():
            assert iova + size <= base or base + length <= iova
        self.dma[iova] = (address, size)
        self.dma_log.append("map")
        if not writable:
            self.read_only.add(iova)

    def dma_unmap(self, iova: int, size: int) -> None:
        """See guest.function.Function."""
        self._check_unused(iova, size)
        assert self.dma.pop(iova)[1] == size
        self.read_only.discard(iova)
        self.dma_log.append("unmap")

    def _check_unused(self, iova: int, size: int) -> None:
        """A fault where something of these addresses is still in its hands."""
        raise NotImplementedError
