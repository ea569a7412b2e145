"""A configured channel between a VM1 that receives and the model of a VF that writes its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmd.channel import Channel
from pmd.serving import Serving
from tests.pmd.fake_receiver import Receiver

if TYPE_CHECKING:
    from driver.software_vf import Vf
    from pmd.kernel import Event
    from pmd.ports import Copy
    from pmd.stats import Receives
    from tests.driver.igb_model import IgbModel
    from tests.driver.virtio_net_model import VirtioNetModel


class ReceivingRig:
    """The channel, the VM1 it serves, which posted buffers of these sizes, and the VF's model."""

    model: IgbModel | VirtioNetModel

    def __init__(self, vf: Vf, copy: Copy, *sizes: int) -> None:
        self.vm1 = Receiver()
        self.vm1.post(*sizes)
        self.channel = Channel(self.vm1, vf, Serving(copy=copy))
        self.channel.attach()
        self.channel.configure()

    def turn(self) -> Event:
        self.channel.works[0].turn(32)
        return self.channel.works[0].events

    @property
    def ways(self) -> Receives:
        """How VM1's only pair receives."""
        return self.channel.snapshot().pairs[0].receives

    @property
    def zero_copy(self) -> int:
        return self.channel.snapshot().pairs[0].at_vf.rx_zero_copy

    def close(self) -> None:
        self.channel.close()
        assert (self.model.faults, self.model.dma) == ([], {})
        self.model.dispose()


def frame(number: int, size: int = 1000) -> bytes:
    return bytes([number]) * size
