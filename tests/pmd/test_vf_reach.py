"""A VF whose DMA does not reach all of VM1's memory: it copies that, or is refused."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from driver.passthrough import OpenFunction
from driver.state_area import PAGE_SIZE
from guest.function import Area
from pmd.channel import Channel
from pmd.ports import Copy
from pmd.serving import Serving
from tests.driver.vf_kinds import MODELS, sent_by, vf_for
from tests.pmd.fake_receiver import Receiver
from tests.pmd.fake_source import WINDOW, FakeSource
from tests.pmd.receiving_rig import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.driver.vf_kinds import VfModel

OWN = 2 << 20  # what a VF has of its own, and where that begins
PARTS = WINDOW // PAGE_SIZE
MORE = 9
RAISE = "raise the limit: ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit"


class Machine:
    """A VF's model, and VMs 1 that it is to serve."""

    def __init__(self, model: VfModel) -> None:
        self.model = model
        self.in_parts = False

    def serve(self, vm1: FakeSource, copy: Copy) -> Channel:
        if self.in_parts:  # one more than a VF has room for
            vm1.function.add_window(2, *(Area(n * PAGE_SIZE, PAGE_SIZE) for n in range(PARTS)))
            vm1.function.add_window(MORE, Area(0, WINDOW))
            vm1.function.memory.append((WINDOW, WINDOW, 0, MORE, 3))
            vm1.data = WINDOW
            vm1.start(2)
        vf = vf_for(self.model, lambda _: OpenFunction(self.model, self.model.iova_ranges))
        channel = Channel(vm1, vf, Serving(copy=copy))
        channel.attach()
        return channel


@pytest.fixture(params=list(MODELS))
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    model = MODELS[request.param]()
    yield Machine(model)
    assert (model.faults, model.dma) == ([], {})
    model.dispose()


def a_small_aperture(machine: Machine) -> None:
    machine.model.iova_ranges = ((0, 2 * OWN - 1),)


def little_lockable_memory(machine: Machine) -> None:
    machine.model.dma_limit = OWN + WINDOW - 1


def too_many_parts(machine: Machine) -> None:
    machine.in_parts = True


# What it does not reach, why, and what the user can do.
OBSTACLES: list[tuple[Callable[[Machine], None], str, str, str]] = [
    (a_small_aperture, f"{WINDOW} bytes", "the IOMMU has no room of that size left", ""),
    (
        little_lockable_memory,
        f"{WINDOW} bytes at {2 * OWN:#x}",
        "the process may not lock that much memory",
        RAISE,
    ),
    (too_many_parts, f"{PARTS + 1} parts of VM1's memory", f"a VF has room for {PARTS}", ""),
]


@pytest.mark.parametrize(("obstacle", "what", "why", "remedy"), OBSTACLES)
def test_it_copies_what_vm1_sends_and_says_so_once(
    *,
    machine: Machine,
    obstacle: Callable[[Machine], None],
    what: str,
    why: str,
    remedy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    obstacle(machine)
    vm1 = FakeSource()
    with contextlib.closing(machine.serve(vm1, Copy.AUTO)) as channel:
        for number in range(3):
            vm1.start(4 + 2 * number)
            channel.configure()
            vm1.send(number)
            channel.works[0].turn(32)
            assert vm1.used() == list(range(number + 1))  # at once: nothing is held
        machine.model.run()
        assert [each[0] for each in sent_by(machine.model)] == [0, 1, 2]
        assert channel.snapshot().pairs[0].at_vf.tx_zero_copy == 0
        line = "; ".join(filter(None, (f"cannot map for DMA {what}: {why}", remedy)))
        warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        assert warnings == [f"VF {channel.snapshot().vf}: {line}; frames there are copied"]


@pytest.mark.parametrize("obstacle", [each[0] for each in OBSTACLES])
def test_it_copies_what_vm1_receives(machine: Machine, obstacle: Callable[[Machine], None]) -> None:
    obstacle(machine)
    vm1 = Receiver()
    with contextlib.closing(machine.serve(vm1, Copy.AUTO)) as channel:
        vm1.post(4096, 4096)
        channel.configure()
        for number in range(2):
            assert machine.model.receive(frame(number))
            channel.works[0].turn(32)
        assert vm1.received() == [frame(0), frame(1)]
        assert channel.snapshot().pairs[0].at_vf.rx_zero_copy == 0


@pytest.mark.parametrize(("obstacle", "what", "why", "remedy"), OBSTACLES)
def test_it_is_refused_where_nothing_is_to_be_copied(
    *,
    machine: Machine,
    obstacle: Callable[[Machine], None],
    what: str,
    why: str,
    remedy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    obstacle(machine)
    vm1 = FakeSource()
    with contextlib.closing(machine.serve(vm1, Copy.NEVER)) as channel:
        vm1.send(0)
        channel.configure()
        assert (channel.state, channel.works) == ("waiting", {})
        assert len(machine.model.dma) == 1  # its own
        assert vm1.used() == []
        vf = channel.snapshot().vf
        remedies = "; or ".join(filter(None, (remedy, "use --copy auto")))
        line = f"fake: cannot run without copying: VF {vf} does not reach all of VM1's memory "
        line += f"({what}: {why}); {remedies}; waiting for its next state"
        errors = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
        assert errors == [line]


def test_what_it_reaches_it_reads_there(machine: Machine) -> None:
    """Of a memory in too many parts."""
    too_many_parts(machine)
    vm1 = FakeSource()
    with contextlib.closing(machine.serve(vm1, Copy.AUTO)) as channel:
        vm1.data = 4 * PAGE_SIZE
        channel.configure()
        vm1.send(0)
        channel.works[0].turn(32)
        assert vm1.used() == []
        machine.model.run()
        channel.works[0].turn(32)
        assert vm1.used() == [0]
        assert channel.snapshot().pairs[0].at_vf.tx_zero_copy == 1
