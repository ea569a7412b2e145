"""The real function and server on an event loop's thread of this process."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tests.device.vfio_user_raw import DYNAMIC, QEMU_CAPABILITIES, RawClient
from tests.device.vm1_memory import Vm1
from tools.device.function import VhostPciDevice
from tools.device.vfio_user_server import VfioUserServer
from tools.unix_socket import UnixListener

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from tools.device.vm1_state import Span, Vm1State

RING_COUNT = 16
TIMEOUT_S = 30.0
T = TypeVar("T")


class DeviceHost:
    """Serves at path while the context is open.

    vm1: Owned, for the tests to fill. queue_errors: rings reported by QUEUE_ERROR.
    misses: what was asked for by MISS, each time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.vm1 = Vm1()
        self.queue_errors: list[int] = []
        self.misses: list[list[Span]] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.device = VhostPciDevice(RING_COUNT, self.queue_errors.append, self.misses.append)
        with UnixListener(self.path) as listener:
            self.server = VfioUserServer(self.device, listener.socket)
            serving = asyncio.create_task(self.server.serve())
            self._started.set()
            await self._stop.wait()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        self.device.close()

    def publish_soon(self, state: Vm1State) -> concurrent.futures.Future[None]:
        """Begin a publish."""
        return asyncio.run_coroutine_threadsafe(self.device.publish(state), self.loop)

    def publish(self, state: Vm1State) -> None:
        """Publish and wait for it."""
        self.publish_soon(state).result(TIMEOUT_S)

    def call(self, function: Callable[[], T]) -> T:
        """Call something on the loop's thread."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(TIMEOUT_S)

    def describe(self) -> dict[str, Any]:
        """What the function says of itself."""
        return self.call(self.device.describe)

    def wait_detached(self) -> None:
        """Wait until no client is attached and its connection is closed."""
        wait_until(lambda: self.describe()["client"] is None)

    def attached(self, *, dynamic: bool = True) -> RawClient:
        """A client after VERSION."""
        client = RawClient(self.path)
        try:
            assert client.version(DYNAMIC if dynamic else QEMU_CAPABILITIES).error == 0
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(TIMEOUT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(TIMEOUT_S)
        self.vm1.close()
        assert not self._thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds; fails after TIMEOUT_S."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (the listing's own is counted alike)
