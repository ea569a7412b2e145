"""The memory of a device's queues: each queue's areas (2.6), and a buffer for each descriptor."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.virtio_net.control import DATA_BYTES
from driver.virtio_net.features import Feature
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from driver.virtio_net.device import Device
    from guest.dma import DmaMemory

HEADER_BYTES = 12  # struct virtio_net_hdr of VERSION_1 (5.1.6.1)
BUFFER_BYTES = 2048
SIZE_MIN = 64  # holds the longest frame in buffers of BUFFER_BYTES
SIZE_MAX = 256
CONTROL_SIZE = 16
CONTROL_SIZE_MIN = 2  # a command is a chain of two
BUFFER_BYTES_MAX = 0xFFC0  # pmd/csrc/port_virtio.c takes 16 bits
FRAME_OVERHEAD = 22  # Ethernet's header and two VLAN tags, without FCS
MTU_UNTOLD = 9216
_LINE = 64
_DESCRIPTOR_BYTES = 16  # 2.7.5, 2.8.13
_EVENT_BYTES = 4  # 2.8.14


@dataclass(frozen=True, slots=True)
class Areas:
    """A queue's areas here and, as the device sees them, at the addresses named iova.

    packed: descriptor ring and two event suppression structures; else descriptor table, available
    and used ring.
    """

    size: int
    packed: bool
    descriptor: int
    driver: int
    device: int
    iova_offset: int

    def clear(self) -> None:
        """Zero them; the device does not know them."""
        sizes = _area_bytes(self.size, packed=self.packed)
        for area, size in zip((self.descriptor, self.driver, self.device), sizes, strict=True):
            ctypes.memset(area, 0, size)

    @property
    def descriptor_iova(self) -> int:
        """Of the descriptor area."""
        return self.descriptor + self.iova_offset

    @property
    def driver_iova(self) -> int:
        """Of the driver area."""
        return self.driver + self.iova_offset

    @property
    def device_iova(self) -> int:
        """Of the device area."""
        return self.device + self.iova_offset


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue: its number, its areas, its buffers here and for the device.

    There is one for each descriptor, but the control queue has DATA_BYTES.
    """

    number: int
    areas: Areas
    buffers: int
    buffers_iova: int


@dataclass(frozen=True, slots=True)
class VirtioPair:
    """What pmd/csrc/port_virtio.c works with: struct rk_virtio_config. All stays the VF's.

    rx_notify, tx_notify, link_up, report and windows are addresses in this process: of two
    registers, a uint32, a struct rk_virtio_report and a `driver.passthrough.WindowTable`.
    frame_bytes_max is without FCS. wake_fd is readable after an interrupt of the receive queue; -1:
    it has none.
    """

    rx: Queue
    tx: Queue
    rx_notify: int
    tx_notify: int
    features: Feature
    buffer_bytes: int
    frame_bytes_max: int
    link_up: int
    report: int
    windows: int
    wake_fd: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The queues of a device that is to be started.

    control: the control queue's number, None where there is none; its size is `control_size`.
    """

    pairs: int
    rx_size: int
    tx_size: int
    buffer_bytes: int
    packed: bool
    control: int | None
    control_size: int

    @property
    def memory_bytes(self) -> int:
        """All they take."""
        parts = [DATA_BYTES, *_area_bytes(self.control_size, packed=self.packed)]
        for size in (self.rx_size, self.tx_size):
            one = [size * self.buffer_bytes, *_area_bytes(size, packed=self.packed)]
            parts += one * self.pairs
        return sum(_padded(part) for part in parts)

    def lay_out(self, memory: DmaMemory) -> Layout:
        """All of it in memory_bytes of memory: buffers first, by what they are aligned to."""
        parts = _Parts(memory)
        buffers = [
            parts.take(size * self.buffer_bytes)
            for _ in range(self.pairs)
            for size in (self.rx_size, self.tx_size)
        ]
        queues = []
        for number, begin in enumerate(buffers):
            size = self.tx_size if number % 2 else self.rx_size  # 5.1.2
            areas = parts.areas(size, packed=self.packed)
            queues.append(Queue(number, areas, begin, begin + areas.iova_offset))
        control = None
        if self.control is not None:
            areas = parts.areas(self.control_size, packed=self.packed)
            control = Queue(
                self.control, areas, begin := parts.take(DATA_BYTES), begin + areas.iova_offset
            )
        return Layout(queues, control)


@dataclass(frozen=True, slots=True)
class Layout:
    """Queues with their memory: receive queue 2n and transmit queue 2n+1 are pair n."""

    queues: list[Queue]
    control: Queue | None

    @property
    def all(self) -> list[Queue]:
        """The control queue, too."""
        return self.queues if self.control is None else [*self.queues, self.control]


def plan(device: Device, pairs: int) -> Plan:
    """The queues for that many pairs of a device that is not yet started.

    Raises:
        VhostPciError: Its queues are too small.
    """
    features = device.features
    control = None
    if features & Feature.CTRL_VQ:
        control = 2 * device.queue_pairs_max()
    sizes: list[int] = []
    for direction in range(2):
        of_each = [device.queue_size_max(2 * pair + direction) for pair in range(pairs)]
        sizes.append(_size_for(min(of_each), SIZE_MAX))
        if sizes[-1] < SIZE_MIN:
            cause = f"a queue of its has {min(of_each)} entries, fewer than {SIZE_MIN}"
            raise VhostPciError("use", device.name, cause)
    control_size = CONTROL_SIZE
    if control is not None:
        control_size = _size_for(device.queue_size_max(control), CONTROL_SIZE)
        if control_size < CONTROL_SIZE_MIN:
            raise VhostPciError("use", device.name, "its control queue is too small for a command")
    buffer_bytes = BUFFER_BYTES
    if not features & Feature.MRG_RXBUF:  # 5.1.6.3.1: a frame has one buffer
        longest = HEADER_BYTES + FRAME_OVERHEAD + (device.mtu() or 0)
        buffer_bytes = min(max(BUFFER_BYTES, _padded(longest)), BUFFER_BYTES_MAX)
    packed = bool(features & Feature.RING_PACKED)
    rx_size, tx_size = sizes
    return Plan(pairs, rx_size, tx_size, buffer_bytes, packed, control, control_size)


def _size_for(size_max: int, wanted: int) -> int:
    """The largest power of two that is no more than either (2.7: a split ring's size is one)."""
    return 1 << min(size_max, wanted).bit_length() - 1 if size_max else 0


def _area_bytes(size: int, *, packed: bool) -> tuple[int, int, int]:
    """Descriptor, driver and device area: 2.7, 2.8."""
    descriptors = _DESCRIPTOR_BYTES * size
    if packed:
        return descriptors, _EVENT_BYTES, _EVENT_BYTES
    return descriptors, 6 + 2 * size, 6 + 8 * size


def _padded(size: int) -> int:
    return -(-size // _LINE) * _LINE


class _Parts:
    """Gives parts of DMA memory out, one behind the other, each on cache lines of its own."""

    def __init__(self, memory: DmaMemory) -> None:
        self._memory = memory
        self._next = 0

    def take(self, size: int) -> int:
        begin = self._memory.address + self._next
        self._next += _padded(size)
        if self._next > self._memory.size:
            raise AssertionError("more memory is laid out than was asked for")
        return begin

    def areas(self, size: int, *, packed: bool) -> Areas:
        descriptor, driver, device = map(self.take, _area_bytes(size, packed=packed))
        offset = self._memory.iova - self._memory.address
        return Areas(size, packed, descriptor, driver, device, offset)
