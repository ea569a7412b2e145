"""What the driver knows of the device at one generation, as facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from driver.memory_map import HostRegion, MemoryMap, Miss
    from driver.ring import Ring
    from driver.state_area import Status


class DirtyMap(NamedTuple):
    """Where this process marks what it writes to VM1's memory (docs/device.md 5.7).

    size marks from address on, a byte for each 1 << shift bytes of bus addresses; until close.
    """

    address: int
    size: int
    shift: int


class Announcement(NamedTuple):
    """The MAC address by which the network is to learn where VM1 is; number: 0 for none yet."""

    address: bytes
    number: int


class DeviceState(NamedTuple):
    """The device as it was at one generation.

    Rings are as published: `Ring.check` each against memory and features before it runs. regions
    is the kernel's table: addresses in the windows that are mapped until the next `VhostPci.state`
    or close. mtu: of what VM1 receives; 0: none was told.
    dirty: None while nothing is to be marked. refused: what VM1's IOMMU has been asked for, and
    does not have (docs/device.md 5.8). window_serial: 0, or equal as long as windows are.
    announcement: what VM1's VMM asks for once VM1 has moved (docs/device.md 5.9).
    """

    generation: int
    status: Status
    features: int
    mtu: int
    rings: tuple[Ring, ...]
    memory: MemoryMap
    regions: list[HostRegion]
    dirty: DirtyMap | None = None
    refused: tuple[Miss, ...] = ()
    window_serial: int = 0
    announcement: Announcement = Announcement(bytes(6), 0)
