"""The ports of a VF: one a queue pair, opened for as many pairs as VM1 has started.

They stay open while VM1 comes and goes. Where VM1 later starts more pairs, or the VF has to be set
up anew (its PF was reset, say), all are closed and opened again; frames that a port held are lost.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from pmd.kernel import Port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driver.software_vf import Vf
    from guest.mapping import Mapping

_log = logging.getLogger("pmd")


class Ports:
    """Owns the VF and its ports.

    Thread rule: `rx_missed` at any time, the rest while no loop runs a port.
    """

    def __init__(self, vf: Vf) -> None:
        self._vf = vf
        self._ports: list[Port] = []
        self._missed_before: list[int] = []
        self._refused = 0
        self._spoilt = False

    @property
    def look_period_s(self) -> float | None:
        """How often `look` is to be asked; None: never."""
        return self._vf.look_period_s

    @property
    def name(self) -> str:
        """The VF's spec."""
        return self._vf.spec

    def __len__(self) -> int:
        """How many queue pairs have a port."""
        return len(self._ports)

    def __getitem__(self, pair: int) -> Port:
        """The port of a queue pair."""
        return self._ports[pair]

    def check(self, pair: int, name: str) -> None:
        """Refuse the ring called name if its queue pair has no port: VhostPciError."""
        if pair >= len(self._ports):
            cause = f"the VF {self.name} has no more than {len(self._ports)} queue pairs"
            raise VhostPciError("run", name, cause)

    def rx_missed(self, pair: int) -> int:
        """Frames the VF's side lost for a queue pair since start, as far as it tells."""
        before = self._missed_before[pair] if pair < len(self._missed_before) else 0
        return before + (self._ports[pair].rx_missed if pair < len(self._ports) else 0)

    def look(self) -> bool:
        """Whether the VF must be opened anew, as the next `ensure` does. Also while loops run."""
        trouble = self._vf.look() if self._ports and not self._spoilt else ""
        if trouble:
            _log.warning("VF %s: %s; opening it anew", self.name, trouble)
            self._spoilt = True
        return self._spoilt

    def share(self, mappings: Sequence[Mapping]) -> None:
        """Let the VF read VM1's memory, if it can: `driver.software_vf.vf.Vf.share`."""
        self._vf.share(mappings)

    def unshare(self) -> None:
        """Undo that; nothing is in flight any more."""
        self._vf.unshare()

    def prepare(self) -> None:
        """Open a VF that takes long for it, before anybody waits; VhostPciError if it cannot be."""
        if self._vf.opens_slowly:
            self.ensure(1)

    @property
    def spoilt(self) -> bool:
        """Whether `look` found trouble since the ports were opened."""
        return self._spoilt

    def ensure(self, pairs: int) -> None:
        """Have ports for pairs queue pairs, or, where the VF refuses, for as many as before.

        A VF that has fewer queue pairs gets ports for those.

        Raises:
            VhostPciError: Not even those can be opened. None is open then.
        """
        former = len(self._ports)
        pairs = min(pairs, self._vf.queue_pairs_max or pairs)
        if self._spoilt:
            pairs = max(pairs, former)
        elif former and (pairs <= former or 0 < self._refused <= pairs):
            return
        self._close_ports()
        try:
            self._open(pairs)
        except VhostPciError as error:
            if former in (0, pairs):
                raise
            _log.warning("%s; going on with %d queue pairs", error, former)
            self._refused = pairs
            self._open(former)

    def _open(self, pairs: int) -> None:
        specs = self._vf.open(pairs)
        for index, spec in enumerate(specs):
            try:
                self._ports.append(Port(spec, f"VF {self._vf.spec}"))
            except VhostPciError:
                for unowned in specs[index:]:
                    if unowned.fd >= 0:
                        os.close(unowned.fd)
                self._close_ports()
                raise
        self._missed_before += [0] * (pairs - len(self._missed_before))

    def _close_ports(self) -> None:
        for pair, port in enumerate(self._ports):
            self._missed_before[pair] += port.rx_missed
            if port.tx_held:
                _log.info("VF %s: read %d frames from VM1's memory", self.name, port.tx_held)
            port.close()
        self._ports.clear()
        self._spoilt = False
        self._vf.close()

    def close(self) -> None:
        """Close ports and VF. Twice is fine."""
        self._close_ports()
