"""VM1's rings, given to one back-end after another."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError
from tools.vm1.endpoint import Endpoint
from tools.vm1.engine import Engine
from tools.vm1.engine_abi import Stats
from tools.vm1.frontend import FrontEnd, Inflight
from tools.vm1.rings import Rings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.vhost_user_abi import Feature
    from tools.vm1.options import Options

_ATTEMPTS = 10
_ATTEMPT_S = 0.1


class Attachment(Closing):
    """Rings in memory, an engine on them, and the front-end of the back-end of the moment.

    Owns all of it, and the region in which back-ends keep what is in flight. Thread rule: one
    thread; `stats` from any.

    Args:
        options: Of this attachment alone.
        stopped: True from the moment the run is told to end.
        tap_fd: The open TAP device in tap mode, borrowed; else -1.

    Raises:
        VhostPciError, UsageError: As Rings and Endpoint do.
    """

    def __init__(self, options: Options, stopped: Callable[[], bool], tap_fd: int = -1) -> None:
        self.options = options
        self.stats = Stats()
        self.connected = False
        self.base_mismatch = 0
        self._stopped = stopped
        self._tap_fd = tap_fd
        self._engine: Engine | None = None
        self._front_end: FrontEnd | None = None
        self._features: Feature | None = None
        self._inflight: Inflight | None = None
        with contextlib.ExitStack() as stack:
            self._rings = stack.enter_context(Rings(options))
            self._endpoint = stack.enter_context(Endpoint(options.socket, stopped))
            self._owned = stack.pop_all()

    @property
    def engine(self) -> Engine:
        """What moves the frames; there is none before `connect`."""
        assert self._engine is not None  # noqa: S101 - the order of calls, not anybody's input
        return self._engine

    @property
    def features(self) -> int:
        """What was negotiated with the first back-end, 0 before."""
        return int(self._features or 0)

    def connect(self, timeout_s: float | None) -> bool:
        """Give the rings to the next back-end, where the last one left them; False if stopped.

        Raises:
            VhostPciError: There is none in time, or bring-up failed.
        """
        connection = self._endpoint.connection(timeout_s)
        if connection is None:
            return False
        front_end = FrontEnd(connection, str(self.options.socket.path))
        try:
            self._bring_up(front_end)
        except BaseException:
            front_end.close()
            raise
        self._front_end, self.connected = front_end, True
        return True

    def _bring_up(self, front_end: FrontEnd) -> None:
        self._features = front_end.negotiate(self.options.rings, self._features)
        rings = self._rings.rings
        if self._engine is None:
            arguments = (self._rings, self._features, self._tap_fd, self.stats)
            self._engine = Engine(self.options, *arguments)
        front_end.share_memory(self._rings.memory)
        size = self.options.rings.size
        kept, self._inflight = self._inflight, None
        self._inflight = front_end.share_inflight(kept, len(rings), size)
        front_end.start(rings, [self.engine.base(index) for index in range(len(rings))])
        self.engine.kick()
        self.engine.touch_clock()

    def reconnect(self) -> bool:
        """`connect` to a successor, however long it takes to come.

        The last of several failures in a row is raised: the one before may still have been leaving.
        """
        self._let_go()
        for attempt in range(_ATTEMPTS):
            try:
                return self.connect(None)
            except VhostPciError:
                if attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(_ATTEMPT_S)
        return False

    def hung_up(self) -> bool:
        """Whether the back-end closed the connection."""
        return self._front_end is None or self._front_end.hung_up()

    def stop(self) -> None:
        """Stop the rings, if there is still a back-end, and compare the bases it tells."""
        if self.connected and self._front_end is not None and not self._front_end.hung_up():
            bases = self._front_end.stop(len(self._rings.rings))
            expected = [self.engine.base(index) for index in range(len(bases))]
            pairs = zip(bases, expected, strict=True)
            wrong = sum(base not in {want, _available_half(want)} for base, want in pairs)
            self.base_mismatch = wrong
        self.connected = False

    def error_signals(self) -> int:
        """How often the back-end signalled an error on a ring since the last call."""
        return sum(ring.error_count() for ring in self._rings.rings)

    def _let_go(self) -> None:
        self.connected = False
        if self._front_end is not None:
            self._front_end.close()
            self._front_end = None

    def close(self) -> None:
        """Let go of the back-end, and free everything. Twice is fine."""
        self._let_go()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._inflight is not None:
            os.close(self._inflight.fd)
            self._inflight = None
        self._owned.close()


def _available_half(base: int) -> int:
    """A packed ring's base without its used half, of which some back-ends (DPDK 22.11) say nothing.

    A split ring's base has no other half.
    """
    return base & 0xFFFF
