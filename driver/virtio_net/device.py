"""One virtio network device by its registers: reset, features, queues, link (3.1.1, 4.1.5)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from driver.virtio_net import registers as reg
from driver.virtio_net.capabilities import find_structures
from driver.virtio_net.features import Feature, accept
from driver.virtio_net.registers import NetStatus, Registers, Status
from guest.errors import DeviceGoneError, VhostPciError

if TYPE_CHECKING:
    from driver.virtio_net.queue import Areas
    from guest.function import Function

_RESET_S = 2.0
_PAUSE_S = 0.0005
NO_VECTOR = 0xFFFF  # 4.1.5.1.2: no interrupt
_READ_TRIES = 16


class Device:
    """An open function. Thread rule: one thread at a time.

    Args:
        function: Open, with memory decode and bus mastering on.

    Attributes:
        features: What was negotiated.

    Raises:
        VhostPciError: It is no modern virtio device.
    """

    def __init__(self, function: Function) -> None:
        self.name = function.name
        self.structures = find_structures(function)
        self._common = Registers(function, self.structures.common)
        self._config = Registers(function, self.structures.device)
        self.features = Feature(0)

    def reset(self) -> None:
        """Stop the device and forget its state; when it returns, it touches no memory any more.

        Raises:
            VhostPciError: It does not come out of the reset.
        """
        self._common.write(reg.DEVICE_STATUS, 0)
        deadline = time.monotonic() + _RESET_S
        while self._common.status():  # 4.1.4.3.2
            if time.monotonic() > deadline:
                raise VhostPciError("reset", self.name, "its status does not become 0")
            time.sleep(_PAUSE_S)

    def negotiate(self) -> None:
        """Agree on `features`; the device was reset.

        Raises:
            VhostPciError: It lacks what this driver cannot do without, or refuses.
        """
        write = self._common.write
        self._add_status(Status.ACKNOWLEDGE)
        self._add_status(Status.DRIVER)
        offered = 0
        for half in range(2):
            write(reg.DEVICE_FEATURE_SELECT, half)
            offered |= self._common.read(reg.DEVICE_FEATURE) << 32 * half
        features = accept(offered)
        self._require(features)
        for half in range(2):
            write(reg.DRIVER_FEATURE_SELECT, half)
            write(reg.DRIVER_FEATURE, features >> 32 * half & 0xFFFFFFFF)
        self._add_status(Status.FEATURES_OK)
        if not self._common.status() & Status.FEATURES_OK:
            raise VhostPciError("use", self.name, f"it refuses the features {features:#x}")
        self.features = features

    def _require(self, features: Feature) -> None:
        if not features & Feature.VERSION_1:
            raise VhostPciError("use", self.name, "it is no virtio 1 device")
        if not features & Feature.ACCESS_PLATFORM:
            # 6.1: it would take our I/O addresses for physical ones, and write there.
            cause = "its DMA goes past the IOMMU (it does not offer ACCESS_PLATFORM)"
            raise VhostPciError("use", self.name, cause, "in QEMU: iommu_platform=on")

    def _add_status(self, bit: Status) -> None:
        self._common.write(reg.DEVICE_STATUS, self._common.status() | bit)

    def queue_size_max(self, index: int) -> int:
        """How many descriptors a queue may have; 0: there is no such queue."""
        self._common.write(reg.QUEUE_SELECT, index)
        return self._common.read(reg.QUEUE_SIZE)

    def enable_queue(self, index: int, areas: Areas, vector: int = NO_VECTOR) -> int:
        """Turn a queue on that is off since `reset` or `reset_queue`.

        The notification register's offset in its BAR. vector: Of its interrupts, MSI-X; one that
        the device has no resources for is no error: `vector_of`.

        Raises:
            VhostPciError: It does not come up, or its notification register lies outside.
        """
        write, read = self._common.write, self._common.read
        write(reg.QUEUE_SELECT, index)
        write(reg.QUEUE_SIZE, areas.size)
        if read(reg.QUEUE_SIZE) != areas.size:
            raise VhostPciError("use", self.name, f"its queue {index} refuses {areas.size} entries")
        write(reg.QUEUE_MSIX_VECTOR, vector)
        write(reg.QUEUE_DESC, areas.descriptor_iova)
        write(reg.QUEUE_DRIVER, areas.driver_iova)
        write(reg.QUEUE_DEVICE, areas.device_iova)
        place = self.structures.notify
        offset = read(reg.QUEUE_NOTIFY_OFF) * self.structures.notify_multiplier
        if offset + 2 > place.size or (place.offset + offset) % 2:
            cause = f"its queue {index} is notified at {offset:#x} of {place.size:#x} bytes"
            raise VhostPciError("use", self.name, cause)
        write(reg.QUEUE_ENABLE, 1)
        if read(reg.QUEUE_ENABLE) != 1:
            raise VhostPciError("use", self.name, f"its queue {index} does not come up")
        return place.offset + offset

    def vector_of(self, index: int) -> int:
        """A queue's interrupt vector, `NO_VECTOR` if it has none (4.1.5.1.2.1)."""
        self._common.write(reg.QUEUE_SELECT, index)
        return self._common.read(reg.QUEUE_MSIX_VECTOR)

    def reset_queue(self, index: int) -> None:
        """Stop a queue; when it returns, the device touches neither it nor its buffers any more.

        Of a started device with RING_RESET; `enable_queue` turns the queue on again.

        Raises:
            VhostPciError: The queue does not come out of the reset.
        """
        write, read = self._common.write, self._common.read
        write(reg.QUEUE_SELECT, index)
        write(reg.QUEUE_RESET, 1)
        deadline = time.monotonic() + _RESET_S
        while read(reg.QUEUE_RESET) or read(reg.QUEUE_ENABLE):  # 2.6.1, 4.1.4.3.2
            self._common.status()
            if time.monotonic() > deadline:
                raise VhostPciError("reset", self.name, f"its queue {index} does not stop")
            time.sleep(_PAUSE_S)

    def start(self) -> None:
        """Let it use its queues.

        Raises:
            VhostPciError: It does not take its queues.
        """
        self._common.write(reg.CONFIG_MSIX_VECTOR, NO_VECTOR)
        self._add_status(Status.DRIVER_OK)
        if trouble := self.trouble():
            raise VhostPciError("use", self.name, trouble)

    def order(self) -> None:
        """Order memory accesses before and after, as the device sees them.

        The kernel's register accesses do that, and these two change nothing.
        """
        self._common.write(reg.QUEUE_SELECT, 0)
        self._common.status()

    def trouble(self) -> str:
        """Why a started device must be set up anew, or "". To be asked once in a while."""
        try:
            status = self._common.status()
        except DeviceGoneError as error:
            return error.cause
        if status & (Status.NEEDS_RESET | Status.FAILED):
            return "it needs a reset"
        return "" if status & Status.DRIVER_OK else "it was reset"

    # ---- 5.1.4: its configuration

    def _read_config(self, register: reg.Register) -> int:
        """A register, read whole (2.5.1)."""
        for _ in range(_READ_TRIES):
            before = self._common.read(reg.CONFIG_GENERATION)
            value = self._config.read(register)
            if self._common.read(reg.CONFIG_GENERATION) == before:
                return value
        raise VhostPciError("use", self.name, "its configuration does not stay as it is")

    def mac(self) -> bytes | None:
        """Its MAC address; None if it does not tell."""
        if not self.features & Feature.MAC:
            return None
        return self._read_config(reg.MAC).to_bytes(reg.MAC.size, "little")

    def mtu(self) -> int | None:
        """The longest packet it takes, without Ethernet's header; None if it does not tell."""
        return self._read_config(reg.MTU) if self.features & Feature.MTU else None

    def queue_pairs_max(self) -> int:
        """How many it has: receive queue 2n and transmit queue 2n+1 are pair n (5.1.2).

        Raises:
            VhostPciError: A number that cannot be.
        """
        if not self.features & Feature.MQ:
            return 1
        pairs = self._read_config(reg.MAX_QUEUE_PAIRS)
        queues = self._common.read(reg.NUM_QUEUES)
        if not 1 <= pairs <= 0x8000 or queues < 2 * pairs + 1:
            cause = f"it has {pairs} queue pairs and a control queue in {queues} queues"
            raise VhostPciError("use", self.name, cause)
        return pairs

    def link_up(self) -> bool:
        """Whether it has a link; one that does not tell has."""
        if not self.features & Feature.STATUS:
            return True
        return bool(self._read_config(reg.NET_STATUS) & NetStatus.LINK_UP)
