"""Opens a virtio network device of memory, as `--vf virtio-net` does, and sees it let go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.passthrough import OpenFunction
from driver.virtio_net.vf import VirtioNetVf
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from driver.software_vf import PortSpec
    from tests.driver.virtio_net_model import VirtioNetModel as Model


def make(model: Model, mac: bytes | None = None) -> VirtioNetVf:
    opened = OpenFunction(model, model.iova_ranges)
    return VirtioNetVf("virtio-net:01:00.0", model.name, mac, lambda _: opened)


def opened(model: Model, mac: bytes | None = None) -> tuple[VirtioNetVf, PortSpec]:
    vf = make(model, mac)
    (spec,) = vf.open(1)
    return vf, spec


def assert_let_go(model: Model) -> None:
    assert model.closed
    assert model.dma == {}
    for mapping in model.mappings:
        with pytest.raises(ValueError, match="closed"):
            mapping.array("u1")


def refusal(model: Model, mac: bytes | None = None) -> str:
    """What open says; nothing stays open."""
    with pytest.raises(VhostPciError) as error:
        make(model, mac).open(1)
    assert_let_go(model)
    return str(error.value)
