"""An igbvf that reports less than it received, and what looks like one and is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.igbvf.queue import RX_COUNT
from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction
from tests.driver.igb_model import COUNTERS, HEAD, RX, TAIL, IgbModel
from tests.kernel.port_user import PortUser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FRAME = bytes(range(64))
STOPPED = "it stopped receiving"


@pytest.fixture
def model() -> Iterator[IgbModel]:
    model = IgbModel()
    for register in COUNTERS.values():
        model.put(register, -2)  # they go round
    yield model
    assert model.faults == []
    model.dispose()


@pytest.fixture
def vf(model: IgbModel) -> IgbVf:
    return IgbVf("igbvf:01:10.0", model.name, None, lambda _: OpenFunction(model, ()))


@pytest.fixture
def user(vf: IgbVf) -> Iterator[PortUser]:
    (spec,) = vf.open(1)
    with PortUser(spec) as user:
        yield user
    vf.close()


def looks(vf: IgbVf, count: int, before_each: Callable[[], object] = lambda: None) -> list[str]:
    found = []
    for _ in range(count):
        before_each()
        found.append(vf.look())
    return found


def test_frames_that_are_counted_only(model: IgbModel, vf: IgbVf, user: PortUser) -> None:
    """However seldom they come; a frame that is reported after all begins it anew."""
    model.reports = False
    for _ in range(3):
        assert looks(vf, 1, lambda: model.receive(FRAME)) == [""]
        assert looks(vf, 3) == [""] * 3
    model.reports = True
    model.receive(FRAME)
    assert user.rx() == [FRAME]
    user.done(1)
    assert looks(vf, 1) == [""]
    model.reports = False
    assert looks(vf, 4, lambda: model.receive(FRAME)) == ["", "", "", STOPPED]
    assert vf.missed(0) == 4


def test_a_quiet_wire(vf: IgbVf, user: PortUser) -> None:
    assert user.rx() == []
    assert looks(vf, 10) == [""] * 10


def test_frames_that_nobody_takes(model: IgbModel, vf: IgbVf, user: PortUser) -> None:
    """Until it has no room left: VM1 is slow, not the VF."""
    assert looks(vf, 10, lambda: model.receive(FRAME)) == [""] * 10
    while model.receive(FRAME):
        pass
    assert looks(vf, 10) == [""] * 10
    assert user.rx() == [FRAME] * 256


def test_frames_that_are_taken(model: IgbModel, vf: IgbVf, user: PortUser) -> None:
    def one_goes() -> None:
        assert model.receive(FRAME)
        assert user.rx() == [FRAME]
        user.done(1)

    assert looks(vf, RX_COUNT + 10, one_goes) == [""] * (RX_COUNT + 10)


@pytest.mark.usefixtures("user")
def test_a_link_that_is_down(model: IgbModel, vf: IgbVf) -> None:
    model.link(up=False)
    model.reports = False
    assert looks(vf, 10, lambda: model.receive(FRAME)) == [""] * 10


def test_a_head_that_goes_past_what_is_reported(model: IgbModel, vf: IgbVf, user: PortUser) -> None:
    """It has used all buffers up, and says so by its head only."""
    assert looks(vf, 1) == [""]
    model.put(RX + HEAD, model.get(RX + TAIL))
    assert user.rx() == []
    assert looks(vf, 4) == ["", "", "", STOPPED]


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    ("given", "behind", "says"), [(0, 0, ""), (0, 1, STOPPED), (4, 0, ""), (4, 2, STOPPED)]
)
def test_few_buffers(*, model: IgbModel, vf: IgbVf, given: int, behind: int, says: str) -> None:
    """VM1's: it may count what it has no room for; not be behind of what it reported."""
    watch, tail = vf._watch, model.get(RX + TAIL)
    assert watch is not None
    watch.report.received = tail - given
    model.put(RX + HEAD, tail - given - behind)
    assert looks(vf, 1) == [""]  # there is progress
    assert looks(vf, 4, lambda: model._count("rx", 64)) == ["", "", "", says]


@pytest.mark.usefixtures("user")
def test_frames_too_long_for_it(model: IgbModel, vf: IgbVf) -> None:
    """It may count them, and one that is not: then it is due."""
    assert looks(vf, 10, lambda: model._count("rx", 1519)) == [""] * 10
    assert looks(vf, 4, lambda: model._count("rx", 1518)) == ["", "", "", STOPPED]
