"""Page 0 of BAR 0: registers and doorbells (docs/device.md 4)."""

from __future__ import annotations

import logging
import struct
import time
from typing import TYPE_CHECKING, Any

from driver.state_area import (
    MAGIC,
    VERSION_MAJOR,
    VERSION_MINOR,
    DriverStatus,
    Register,
)
from tools.device.eventfd import signal_eventfd
from tools.device.state_writer import STATE_OFFSET, STATE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tools.device.driver_watch import DriverWatch
    from tools.device.kicks import KickWatch
    from tools.device.vm1_state import RingState

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 1.0
NAMED_KICKS_MAX = (Register.DOORBELL - Register.KICK) // 4


class Registers:
    """What a 32-bit access to page 0 reads and does; all other accesses read zero and do nothing.

    Borrows the call eventfds of the rings given last. Thread rule: one thread.

    Args:
        ring_count: QUEUE_COUNT.
        driver: Takes DRIVER_STATUS and ACK.
        kicks: Takes KICK_ARM.
        queue_error: Called with the ring of a QUEUE_ERROR.
        further: What takes the values of other registers, by offset.
    """

    def __init__(
        self,
        ring_count: int,
        driver: DriverWatch,
        kicks: KickWatch,
        queue_error: Callable[[int], None],
        further: Mapping[int, Callable[[int], None]],
    ) -> None:
        self._ring_count = ring_count
        self._driver = driver
        self._kicks = kicks
        self._queue_error = queue_error
        self._rings: Sequence[RingState] = ()
        self._doorbells_rung = 0
        self._queue_errors = 0
        self._logged_at = -LOG_INTERVAL_S
        self._constants: dict[int, int] = {
            Register.MAGIC: MAGIC,
            Register.VERSION: VERSION_MAJOR << 16 | VERSION_MINOR,
            Register.STATE_OFFSET: STATE_OFFSET,
            Register.STATE_SIZE: STATE_SIZE,
            Register.QUEUE_COUNT: ring_count,
        }
        self._writers: dict[int, Callable[[int], None]] = {
            Register.DRIVER_STATUS: self._write_status,
            Register.ACK: driver.acknowledge,
            Register.QUEUE_ERROR: self._write_queue_error,
            Register.KICK_ARM: self._write_kick_arm,
            **further,
        }

    def take(self, rings: Sequence[RingState]) -> None:
        """Call these rings from now on."""
        self._rings = rings

    def read(self, offset: int, count: int) -> bytes:
        """The count bytes that an access at offset reads."""
        if count != 4 or offset % 4:
            return bytes(count)
        if offset == Register.DRIVER_STATUS:
            return struct.pack("<I", self._driver.status)
        if offset == Register.DRIVER_FEATURES:
            return struct.pack("<I", self._driver.features)
        return struct.pack("<I", self._constants.get(offset, 0))

    def write(self, offset: int, data: bytes) -> None:
        """Do what a write at offset does."""
        if len(data) != 4 or offset % 4:
            return
        (value,) = struct.unpack("<I", data)
        ring = (offset - Register.DOORBELL) // 4
        if 0 <= ring < self._ring_count:
            self._ring_doorbell(ring)
        elif offset in self._writers:
            self._writers[offset](value)

    def _ring_doorbell(self, ring: int) -> None:
        if ring < len(self._rings) and self._rings[ring].call_fd >= 0:
            self._doorbells_rung += 1
            signal_eventfd(self._rings[ring].call_fd)

    def _write_status(self, value: int) -> None:
        if value in (DriverStatus.DETACHED, DriverStatus.ACTIVE):
            self._driver.set_status(DriverStatus(value))

    def _write_kick_arm(self, value: int) -> None:
        enable, ring = value >> 16, value & 0xFFFF
        if ring < self._ring_count and enable in (0, 1):
            self._kicks.arm(ring, enable=bool(enable))

    def _write_queue_error(self, value: int) -> None:
        reason, ring = value >> 16, value & 0xFFFF
        if ring >= self._ring_count:
            return
        self._queue_errors += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            log.warning("driver: ring %d quarantined, reason %d", ring, reason)
        self._queue_error(ring)

    def doorbells(self) -> list[tuple[int, int]]:
        """Offset in BAR 0 and call eventfd of each ring that has one; the eventfds are borrowed."""
        rings = enumerate(self._rings[: self._ring_count])
        return [(Register.DOORBELL + 4 * n, r.call_fd) for n, r in rings if r.call_fd >= 0]

    def kicks(self) -> list[tuple[int, int]]:
        """Offset in BAR 0 and kick eventfd of each ring that has one; the eventfds are borrowed."""
        rings = enumerate(self._rings[: min(self._ring_count, NAMED_KICKS_MAX)])
        return [(Register.KICK + 4 * n, r.kick_fd) for n, r in rings if r.kick_fd >= 0]

    def describe(self) -> dict[str, Any]:
        """Counters and rings, for the host's display."""
        rings = enumerate(self._rings[: self._ring_count])
        return {
            "doorbells_rung": self._doorbells_rung,
            "queue_errors": self._queue_errors,
            "rings": [
                {"ring": n, "size": r.size, "started": r.started, "enabled": r.enabled}
                for n, r in rings
                if r.size
            ],
        }
