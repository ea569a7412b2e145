"""A VF that never completes, completes twice, or reports what cannot be, harms its channel alone.

While it lies, and while it is set up anew, the frames of another channel on the same lcore go on;
then it serves VM1 again, which has each of its buffers back once.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from driver.igbvf.queue import BUFFER_BYTES
from pmd.kernel import drop_names
from pmd.ports import Copy
from tests.driver.igb_model import HEAD, HIGH, LENGTH, LOW, TAIL, IgbModel
from tests.driver.igb_model import RX as IGB_RX
from tests.driver.igb_model import TX as IGB_TX
from tests.driver.vf_kinds import MODELS
from tests.driver.virtio_net_model import VirtioNetModel
from tests.driver.virtio_ring_model import SplitModel
from tests.pmd.fake_receiver import NOISE, Receiver
from tests.pmd.fake_source import FakeSource
from tests.pmd.receiving_rig import frame
from tests.pmd.vf_run import Run, patch_times, told_nothing
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.driver.vf_kinds import VfModel

    Lie = Callable[[VfModel], object]
    Serve = Callable[..., Run]

RX, TX = 0, 1
DONE_AND_END = 3
POSTED = 4096  # each of VM1's buffers
DIRECT_ROOM = 1522  # what the PF lets an igbvf receive
STOPPED = "it stopped sending"
BAD_INDEX = "it used more buffers than it was given"
BAD_ID = "it used a buffer that it does not have"
BAD_LENGTH = "it wrote more or less than a buffer can hold"
UNREPORTED = "it stopped receiving"
FOREIGN = "it reported a buffer that it does not have"
OVERRUN = "it wrote more to a buffer of VM1's than its PF lets it receive: it is at fault"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    patch_times(monkeypatch)
    with contextlib.ExitStack() as stack:

        def start(kind: str, vm1: FakeSource, copy: Copy = Copy.AUTO) -> Run:
            run = Run(stack, MODELS[kind](), vm1, copy)
            run.wait_until_served(1)
            return run

        yield start


def while_others_move(run: Run, condition: Callable[[], object], what: str) -> None:
    def after_a_frame() -> object:
        run.neighbour.move()
        return condition()

    wait_for(after_a_frame, what)


def wait_until_set_up_anew(run: Run, says: str, log: pytest.LogCaptureFixture) -> None:
    """Its channel says why; once is enough."""
    line = f"{run.log_name}: {says}; opening it anew"
    while_others_move(run, lambda: line in log.text, line)
    run.wait_until_served(2)
    run.neighbour.move()


def drops(run: Run, *, receives: bool) -> dict[str, int]:
    pair = run.channel.snapshot().pairs[0]
    counts = (pair.vf_to_vm1 if receives else pair.vm1_to_vf).drops
    return {name: n for name, n in zip(drop_names(), counts, strict=False) if n}


# ---- lies, of VFs that have what VM1 gave them


def named(lie: Lie, name: str) -> Lie:
    lie.__name__ = name
    return lie


def takes_none(_: VfModel) -> None:
    """Nor does it report any."""


def reports_none(model: VfModel) -> None:
    model.run()


def reports_early(model: VfModel) -> None:
    """What it was not given yet, as well."""
    assert isinstance(model, IgbModel)
    model.run()
    model.report_all_sent()


def reports_twice(model: VfModel) -> None:
    assert isinstance(model, VirtioNetModel)
    chain = model.take()
    assert chain is not None
    for _ in range(2):
        model.rings[TX].push(chain.id, 0)


def reports_a_foreign_one(queue: int, number: int) -> Lie:
    def lie(model: VfModel) -> None:
        assert isinstance(model, VirtioNetModel)
        model.rings[queue].push(number, 60)

    return named(lie, f"reports {number}")


def jumps(model: VfModel) -> None:
    assert isinstance(model, VirtioNetModel)
    ring = model.rings[TX]
    assert isinstance(ring, SplitModel)
    ring.move_index(3)


def scribbles(queue: int, byte: int) -> Lie:
    """Over all that it reports by."""

    def lie(model: VfModel) -> None:
        if isinstance(model, IgbModel):
            base = IGB_TX if queue == TX else IGB_RX
            begin = model.get(base + HIGH) << 32 | model.get(base + LOW)
            size = model.get(base + LENGTH)
        else:
            ring = model.rings[queue]
            split = isinstance(ring, SplitModel)
            begin = ring.device if split else ring.descriptors
            size = 6 + 8 * ring.size if split else 16 * ring.size
        model.memory(begin, size)[:] = bytes([byte]) * size

    return named(lie, f"scribbles {byte:#04x}")


def reports_bytes(length: int) -> Lie:
    """That it received, where it wrote none."""

    def lie(model: VfModel) -> None:
        if isinstance(model, IgbModel):
            model.report(b"", DONE_AND_END, length)
            return
        chain = model.rings[RX].pop()
        assert chain is not None
        model.rings[RX].push(chain.id, length)

    return named(lie, f"reports {length} bytes")


def claims_one(model: VfModel) -> None:
    """And goes on to fill that, which is nobody's any more, next."""
    assert isinstance(model, IgbModel)
    model.claim(model.get(IGB_RX + HEAD), 60)


def claims_all(model: VfModel) -> None:
    """With the one that it was not given."""
    assert isinstance(model, IgbModel)
    begin = model.get(IGB_RX + TAIL)
    for index in range(begin, begin + model.receive_count):
        model.claim(index, 60)


# ---- VM1 sends

SENDING = [
    *((kind, lie, STOPPED, 2) for kind in MODELS for lie in (takes_none, reports_none)),
    ("igbvf", reports_early, "", 0),  # it is taken by its word
    ("igbvf", scribbles(TX, 0xFE), STOPPED, 2),
    *((kind, reports_twice, BAD_ID, 1) for kind in MODELS if kind != "igbvf"),
    *((kind, reports_a_foreign_one(TX, 77), BAD_ID, 2) for kind in MODELS if kind != "igbvf"),
    ("virtio-net split", jumps, BAD_INDEX, 2),
    ("virtio-net split", scribbles(TX, 0xFF), BAD_INDEX, 2),
    ("virtio-net split", scribbles(TX, 0), BAD_INDEX, 2),
    ("virtio-net packed", scribbles(TX, 0xFF), BAD_ID, 2),
    ("virtio-net packed", scribbles(TX, 0), STOPPED, 2),
]


def in_its_hands(model: VfModel) -> int:
    """Frames that it was given to send and has not reported."""
    if isinstance(model, IgbModel):
        return model.get(IGB_TX + TAIL) - model.get(IGB_TX + HEAD)
    return len(model.rings[TX].given())


@pytest.mark.parametrize(("kind", "lie", "says", "lost"), SENDING)
def test_while_vm1_sends(
    *, serve: Serve, kind: str, lie: Lie, says: str, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    vm1 = FakeSource(told_nothing())
    run = serve(kind, vm1)
    model = run.model
    vm1.send(0)
    run.wait_for_used([0])
    model.completes = False
    for number in (1, 2):
        vm1.send(number)
    wait_for(lambda: in_its_hands(model) == 2, "the VF to have both")
    lie(model)
    if says:
        wait_until_set_up_anew(run, says, caplog)
    else:
        while_others_move(run, lambda: vm1.used() == [0, 1, 2], "VM1's buffers")
    model.completes = True
    vm1.send(3)
    run.wait_for_used([0, 1, 2, 3])
    assert run.sent[-1] == 3
    assert run.channel.snapshot().pairs[0].vm1_to_vf.packets == 4 - lost
    assert drops(run, receives=False) == ({"vf_error": lost} if lost else {})
    assert model.faults == []


# ---- VM1 receives

DMA, COPIES = Copy.AUTO, Copy.ALWAYS
# Last: what VM1 has back of it.
RECEIVING: list[tuple[str, Copy, Lie, str, list[bytes]]] = [
    ("igbvf", DMA, reports_bytes(0), "", [b""]),
    ("igbvf", DMA, reports_bytes(60), "", [NOISE[:60]]),  # it is taken by its word
    ("igbvf", DMA, reports_bytes(DIRECT_ROOM + 1), OVERRUN, [b""]),
    ("igbvf", DMA, reports_bytes(0xFFFF), OVERRUN, [b""]),
    ("igbvf", DMA, scribbles(RX, 0xFF), OVERRUN, [b""] * 3),
    ("igbvf", DMA, claims_one, UNREPORTED, [NOISE[:60]]),
    ("igbvf", COPIES, claims_one, UNREPORTED, [bytes(60)]),
    ("igbvf", COPIES, claims_all, FOREIGN, [bytes(60)] * 3),
    ("igbvf", COPIES, reports_bytes(0), "", []),
    ("igbvf", COPIES, reports_bytes(60), "", [bytes(60)]),
    ("igbvf", COPIES, reports_bytes(BUFFER_BYTES + 1), "", []),
    ("igbvf", COPIES, reports_bytes(0xFFFF), "", []),
    *(
        (kind, copy, reports_bytes(length), BAD_LENGTH, [])
        for kind in MODELS
        if kind != "igbvf"
        for copy, longest in ((DMA, POSTED), (COPIES, BUFFER_BYTES))
        for length in (0, longest + 1, 0x10001)
    ),
    *(
        (kind, copy, reports_a_foreign_one(RX, number), BAD_ID, [])
        for kind in MODELS
        if kind != "igbvf"
        for copy, number in ((DMA, 0), (COPIES, 999))  # 0: it has been used
    ),
    ("virtio-net split", DMA, scribbles(RX, 0xFF), BAD_INDEX, []),
    ("virtio-net split", COPIES, scribbles(RX, 0), BAD_INDEX, []),
    ("virtio-net packed", DMA, scribbles(RX, 0xFF), BAD_ID, []),
    ("virtio-net packed", COPIES, scribbles(RX, 0xFF), BAD_ID, []),
]


@pytest.mark.parametrize(("kind", "copy", "lie", "says", "back"), RECEIVING)
def test_while_vm1_receives(
    *,
    serve: Serve,
    kind: str,
    copy: Copy,
    lie: Lie,
    says: str,
    back: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    vm1 = Receiver(told_nothing())
    vm1.post(*[POSTED] * 4)
    run = serve(kind, vm1, copy)
    wait_for(lambda: run.model.receive(frame(1)), "room at the VF")
    wait_for(lambda: vm1.received() == [frame(1)], "the first frame")
    lie(run.model)
    if says:
        wait_until_set_up_anew(run, says, caplog)
    else:
        while_others_move(run, lambda: len(vm1.received()) == 1 + len(back), "VM1's buffers")
    vm1.post(*[POSTED] * 2)
    while_others_move(run, lambda: run.model.receive(frame(2)), "room at the VF")
    while_others_move(run, lambda: vm1.received()[1:] == [*back, frame(2)], "the last frame")
    empty = back.count(b"")
    assert drops(run, receives=True) == ({"vf_error": empty} if empty else {})
    untold = not says and not any(back)
    assert run.channel.snapshot().pairs[0].at_vf.rx_missed == int(untold)
    assert run.model.faults == []


@pytest.mark.parametrize("copy", [DMA, COPIES])
def test_frames_that_are_not_reported(
    serve: Serve, copy: Copy, caplog: pytest.LogCaptureFixture
) -> None:
    """Its counter tells them from a quiet wire."""
    vm1 = Receiver(told_nothing())
    vm1.post(*[POSTED] * 8)
    run = serve("igbvf", vm1, copy)
    model = run.model
    assert isinstance(model, IgbModel)
    wait_for(lambda: model.receive(frame(1)), "room at the VF")
    wait_for(lambda: vm1.received() == [frame(1)], "the first frame")
    model.reports = False
    lost = 0

    def more_are_lost() -> bool:
        nonlocal lost
        lost += model.receive(frame(2))
        return UNREPORTED in caplog.text

    while_others_move(run, more_are_lost, "the VF's trouble")
    wait_until_set_up_anew(run, UNREPORTED, caplog)
    model.reports = True
    while_others_move(run, lambda: model.receive(frame(3)), "room at the VF")
    while_others_move(run, lambda: vm1.received()[1:] == [frame(3)], "the last frame")
    # The last ones came once it had been given up.
    assert 4 <= run.channel.snapshot().pairs[0].at_vf.rx_missed <= lost
    assert model.faults == []
