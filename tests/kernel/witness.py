"""An honest ring on a loop that serves others as well: each of its frames comes out once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from guest.closing import Closing
from pmd.kernel import DirectionStats, Work
from tests.kernel.rig import DATA, Rig, frames_of

if TYPE_CHECKING:
    from pmd.kernel import Loop

SIZE = 16
BUDGET_NS = 200_000
ROUNDS_MAX = 2  # in each it has a turn, and all that it posts is less than a burst


class Witness(Closing):
    """Numbered frames on a split ring of its own; `work` is to be given to the loop.

    Attributes:
        sent: Frames posted so far.
    """

    def __init__(self) -> None:
        self._rig = Rig(SIZE)
        self._port = self._rig.port()
        self._seen = 0
        self.sent = 0
        self.work = Work(self._rig.queue(DirectionStats()), None, self._port)

    def look(self) -> None:
        """Take what came out, and post anew if the ring is empty."""
        for frame in frames_of(self._port):
            assert int.from_bytes(frame, "little") == self._seen
            self._seen += 1
        if self._rig.used_index() != self.sent % 65536:
            return
        assert self._seen == self.sent
        for head in range(SIZE):
            self._rig.poke(DATA + 0x100 * head, bytes(12) + self.sent.to_bytes(60, "little"))
            self._rig.chain(head, [(DATA + 0x100 * head, 72)])
            self.sent += 1

    def go(self, loop: Loop) -> float:
        """The loop runs until all that is posted came out, and a while; then there is more.

        Returns:
            How long it took, of this thread's own time in seconds: no other process counts.

        Raises:
            AssertionError: It took more rounds than ROUNDS_MAX.
        """
        if self._rig.used_index() == self.sent % 65536:
            self.look()
        began, rounds = time.thread_time(), 0
        while self._rig.used_index() != self.sent % 65536:
            assert rounds < ROUNDS_MAX, f"it stands still at {self._seen}"
            loop.run(0)
            rounds += 1
        stall_s = time.thread_time() - began
        loop.run(BUDGET_NS)
        self.look()
        return stall_s

    def close(self) -> None:
        self._rig.close()
