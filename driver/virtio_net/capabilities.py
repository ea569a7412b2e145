"""Where a virtio PCI device's structures are: its vendor-specific capabilities (4.1.4)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from guest.function import Region
from guest.pci_config import CONFIG_SIZE, capabilities

if TYPE_CHECKING:
    from guest.function import Function

_VENDOR_SPECIFIC = 0x09
_CAP_BYTES = 16  # struct virtio_pci_cap
_NOTIFY_CAP_BYTES = 20  # struct virtio_pci_notify_cap
_BARS = 6


class StructureType(enum.IntEnum):
    """cfg_type of struct virtio_pci_cap: what this driver needs."""

    COMMON = 1
    NOTIFY = 2
    DEVICE = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a structure is: size bytes at offset of a BAR, and inside of it."""

    bar: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Structures:
    """A device's. notify_multiplier turns a queue's notification offset into bytes (4.1.4.4)."""

    common: Place
    notify: Place
    device: Place
    notify_multiplier: int


def find_structures(function: Function) -> Structures:
    """A function's structures; of several of one type the first that can be used, as 4.1.4.1 says.

    Raises:
        VhostPciError: One is missing.
    """
    config = function.read(Region.CONFIG, 0, CONFIG_SIZE)
    places: dict[StructureType, Place] = {}
    multiplier = 0
    for identifier, offset in capabilities(config):
        if identifier != _VENDOR_SPECIFIC or offset + _CAP_BYTES > len(config):
            continue
        length, type_, bar = config[offset + 2 : offset + 5]
        begin, size = struct.unpack_from("<II", config, offset + 8)
        if (
            type_ not in set(StructureType)
            or type_ in places
            or not _lies_in(function, bar, begin, size)
        ):
            continue
        if type_ == StructureType.NOTIFY:
            if length < _NOTIFY_CAP_BYTES or offset + _NOTIFY_CAP_BYTES > len(config):
                continue
            (multiplier,) = struct.unpack_from("<I", config, offset + 16)
        places[StructureType(type_)] = Place(bar, begin, size)
    for type_ in StructureType:
        if type_ not in places:
            cause = f"it has no {type_.name.lower()} structure: no modern virtio function"
            remedy = "in QEMU: disable-legacy=on" if not places else ""
            raise VhostPciError("use", function.name, cause, remedy)
    return Structures(
        places[StructureType.COMMON],
        places[StructureType.NOTIFY],
        places[StructureType.DEVICE],
        multiplier,
    )


def _lies_in(function: Function, bar: int, offset: int, size: int) -> bool:
    return bar < _BARS and size > 0 and offset + size <= function.region(bar).size
