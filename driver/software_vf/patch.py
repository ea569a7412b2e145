"""patch: two VM1s joined, the transmit rings of each to the receive rings of the other."""

from __future__ import annotations

import itertools

from driver.software_vf.vf import PortSpec, Vf

PREFIX = "patch:"
_ends = itertools.count()


class PatchVf(Vf):
    """One of a patch's two ends. There is nothing to open: the kernel's loop joins them.

    Args:
        spec: The user's words, the same at both ends.
    """

    kind = "patch"

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self.one_lcore = spec
        self._end = str(next(_ends))

    def open(self, queue_pairs: int) -> list[PortSpec]:
        """See `Vf.open`."""
        return [PortSpec(self.kind, input=self.spec, output=self._end)] * queue_pairs
