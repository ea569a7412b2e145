"""The VFs that are driven by VFIO, each with the model of its device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.igbvf.vf import IgbVf
from driver.virtio_net.features import Feature
from driver.virtio_net.vf import VirtioNetVf
from tests.driver.igb_model import IgbModel
from tests.driver.virtio_net_model import OFFER, VirtioNetModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.passthrough import OpenFunction, PassthroughVf

VfModel = IgbModel | VirtioNetModel

MODELS: dict[str, Callable[[], VfModel]] = {
    "igbvf": IgbModel,
    "virtio-net split": lambda: VirtioNetModel(OFFER | Feature.RING_RESET),
    "virtio-net packed": lambda: VirtioNetModel(OFFER | Feature.RING_RESET | Feature.RING_PACKED),
}


def vf_for(model: VfModel, open_function: Callable[[str], OpenFunction]) -> PassthroughVf:
    """The VF of a model's kind."""
    if isinstance(model, IgbModel):
        return IgbVf("igbvf:01:10.0", model.name, None, open_function)
    return VirtioNetVf("virtio-net:01:00.0", model.name, None, open_function)


def sent_by(model: VfModel) -> list[bytes]:
    """The frames that it sent."""
    return model.wire if isinstance(model, IgbModel) else model.sent
