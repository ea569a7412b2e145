"""How VM1's queue pairs receive: by the VF's DMA into their buffers, or by copies.

It is decided for each by what VM1 posts, when its ring begins, and again when that changes. A
buffer that does not suit the VF ends receiving by DMA; a ring's turn of buffers that do suit ends
receiving by copies, twice as many each time that the next ones did not: a VM1 that alternates ends
up with copies. Only that pair's queue of the VF stops for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from pmd.kernel import Event
from pmd.stats import Receives

if TYPE_CHECKING:
    import logging
    from collections.abc import Collection, Mapping

    from pmd.kernel import Queue, Work
    from pmd.pair_works import PairWorks
    from pmd.ports import Ports

PATIENCE_MAX = 1 << 24  # buffers; seconds, at the rates that make it matter


class _Pair:
    """What is known of one: its port's number, its refusals since its ring began, the counts."""

    def __init__(self) -> None:
        self.port = 0
        self.refusals = 0
        self.direct = False
        self.redecided = 0

    def patience(self, queue: Queue) -> int:
        return min(queue.config.size << min(self.refusals, 24), PATIENCE_MAX)


class Receiving:
    """The decisions for all pairs of a channel.

    Thread rule: while no loop runs the pairs; but `counts` at any time.

    Args:
        ports: Of the channel's VF, and the caller's.
        log: Where a decision that changed is told.
    """

    def __init__(self, ports: Ports, log: logging.Logger) -> None:
        self._ports = ports
        self._log = log
        self._pairs: dict[int, _Pair] = {}

    def counts(self, pair: int) -> Receives:
        """How a pair receives, and how often that changed."""
        known = self._pairs.get(pair)
        return Receives() if known is None else Receives.of(known.direct, known.redecided)

    def begin(self, pair: int, port: int, queue: Queue, *, shared: bool) -> None:
        """Decide for a ring of a pair, which does not run yet.

        Args:
            pair: VM1's.
            port: Its port's number.
            queue: The ring.
            shared: Several rings or ports have part in it.

        Raises:
            VhostPciError: As `Ports.receive`.
        """
        known = self._pairs.setdefault(pair, _Pair())
        known.port, known.direct = port, False
        patience, suits = known.patience(queue), known.refusals == 0
        known.direct = self._ports.receive(
            port, queue, patience=patience, shared=shared, suits=suits
        )

    def end(self, works: Mapping[int, Work]) -> None:
        """No pair receives any more; of these works, remember which VM1 made unsuited."""
        for pair, known in self._pairs.items():
            if known.direct and pair in works and Event.UNSUITED in works[pair].events:
                known.refusals += 1
                known.redecided += 1
            known.direct = False

    def forget(self, all_but: Collection[int]) -> None:
        """The rings of other pairs have stopped: what VM1 posts next is looked at as if new."""
        for pair, known in self._pairs.items():
            if pair not in all_but:
                known.refusals = 0

    def redecide(self, works: PairWorks) -> bool:
        """Have those that ask for it receive the other way, and go on; false: there is more to do.

        All have to be set up anew then. A VF that does not stop or start is spoilt (`Ports.spoil`).
        """
        asked = Event.SUITED | Event.UNSUITED
        if not works.events or works.events & ~asked or not self._ports.redecides:
            return False
        try:
            for pair, work in works.of_pairs.items():
                if work.events and work.rx is not None:
                    self._redecide(self._pairs[pair], work, work.rx)
        except VhostPciError as error:
            self._log.warning("%s", error)
            self._ports.spoil()
            return False
        return True

    def _redecide(self, known: _Pair, work: Work, queue: Queue) -> None:
        refused = Event.UNSUITED in work.events
        known.refusals += refused
        patience = known.patience(queue)
        direct = self._ports.receive_anew(known.port, work, queue, patience=patience)
        known.refusals += not (direct or refused)  # what VM1 had posted was gone again
        known.redecided += direct != known.direct
        known.direct = direct
        way = "by the VF's DMA" if direct else "by copies"
        self._log.info("%s: VM1's buffers have changed: it receives %s now", queue.name, way)
