"""Bus address -> run: VM1's memory table as the driver checked it (docs/device.md 5.4).

A table is immutable; a new one replaces it whole, between bursts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NewType

import numpy as np

from driver.state_area import MEMORY, PAGE_SIZE, Permission
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

BusAddress = NewType("BusAddress", int)
WindowOffset = NewType("WindowOffset", int)

# struct rk_region of pmd/csrc/ringk.h: host is an address in this process.
REGION = np.dtype(
    [
        ("bus", "<u8"),
        ("length", "<u8"),
        ("host", "<u8"),
        ("permission", "<u4"),
        ("reserved", "<u4"),
    ]
)

_ADDRESS_END = 1 << 64


@dataclass(frozen=True, slots=True)
class Run:
    """Contiguous bytes of one window: what a bus address range is, as far as it goes."""

    window: int
    offset: WindowOffset
    length: int
