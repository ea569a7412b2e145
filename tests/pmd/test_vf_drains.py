"""What of VM1's a VF has it gives back before its host hears that a change is taken over.

The host looks at the moment of each acknowledgement: what the VF still reaches, and what VM1 has
back. A model of a VF bites by itself where memory is taken away from frames that it holds.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest

from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction
from driver.state_area import PAGE_SIZE, Status
from driver.virtio_net.vf import VirtioNetVf
from guest.errors import DeviceGoneError
from guest.function import Area
from pmd import channel as channel_module
from pmd.channel import Channel
from pmd.serving import Serving
from tests.driver.vf_kinds import MODELS, sent_by, vf_for
from tests.pmd.fake_receiver import Receiver
from tests.pmd.fake_source import WINDOW, FakeSource, Told
from tests.pmd.receiving_rig import frame
from tests.pmd.vf_run import told_nothing
from tests.pmd.wait import DEADLINE_S, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from driver.sending import Sending
    from driver.software_vf import Vf
    from pmd.kernel import Work
    from tests.driver.vf_kinds import VfModel

MORE = 9  # a window beside the first
POSTED = 4096
READABLE_AND_WRITABLE = 3
ROWS: list[tuple[int, ...]] = [
    (0, WINDOW, 0, 2, READABLE_AND_WRITABLE),
    (WINDOW, WINDOW, 0, MORE, READABLE_AND_WRITABLE),
]


class Seen(NamedTuple):
    """By the host, as a generation is acknowledged."""

    dma: tuple[str, ...]  # what the VF's mappings went through since the generation before
    windows: int  # that the VF reaches
    returned: int  # buffers of VM1's


class Rig:
    """A channel, its host, who looks, and a VM1 whose frames lie in a window that can go."""

    def __init__(self, model: VfModel, make: Callable[[Told], FakeSource]) -> None:
        self.model = model
        self.seen: dict[int, Seen] = {}
        self.vm1 = make(Told(self._look))
        self.vm1.function.add_window(MORE, Area(0, WINDOW))
        self.vm1.function.memory = list(ROWS)
        self.vm1.data = WINDOW + 4 * PAGE_SIZE
        self.vm1.start(2)
        self.vf = vf_for(model, lambda _: OpenFunction(model, ()))
        self.channel = Channel(self.vm1, self.vf, Serving())
        self.channel.attach()
        self.channel.configure()

    @property
    def work(self) -> Work:
        return self.channel.works[0]

    def _look(self, generation: int) -> None:
        assert generation not in self.seen, f"{generation} is acknowledged twice"
        windows = len(self.model.dma) - 1  # one is its own memory
        self.seen[generation] = Seen(tuple(self.model.dma_log), windows, self.vm1.used_index)
        self.model.dma_log.clear()

    def close(self) -> None:
        self.channel.close()
        assert (self.model.faults, self.model.dma) == ([], {})
        self.model.dispose()


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> VfModel:
    return MODELS[request.param]()


@pytest.fixture
def sending(model: VfModel) -> Iterator[Rig]:
    with contextlib.closing(Rig(model, FakeSource)) as rig:
        for number in range(3):
            rig.vm1.send(number)
        rig.work.turn(32)
        assert rig.vm1.used() == []
        yield rig


@pytest.fixture
def receiving(model: VfModel) -> Iterator[Rig]:
    with contextlib.closing(Rig(model, Receiver)) as rig:
        assert isinstance(rig.vm1, Receiver)
        rig.vm1.post(*[POSTED] * 4)
        rig.work.turn(32)
        assert model.receive(frame(1))
        yield rig


def how_it_sends(vf: Vf) -> Sending:
    if isinstance(vf, VirtioNetVf):
        return vf._watches[0].report.sending
    assert isinstance(vf, IgbVf)
    assert vf._watch is not None
    return vf._watch.report.sending


# ---- changes that VM1's VMM waits for


def stop(vm1: FakeSource) -> None:
    """GET_VRING_BASE."""
    vm1.start(10, started=False)


def add_memory(vm1: FakeSource) -> None:
    vm1.function.add_window(MORE + 1, Area(0, WINDOW))
    vm1.function.memory = [*ROWS, (2 * WINDOW, WINDOW, 0, MORE + 1, READABLE_AND_WRITABLE)]
    vm1.start(10)


def take_memory(vm1: FakeSource) -> None:
    """That in which the frames lie."""
    vm1.function.memory = ROWS[:1]
    vm1.start(10)


def revoke(vm1: FakeSource) -> None:
    vm1.function.memory, vm1.function.rings = [], []
    vm1.function.header |= {"status": Status(0), "features": 0}
    vm1.function.publish(10)


CHANGES: list[tuple[Callable[[FakeSource], None], int]] = [
    (stop, 0),
    (add_memory, 3),
    (take_memory, 1),
    (revoke, 0),
]


@pytest.mark.parametrize(("change", "windows"), CHANGES)
def test_frames_in_its_hands_are_sent_first(
    sending: Rig,
    change: Callable[[FakeSource], None],
    windows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a VF that begins only once it is waited for."""
    monkeypatch.setattr(channel_module, "_DRAIN_S", DEADLINE_S)
    model = sending.model
    port = how_it_sends(sending.vf)
    looks = port.looks

    def send() -> None:
        wait_for(lambda: port.looks >= looks + 2, "somebody to look for what was sent")
        model.run()

    wire = threading.Thread(target=send)
    wire.start()
    change(sending.vm1)
    sending.channel.configure()
    wire.join()
    dma = ("unmap", "unmap", *["map"] * windows)
    assert sending.seen[10] == Seen(dma, windows, 3)
    assert [each[0] for each in sent_by(model)] == [0, 1, 2]
    assert sending.channel.snapshot().pairs[0].vm1_to_vf.packets == 3


@pytest.mark.parametrize(("change", "windows"), CHANGES)
def test_frames_that_it_does_not_send_it_has_no_more(
    sending: Rig,
    change: Callable[[FakeSource], None],
    windows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_module, "_DRAIN_S", 0.02)
    change(sending.vm1)
    sending.channel.configure()
    # All its mappings go, its own memory's among them, and the VF is opened anew.
    dma = ("unmap", "unmap", "unmap", "map", *["map"] * windows)
    assert sending.seen[10] == Seen(dma, windows, 3)
    sending.model.run()
    assert sent_by(sending.model) == []
    assert sending.channel.snapshot().pairs[0].vm1_to_vf.drops[11] == 3  # vf_error


@pytest.mark.parametrize(("change", "windows"), CHANGES)
def test_buffers_in_its_hands_are_let_go_first(
    receiving: Rig, change: Callable[[FakeSource], None], windows: int
) -> None:
    """What it has written is VM1's, and it writes nothing more there."""
    vm1 = receiving.vm1
    assert isinstance(vm1, Receiver)
    assert receiving.seen[2].windows == 2
    change(vm1)
    receiving.channel.configure()
    dma = ("unmap", "unmap", *["map"] * windows)
    assert receiving.seen[10] == Seen(dma, windows, 1)
    assert vm1.received() == [frame(1)]
    before = vm1.peek(vm1.data, 4 * PAGE_SIZE)
    assert receiving.model.receive(frame(2)) or change is add_memory  # which posts them anew later
    assert vm1.peek(vm1.data, 4 * PAGE_SIZE) == before


# ---- the function goes away


@pytest.fixture(params=["sending", "receiving"])
def gone(
    model: VfModel,  # noqa: ARG001 - which of them sending and receiving ask for
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Rig:
    """Its function went with frames or buffers in the hands of a VF that never finishes."""
    monkeypatch.setattr(channel_module, "_DRAIN_S", 0.02)
    rig: Rig = request.getfixturevalue(request.param)
    rig.vm1.function.gone = True
    with pytest.raises(DeviceGoneError):
        rig.channel.configure()
    return rig


def test_a_function_that_goes_leaves_the_vf_to_the_next(gone: Rig) -> None:
    vm1, model = gone.vm1, gone.model
    receives = isinstance(vm1, Receiver)
    # The one is closed for it, the other lets go of VM1's buffers; each has its own memory at most.
    assert (vm1.used_index, len(model.dma)) == ((1, 1) if receives else (3, 0))
    model.run()
    assert sent_by(model) == []
    gone.channel.detach()
    successor = type(vm1)(told_nothing())
    vm1.function, vm1.data = successor.function, successor.data
    gone.channel.attach()
    gone.channel.configure()
    if isinstance(vm1, Receiver):
        vm1.posted = 0
        vm1.post(POSTED)
        gone.work.turn(32)
        assert model.receive(frame(3))
        gone.work.turn(32)
        assert vm1.received() == [frame(3)]
    else:
        vm1.send(0)
        gone.work.turn(32)
        model.run()
        gone.work.turn(32)
        assert vm1.used() == [0]
        assert [each[0] for each in sent_by(model)] == [0]
