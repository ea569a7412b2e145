"""Loops that sleep while their port has nothing: a frame that comes wakes them.

Time that goes by ends no sleep here (PMD_KERNEL_TRUST_WAKES), so a wake-up that is lost is one that
no frame gets past.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from driver.software_vf import parse_vf
from driver.virtio_net.features import Feature
from pmd.kernel import DirectionStats, Loop, Poll, Work
from pmd.steering import Steering
from tests.driver.virtio_net_model import OFFER
from tests.driver.virtio_net_model import VirtioNetModel as Model
from tests.kernel.direct_rig import ORDINARY, DirectRig, IgbRig, VfRig, frame, make
from tests.kernel.namespace import answerer, ip, namespace
from tests.kernel.port_user import until
from tests.kernel.rig import BIG, Rig
from tests.kernel.senders import SIZE, SplitSender
from tests.kernel.test_port_xdp import flows
from tests.kernel.test_sleeping import Bench, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ARMED, NEWS = 0, 1
ARM, DISARM = 7, 8  # in struct rk_port_ops
LAPS = 40


@pytest.fixture(autouse=True)
def _trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMD_KERNEL_TRUST_WAKES", "1")


@contextlib.contextmanager
def posted(rig: VfRig, *, direct: bool) -> Iterator[None]:
    """VM1 has posted SIZE buffers; nothing runs yet."""
    with rig.vm1.rig:
        rig.vm1.post(*[ORDINARY] * SIZE)
        if direct:
            assert rig.begin()
        else:
            rig.queue = rig.vm1.rig.queue(rig.stats)
            rig.work = Work(None, rig.queue, rig.port)
        yield
        rig.close()


@contextlib.contextmanager
def virtio(kick_fd: int, kind: int, *, direct: bool) -> Iterator[DirectRig]:
    """VM1 has posted SIZE buffers; nothing runs yet."""
    rig = make(packed=False, kind=kind)
    rig.vm1.rig.kick_fd = kick_fd
    with posted(rig, direct=direct):
        yield rig


@contextlib.contextmanager
def looping(rig: VfRig) -> Iterator[Loop]:
    with Loop(32, Poll(0)) as loop:
        loop.set([rig.work])
        with running(loop):
            yield loop
        loop.set([])


@pytest.mark.parametrize("direct", [False, True], ids=["copy", "direct"])
@pytest.mark.parametrize("kind", [0, Feature.RING_PACKED], ids=["split", "packed"])
def test_no_wake_up_of_a_virtio_device_is_lost(kind: int, direct: bool, kick_fd: int) -> None:
    chance = random.Random(5)
    found: list[bytes] = []
    sent: list[bytes] = []
    with virtio(kick_fd, kind, direct=direct) as rig, looping(rig) as loop:
        for _ in range(LAPS):
            for _ in range(SIZE // 2):
                burst = chance.randrange(1, 3)
                sent += [frame(len(sent) + i, 100) for i in range(burst)]
                for each in sent[-burst:]:
                    assert rig.model.receive(each)

                wait_found(rig, found, len(sent))
                rig.vm1.post(*[ORDINARY] * burst)
                os.eventfd_write(kick_fd, 1)
                if chance.random() < 0.2:
                    time.sleep(chance.random() / 2000)
                if direct:  # a device without buffers drops
                    until(lambda: len(rig.model.rings[0].given()) == SIZE, "buffers")
        assert loop.stats.sleeps > 0
    assert found == sent
    assert rig.model.interrupts > 0


def wait_found(rig: VfRig, found: list[bytes], count: int) -> None:
    def arrived() -> bool:
        found.extend(rig.vm1.received())
        return len(found) == count

    until(arrived, "a frame that wakes the loop")


def operation(rig: VfRig, number: int) -> Callable[[], int]:
    """One of the port's, as the loop calls it."""
    ops = ctypes.cast(rig.port.handle, ctypes.POINTER(ctypes.c_void_p))[0]
    address = ctypes.cast(ops, ctypes.POINTER(ctypes.c_void_p))[number]
    function = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)(address)
    return lambda: int(function(rig.port.handle))


@pytest.mark.parametrize("direct", [False, True], ids=["copy", "direct"])
@pytest.mark.parametrize("kind", [0, Feature.RING_PACKED], ids=["split", "packed"])
def test_a_virtio_device_interrupts_only_who_sleeps(kind: int, direct: bool, kick_fd: int) -> None:
    with virtio(kick_fd, kind, direct=direct) as rig:
        arm, disarm = operation(rig, ARM), operation(rig, DISARM)
        assert rig.model.receive(frame(1, 60))
        assert arm() == NEWS  # no interrupt comes for it any more
        disarm()
        rig.turn()
        assert rig.model.interrupts == 0
        assert arm() == ARMED
        assert rig.model.receive(frame(2, 60))
        assert rig.model.interrupts == 1
        disarm()
        assert rig.model.receive(frame(3, 60))
        assert rig.model.interrupts == 1
        rig.turn()
        assert rig.vm1.received() == [frame(number, 60) for number in (1, 2, 3)]


@pytest.mark.parametrize("frames", [0, 3])
def test_an_idle_loop_is_left_alone(
    frames: int, kick_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is one whose port has frames, for which VM1 has no buffers."""
    monkeypatch.delenv("PMD_KERNEL_TRUST_WAKES")  # a sleep ends after 40 ms
    with virtio(kick_fd, 0, direct=False) as rig:
        fills_and_sleeps(rig, frames, kick_fd)


@pytest.mark.parametrize(("irq_max", "vectors"), [(0, 4), (4, 0)])
def test_a_device_without_interrupts_is_polled(
    irq_max: int, vectors: int, kick_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Model.__init__

    def without(self: Model, offer: int = OFFER) -> None:
        made(self, offer)
        self.irq_max, self.vectors = irq_max, vectors

    monkeypatch.setattr(Model, "__init__", without)
    with virtio(kick_fd, 0, direct=True) as rig, looping(rig):
        for number in range(SIZE):
            assert rig.model.receive(frame(number, 60))
            until(lambda: len(rig.vm1.received()) == 1, "a frame that the loop looks for")
    assert rig.model.interrupts == 0


def test_queue_pairs_that_share_a_device_are_woken(kick_fd: int) -> None:
    rig = make(packed=False, kind=0)
    rig.vm1.rig.kick_fd = kick_fd
    with rig.vm1.rig, Rig(SIZE) as other:
        rig.vm1.post(*[ORDINARY] * SIZE)
        receive = rig.vm1.rig.queue(rig.stats)
        with contextlib.closing(Steering(rig.port, [receive, None])) as steering:
            first, second = steering.ports
            works = [Work(None, receive, first), Work(other.queue(DirectionStats()), None, second)]
            with Loop(32, Poll(0)) as loop:
                loop.set(works)
                with running(loop):
                    for number in range(SIZE):
                        assert rig.model.receive(frame(number, 60))
                        until(lambda: len(rig.vm1.received()) == 1, "a frame that wakes it")
                loop.set([])
            assert rig.model.interrupts > 0
        rig.close()


# ---- xdp


@pytest.fixture
def _network() -> Iterator[None]:
    with namespace():
        ip("link add v0 numrxqueues 4 numtxqueues 4 type veth peer numtxqueues 4 name v1")
        ip("link set v0 up")
        ip("link set v1 up")
        yield


@pytest.mark.usefixtures("_network")
def test_no_frame_of_an_interface_is_slept_over(kick_fd: int) -> None:
    """Whichever of its four queues it comes by; and then nothing moves."""
    vf = parse_vf("xdp:v0")
    (spec,) = vf.open(1)
    with (
        contextlib.closing(vf),
        Bench.made(Poll(0), kick_fd, spec, transmits=False) as bench,
        answerer("v1") as wire,
    ):
        for head in range(SIZE):
            bench.rig.desc(head, BIG + 0x1000 * head, 2048, 2)
        with running(bench.loop):
            for number, each in enumerate(flows(64)):
                if number % SIZE == 0:
                    bench.rig.make_available(*range(SIZE))
                    os.eventfd_write(kick_fd, 1)
                wire.send(each)
                wait_used(bench, number + 1)


@pytest.mark.usefixtures("_network")
def test_an_interface_without_frames_leaves_the_loop_alone(
    kick_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once what was sent is gone, too."""
    monkeypatch.delenv("PMD_KERNEL_TRUST_WAKES")
    vf = parse_vf("xdp:v0")
    (spec,) = vf.open(1)
    with (
        contextlib.closing(vf),
        Bench.made(Poll(0), kick_fd, spec, transmits=True) as bench,
        answerer("v1") as wire,
    ):
        until(lambda: vf.look() == "", "the link")
        SplitSender(bench.rig, kick_fd).send(SIZE)
        with running(bench.loop):
            for _ in range(SIZE):
                wire.recv(2000)
            wait_used(bench, SIZE)
            assert_asleep(bench.loop)


def wait_used(bench: Bench, count: int) -> None:
    until(lambda: bench.rig.used_index() == count, "a frame that wakes the loop")


def fills_and_sleeps(rig: DirectRig | IgbRig, frames: int, kick_fd: int) -> None:
    """The VF has so many frames more than VM1 buffers; the loop sleeps over these."""
    for number in range(SIZE + frames):
        assert rig.model.receive(frame(number, 60))
    with looping(rig) as loop:
        until(lambda: rig.stats.packets == SIZE, "buffers to be full")
        assert_asleep(loop)
        rig.vm1.post(*[ORDINARY] * frames)
        os.eventfd_write(kick_fd, 1)
        until(lambda: rig.stats.packets == SIZE + frames, "the rest")


def assert_asleep(loop: Loop) -> None:
    """Looked at every 50 us it would turn thousands of times."""
    until(lambda: loop.stats.sleeps > 2, "it to sleep")
    before = loop.stats.turns
    time.sleep(0.3)
    assert loop.stats.turns - before < 50
