"""`LogLimit`: a peer that goes wrong all day must not fill a disk with lines about it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BURST = 64
INTERVAL_S = 1.0


class LogLimit(logging.Filter):
    """Lets BURST lines of each logger through at once, and one every INTERVAL_S in the long run.

    The first line after some that were left out tells how many. For a handler or a logger; one
    thread at a time, as logging's lock has it.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._full_at: dict[str, float] = {}  # when the logger's allowance is BURST lines again
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record may pass."""
        now = self._clock()
        full_at = max(self._full_at.get(record.name, now), now) + INTERVAL_S
        if full_at - now > BURST * INTERVAL_S:
            self._left_out[record.name] = self._left_out.get(record.name, 0) + 1
            return False
        self._full_at[record.name] = full_at
        left_out = self._left_out.pop(record.name, 0)
        if left_out:
            text = record.getMessage()
            record.msg, record.args = "%s (%d lines before it were left out)", (text, left_out)
        return True
