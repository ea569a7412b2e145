"""Two channels on one lcore, by a VF's model and by none, with the daemon on a thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from driver.passthrough import OpenFunction, PassthroughVf
from driver.software_vf import parse_vf
from guest.cpus import default_lcores
from guest.errors import VhostPciError
from pmd import channel as channel_module
from pmd import ports as ports_module
from pmd.channel import Channel
from pmd.daemon import Daemon
from pmd.ports import Copy
from pmd.report import Silent
from pmd.serving import Serving
from tests.driver.vf_kinds import sent_by, vf_for
from tests.pmd.fake_source import FakeSource, Told
from tests.pmd.test_slots import Stop
from tests.pmd.wait import DEADLINE_S, wait_for

if TYPE_CHECKING:
    import contextlib

    import pytest

    from tests.driver.vf_kinds import VfModel


def told_nothing() -> Told:
    """A function whose host does not care."""
    return Told(lambda _: None)


class Neighbour(FakeSource):
    """A VM1 whose frames go all the while."""

    moved = 0

    def move(self) -> None:
        """One more frame goes, and is back."""
        self.send(self.moved)
        self.moved += 1
        wait_for(lambda: self.used_index == self.moved, "the neighbour's frame")


def patch_times(patch: pytest.MonkeyPatch) -> None:
    """What takes its time on purpose takes less of it."""
    patch.setattr(ports_module, "_RETRY_S", 0.05)
    patch.setattr(channel_module, "_DRAIN_S", 0.05)
    patch.setattr(PassthroughVf, "look_period_s", 0.05)


class Run:
    """The two channels.

    Args:
        stack: Ends it all.
        model: Of the VF; disposed of at the end.
        vm1: Whom the VF serves.
        copy: Which frames it copies.

    Attributes:
        neighbour: Whom the other channel serves. log_name: The VF's.
        unplugged: Whether the VF cannot be opened. opened: How often it was.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        model: VfModel,
        vm1: FakeSource,
        copy: Copy = Copy.AUTO,
    ) -> None:
        self.model = model
        stack.callback(model.dispose)
        self.unplugged = False
        self.opened = 0
        self.vm1, self.neighbour = vm1, Neighbour(told_nothing())
        vf = vf_for(model, self._open)
        self.log_name = f"VF {vf.spec}"
        channels = []
        for source, each in ((vm1, vf), (self.neighbour, parse_vf("null"))):
            channels.append(Channel(source, each, Serving(copy=copy)))
            stack.callback(channels[-1].close)
            channels[-1].attach()
        self.channel = channels[0]
        self._stop = Stop()
        stack.callback(self._stop.close)
        daemon = stack.enter_context(
            Daemon(channels, default_lcores(1), 32, self._stop)  # type: ignore[arg-type]
        )
        self._thread = threading.Thread(target=lambda: daemon.run(Silent(), 1.0, DEADLINE_S))
        self._thread.start()
        stack.callback(self._end)

    def _open(self, address: str) -> OpenFunction:
        if self.unplugged:
            raise VhostPciError("open", address, "there is no such function")
        self.opened += 1
        return OpenFunction(self.model, ())

    def _end(self) -> None:
        self._stop.give()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def wait_until_served(self, opened: int) -> None:
        """The VF was opened so often, and VM1 is served by it: what is configured anew is not."""
        wait_for(
            lambda: self.opened == opened and self.channel.snapshot().state == "forwarding",
            "the VF",
        )

    def wait_for_used(self, heads: list[int]) -> None:
        """VM1 has so many heads back, in this order, while the VF sends."""

        def used() -> bool:
            self.model.run()
            return self.vm1.used() == heads

        wait_for(used, f"{heads} to be returned")

    @property
    def sent(self) -> list[int]:
        """The first byte of each frame that the VF sent."""
        return [frame[0] for frame in sent_by(self.model)]
