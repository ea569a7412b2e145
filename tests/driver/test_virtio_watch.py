"""A virtio network device whose structures, status or configuration are not what they should be."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from driver.virtio_net import device
from driver.virtio_net.features import Feature
from tests.driver.virtio_function_model import DEVICE, DRIVER_OK, NEEDS_RESET
from tests.driver.virtio_net_model import VirtioNetModel as Model
from tests.driver.virtio_opener import make, opened, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(device, "_RESET_S", 0.02)
    model = Model()
    yield model
    assert model.faults == []
    model.dispose()


# ---- its structures


def capability(model: Model, offset: int, at: int, layout: str, value: int) -> None:
    struct.pack_into(layout, model.config, offset + at, value)


@pytest.mark.parametrize(("offset", "name"), [(0x50, "common"), (0x70, "device"), (0x84, "notify")])
def test_a_structure_that_lies_outside(model: Model, offset: int, name: str) -> None:
    for at, layout, value in ((8, "<I", 0x3001), (12, "<I", 0), (4, "<B", 6), (4, "<B", 1)):
        before = bytes(model.config)
        capability(model, offset, at, layout, value)
        assert f"it has no {name} structure" in refusal(model)
        model.config[:] = before


def test_no_capabilities_at_all(model: Model) -> None:
    struct.pack_into("<H", model.config, 6, 0)
    text = refusal(model)
    assert "it has no common structure" in text
    assert text.endswith("in QEMU: disable-legacy=on")


def test_capabilities_that_are_a_ring(model: Model) -> None:
    model.config[0x41] = 0x98
    opened(model)[0].close()


def test_the_first_of_two_structures_counts(model: Model) -> None:
    model.config[0x41] = 0xB0  # after the last
    struct.pack_into("<BBBBBxxxII", model.config, 0xB0, 9, 0, 16, 4, 4, DEVICE + 0x800, 16)
    opened(model)[0].close()


def test_structures_that_are_short(model: Model) -> None:
    capability(model, 0x70, 12, "<I", 6)
    assert "its structure of 6 bytes has no status" in refusal(model)
    capability(model, 0x70, 12, "<I", 8)
    opened(model)[0].close()
    capability(model, 0x50, 12, "<I", 0x30)
    assert "its structure of 48 bytes has no queue_device" in refusal(model)


def test_a_notification_beyond_its_structure(model: Model) -> None:
    capability(model, 0x84, 12, "<I", 5)
    assert "its queue 1 is notified at 0x4 of 0x5 bytes" in refusal(model)


# ---- looking after it


def test_nothing_to_say_of_a_device_that_is_well(model: Model) -> None:
    vf = make(model)
    assert vf.look() == ""
    vf.open(1)
    for generation in range(3):
        model.generation = generation
        assert vf.look() == ""
    vf.close()


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "it was reset"), (15 | NEEDS_RESET, "it needs a reset"), (11, "it was reset")],
)
def test_a_device_that_stopped(model: Model, status: int, words: str) -> None:
    vf, _ = opened(model)
    model.status = status
    assert vf.look() == words
    vf.close()
    model.status = 0
    vf.open(1)
    assert vf.look() == ""
    assert model.status & DRIVER_OK
    vf.close()


def test_a_configuration_that_never_stays(model: Model) -> None:
    vf, _ = opened(model)
    read = model._read_device

    def changes(offset: int, size: int) -> bytes:
        model.generation += 1
        return read(offset, size)

    model._read_device = changes  # type: ignore[method-assign]
    assert vf.look() == "its configuration does not stay as it is"
    vf.close()


def test_a_link_that_comes_and_goes(model: Model) -> None:
    model.link = 0
    vf, spec = opened(model)
    assert spec.virtio is not None
    assert not vf._link_up.value
    model.link = 1
    assert vf.look() == ""
    assert vf._link_up.value
    vf.close()
    model.link = 0
    model.offer &= ~Feature.STATUS
    vf.open(1)
    assert vf._link_up.value
    vf.close()
