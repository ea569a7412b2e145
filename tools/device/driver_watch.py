"""Whether the driver is there, what it acknowledged, when to give it up (docs/device.md 5.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from driver.state_area import DriverFeature, DriverStatus

if TYPE_CHECKING:
    from collections.abc import Callable

STILL_TIMEOUT_S = 2.0
ACKNOWLEDGE_TIMEOUT_S = 5.0
SAMPLE_INTERVAL_S = 0.1
_KNOWN = DriverFeature.MARKS | DriverFeature.TRANSLATES


class DriverWatch:
    """DRIVER_STATUS, DRIVER_FEATURES and ACK.

    Thread rule: the event loop's. features: DRIVER_FEATURES as it reads. unmarked: a driver may
    have written without a mark, and is no longer active; whoever looks at it sets it back.

    Args:
        heartbeat: Reads the driver area's heartbeat.
        generation: The state area's generation now.
    """

    def __init__(self, heartbeat: Callable[[], int], generation: Callable[[], int]) -> None:
        self._heartbeat = heartbeat
        self._generation = generation
        self._changed = asyncio.Event()
        self.status = DriverStatus.DETACHED
        self.acknowledged: int | None = None
        self.features = DriverFeature(0)
        self.unmarked = False

    def set_features(self, features: int) -> None:
        """DRIVER_FEATURES was written; an active driver cannot change them."""
        if self.status == DriverStatus.DETACHED:
            self.features = DriverFeature(features & _KNOWN)

    @property
    def marks(self) -> bool:
        """Whether the driver marks what it writes to VM1's memory (docs/device.md 5.7)."""
        return DriverFeature.MARKS in self.features

    @property
    def translates(self) -> bool:
        """Whether it reports misses (docs/device.md 5.8)."""
        return DriverFeature.TRANSLATES in self.features

    def lose(self) -> None:
        """The driver is gone without having said so."""
        self.unmarked |= self.status == DriverStatus.ACTIVE
        self.set_status(DriverStatus.DETACHED)
        self.features = DriverFeature(0)

    def set_status(self, status: DriverStatus) -> None:
        """DRIVER_STATUS was written."""
        self.unmarked |= self.status == DriverStatus.ACTIVE and not self.marks
        self.status = status
        self._changed.set()

    def acknowledge(self, generation: int) -> None:
        """ACK was written."""
        self.acknowledged = generation
        self._changed.set()

    def is_waited_for(self) -> bool:
        """Whether an active driver has yet to acknowledge what the state area shows."""
        active = self.status == DriverStatus.ACTIVE
        return active and self.acknowledged != self._generation()

    async def wait(self) -> str:
        """Wait until the driver acknowledged or is no longer active; "" then.

        Returns why the driver is to be considered dead, if it is.
        """
        loop = asyncio.get_running_loop()
        started = changed = loop.time()
        heartbeat = self._heartbeat()
        while self.is_waited_for():
            self._changed.clear()
            try:
                async with asyncio.timeout(SAMPLE_INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            now, latest = loop.time(), self._heartbeat()
            if latest != heartbeat:
                heartbeat, changed = latest, now
            if not self.is_waited_for():
                break
            if now - changed >= STILL_TIMEOUT_S:
                return f"no acknowledgement, and no heartbeat for {STILL_TIMEOUT_S:g} s"
            if now - started >= ACKNOWLEDGE_TIMEOUT_S:
                return f"no acknowledgement for {ACKNOWLEDGE_TIMEOUT_S:g} s"
        return ""
