"""The IOMMUs of this machine, as the kernel shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.discovery import SYSFS

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class IommuUnits:
    """IOMMUs that are on, by the kernel's names (dmar0, ivhd0, ...), and how many groups exist."""

    names: tuple[str, ...]
    group_count: int


def read_iommu(root: Path = SYSFS) -> IommuUnits:
    """The IOMMUs, below root where sysfs is mounted; none where all are off or absent."""
    return IommuUnits(_names(root / "class/iommu"), len(_names(root / "kernel/iommu_groups")))


def _names(directory: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(path.name for path in directory.iterdir()))
    except OSError:
        return ()
