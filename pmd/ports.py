"""The ports of a VF: one a queue pair of it, opened for as many pairs as VM1 has started.

A VF that has fewer has a port for each: pmd/pair_works.py puts VM1's pairs to them. They stay open
while VM1 comes and goes. Where VM1 later starts more pairs, or the VF has to be set
up anew (its PF was reset, say), all are closed and opened again; frames that a port held are lost.
A VF that cannot be opened again (its PF is down) is *away*: its place is taken by ports that drop
all frames as of a link that is down, and it is tried again and again.
"""

from __future__ import annotations

import enum
import logging
import os
import time
from typing import TYPE_CHECKING

from driver.software_vf import PortSpec
from guest.errors import UsageError, VhostPciError
from pmd.kernel import Port
from pmd.stats import AtVf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driver.software_vf import Vf
    from guest.mapping import Mapping
    from pmd.kernel import Queue, Work

_log = logging.getLogger("pmd")
_RETRY_S = 2.0  # a PF that does not answer takes half of it
_PREPARED_MAX = 8  # each has memory of its own
_EVERY_FRAME = (1 << 32) - 1


class Copy(enum.StrEnum):
    """Which of VM1's frames are copied, by a VF whose DMA reaches VM1's memory."""

    AUTO = "auto"  # short ones, and what the VF does not reach
    ALWAYS = "always"
    NEVER = "never"  # but those in more pieces than the VF takes


class Ports:
    """Owns the VF and its ports.

    Thread rule: `counts` at any time, the rest while no loop runs a port.

    Raises:
        UsageError: Nothing is to be copied, and this VF can do no other.
    """

    def __init__(self, vf: Vf, copy: Copy = Copy.AUTO) -> None:
        self._vf = vf
        if copy is Copy.NEVER and not vf.reads_vm1:
            cause = f"VF {vf.spec} does not reach VM1's memory by itself"
            raise UsageError("use", "--copy never", cause, "only igbvf and virtio-net do")
        self._copy = copy
        self._ports: list[Port] = []
        self._before: list[AtVf] = []
        self._asked = 0  # pairs they were opened for, or that the VF refused
        self._spoilt = False
        self._pairs = 0  # that the VF was opened for last
        self._away = False
        self._retry_at = 0.0
        self._direct: set[int] = set()
        self._said = ""  # of what the VF does not reach

    @property
    def look_period_s(self) -> float | None:
        """How often `look` is to be asked; None: never."""
        return self._vf.look_period_s

    @property
    def one_lcore(self) -> str | None:
        """What the channels have alike that one lcore is to run; None: any may run this one."""
        return self._vf.one_lcore

    @property
    def name(self) -> str:
        """The VF's spec."""
        return self._vf.spec

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ports)

    def __getitem__(self, pair: int) -> Port:
        """The port of a queue pair of the VF's."""
        return self._ports[pair]

    def counts(self, pair: int) -> AtVf:
        """What the VF's side of a queue pair counted since start."""
        before = self._before[pair] if pair < len(self._before) else AtVf()
        before += AtVf(self._vf.missed(pair), 0, 0)
        return before + _counts(self._ports[pair]) if pair < len(self._ports) else before

    @property
    def mode(self) -> str:
        """How the VF was opened, in words; or ""."""
        return self._vf.mode

    def counters(self) -> dict[str, int]:
        """What device or kernel counted by themselves, by name."""
        return self._vf.counters()

    def look(self) -> bool:
        """Whether the VF must be opened anew, as the next `ensure` does. Also while loops run."""
        if self._away and not self._spoilt:
            self._spoilt = self._is_back()
            return self._spoilt
        trouble = self._vf.look() if self._ports and not self._spoilt else ""
        if trouble:
            _log.warning("VF %s: %s; opening it anew", self.name, trouble)
            self._spoilt = True
        return self._spoilt

    def share(self, mappings: Sequence[Mapping], *, translated: bool = False) -> None:
        """Let the VF reach VM1's memory, if it can and shall: `driver.software_vf.vf.Vf.share`.

        It shall not where VM1's addresses are translated: what its IOMMU takes back at any time
        could not be taken back from the VF.

        Raises:
            VhostPciError: It does not reach all of it, and nothing is to be copied.
        """
        if self._copy is Copy.ALWAYS or self._away:
            return
        if translated and self._copy is Copy.NEVER:
            cause = "VM1's addresses are translated by an IOMMU of its own"
            raise VhostPciError("run without", "copying", cause, "use --copy auto")
        if translated:
            return
        refusal = self._vf.share(mappings)
        if refusal is not None and self._copy is Copy.NEVER:
            self._vf.unshare()
            why = f"{refusal.subject}: {refusal.cause}"
            cause = f"VF {self.name} does not reach all of VM1's memory ({why})"
            remedies = filter(None, (refusal.remedy, "use --copy auto"))
            raise VhostPciError("run without", "copying", cause, "; or ".join(remedies))
        line = f"VF {self.name}: {refusal}; frames there are copied" if refusal else ""
        if line and line != self._said:  # VM1 may set itself up anew as often as it likes
            _log.warning("%s", line)
        self._said = line

    def unshare(self) -> None:
        """Undo that; nothing is in flight any more."""
        self._vf.unshare()

    def receive(
        self, pair: int, queue: Queue, *, patience: int, shared: bool = False, suits: bool = True
    ) -> bool:
        """Whether the VF receives into VM1's buffers of this ring: if it can, and they suit it.

        After `share`, and before the ring runs. Where that is all that is in the way, its work ends
        with `Event.SUITED` once buffers do suit: `receive_anew` is then due.

        Args:
            pair: The port's.
            queue: VM1's ring.
            patience: How many of its buffers in a row have to suit for that.
            shared: The VF's queue is other rings' too, or there are several.
            suits: Whether its buffers are looked at now.

        Raises:
            VhostPciError: The VF does not start again; or they do not suit, and nothing is to be
                copied.
        """
        port = self._ports[pair]
        if self._copy is Copy.ALWAYS or self._away:
            return False
        may = self._vf.writes_vm1 and not shared
        if may and suits and queue.set_direct(port):
            self._vf.stop_receiving(pair)
            port.drop_rest()  # of whoever was served before
            self._start(pair, direct=True)
            return True
        if self._copy is Copy.NEVER:
            cause = f"VM1's buffers of {queue.name} do not suit VF {self.name}"
            if not self._vf.writes_vm1:
                cause = f"VF {self.name} does not write to VM1's memory by itself"
            elif shared:
                cause = f"VM1 does not use as many queue pairs as VF {self.name} has"
            raise VhostPciError("run without", "copying", cause, "use --copy auto")
        if may:
            queue.set_copied(patience)
        return False

    def receive_anew(self, pair: int, work: Work, queue: Queue, *, patience: int) -> bool:
        """`receive` for a ring that asks to receive the other way; queue is the work's.

        No other queue stops for it. What came before goes to VM1 as it was to, as far as VM1 has
        buffers; the rest counts as missed. Only with `Copy.AUTO`.

        Raises:
            VhostPciError: The VF does not stop, or does not start again: it has to be opened anew.
        """
        port = self._ports[pair]
        self._vf.stop_receiving(pair)
        direct = False
        if pair in self._direct:
            work.drain()
            queue.set_copied(patience)
        else:
            work.take_rest()
            port.drop_rest()
            direct = queue.set_direct(port)
            if not direct:
                queue.set_copied(patience)
        self._start(pair, direct=direct)
        work.resume()
        return direct

    def _start(self, pair: int, *, direct: bool) -> None:
        self._vf.start_receiving(pair)
        self._ports[pair].set_direct(direct)
        (self._direct.add if direct else self._direct.discard)(pair)

    @property
    def redecides(self) -> bool:
        """Whether `receive_anew` may be asked."""
        return self._copy is Copy.AUTO and not self._spoilt and not self._away

    def spoil(self) -> None:
        """The VF does not do as it is told: the next `ensure` opens it anew."""
        self._spoilt = True

    def let_go(self) -> None:
        """When it returns, no VF writes to VM1's memory any more; what it has written, ports see.

        Raises:
            VhostPciError: A VF does not let go: only `close` makes it.
        """
        for pair in self._direct:
            self._vf.stop_receiving(pair)

    def receive_by_copy(self) -> None:
        """After `let_go`, and once the ports were asked: receive, for whoever comes next.

        Raises:
            VhostPciError: A VF does not start again.
        """
        for pair in tuple(self._direct):
            self._start(pair, direct=False)

    def prepare(self) -> None:
        """Open a VF that takes long for it, before anybody waits; VhostPciError if it cannot be."""
        if self._vf.opens_slowly:
            # How many pairs VM1 has is not known yet. One that only copies may have ports to spare;
            # to open it again would take its link down.
            spare = 1 if self._vf.reads_vm1 else self._vf.queue_pairs_max or 1
            self.ensure(min(spare, _PREPARED_MAX))

    @property
    def spoilt(self) -> bool:
        """Whether `look` found trouble since the ports were opened."""
        return self._spoilt

    def ensure(self, pairs: int) -> None:
        """Have ports for pairs queue pairs, or, where the VF refuses, for as many as before.

        A VF that has fewer queue pairs gets ports for those; there is one at least. One that is
        looked after (`look`) and was open before may be away.

        Raises:
            VhostPciError: Not even those can be opened. None is open then.
        """
        former = len(self._ports)
        pairs = min(pairs, self._vf.queue_pairs_max or pairs)
        if self._spoilt:
            pairs = max(pairs, former)
        elif former and pairs <= max(former, self._asked):
            return
        self._close_ports()
        try:
            self._open(pairs)
        except VhostPciError as error:
            if 0 < former < pairs:
                _log.warning("%s; going on with %d queue pairs", error, former)
                self._reopen(former)
            else:
                self._do_without(error)
        self._asked = pairs

    def _reopen(self, pairs: int) -> None:
        try:
            self._open(pairs)
        except VhostPciError as error:
            self._do_without(error)

    def _do_without(self, error: VhostPciError) -> None:
        """Let the VF be away, if it can be; else raise."""
        if not self._pairs or self.look_period_s is None:
            raise error
        _log.error("%s; trying again, and dropping frames meanwhile", error)
        self._ports += [Port(PortSpec("down"), f"VF {self.name}") for _ in range(self._pairs)]
        self._away = True
        self._retry_at = time.monotonic() + _RETRY_S

    def _is_back(self) -> bool:
        """Whether the VF can be opened again; found out by doing so."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            specs = self._vf.open(self._pairs)
        except VhostPciError:
            return False
        else:
            _close_descriptors(specs)
            return True
        finally:
            self._vf.close()
            self._retry_at = time.monotonic() + _RETRY_S

    def _open(self, pairs: int) -> None:
        specs = self._vf.open(pairs)
        for index, spec in enumerate(specs):
            try:
                self._ports.append(Port(spec, f"VF {self._vf.spec}"))
                if self._copy is Copy.NEVER:
                    self._ports[-1].set_copy_below(0)
                elif self._copy is Copy.ALWAYS:
                    self._ports[-1].set_copy_below(_EVERY_FRAME)
            except VhostPciError:
                _close_descriptors(specs[index:])
                self._close_ports()
                raise
        self._pairs = pairs
        if len(specs) < pairs:
            _log.info("VF %s has %d queue pairs for VM1's %d", self.name, len(specs), pairs)
        self._before += [AtVf()] * (len(self._ports) - len(self._before))

    def _close_ports(self) -> None:
        for pair, port in enumerate(self._ports):
            self._before[pair] += _counts(port)
            if port.tx_held or port.rx_direct:
                _log.info(
                    "VF %s: read %d frames from VM1's memory, wrote %d to it",
                    self.name,
                    port.tx_held,
                    port.rx_direct,
                )
            port.close()
        self._ports.clear()
        self._direct.clear()
        self._spoilt = False
        self._away = False
        self._vf.close()

    def close(self) -> None:
        """Close ports and VF. Twice is fine."""
        self._close_ports()


def _close_descriptors(specs: Sequence[PortSpec]) -> None:
    """Of specs that no port was opened with."""
    for spec in specs:
        if spec.fd >= 0:
            os.close(spec.fd)


def _counts(port: Port) -> AtVf:
    return AtVf(port.rx_missed, port.tx_held, port.rx_direct)
