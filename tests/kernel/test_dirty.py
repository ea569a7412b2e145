"""What is written to VM1's buffers is marked while VM1 migrates (docs/device.md 5.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.offload import PLAIN
from driver.virtio_net.features import Feature
from pmd.kernel import DirectionStats
from tests.kernel.direct_rig import LEAST, ORDINARY, frame, make
from tests.kernel.hostile import BURSTS, FRAMES, Program, rings
from tests.kernel.hostile_packed import PackedProgram, packed_rings
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import BIG, DATA, DATA_SEAM, PAGE_SHIFT, WRITE, Rig, receive
from tests.kernel.test_patch import joined, send, stock

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTINGS = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_PAGE = 1 << PAGE_SHIFT


def _marked(rig: Rig) -> list[int]:
    assert rig.marks is not None
    return [int(page) << PAGE_SHIFT for page in np.flatnonzero(rig.marks)]


@_SETTINGS
@given(
    program=rings(write=True), frames=FRAMES, burst=BURSTS, plain=st.booleans(), far=st.booleans()
)
def test_every_written_page_of_a_split_ring(
    program: Program, frames: Sequence[bytes], burst: int, plain: bool, far: bool
) -> None:
    with program.rig(far=far) as rig:
        rig.plain = plain
        rig.mark()
        receive(rig, frames, burst, program.publish)


@_SETTINGS
@given(
    program=packed_rings(write=True),
    frames=FRAMES,
    burst=BURSTS,
    plain=st.booleans(),
    far=st.booleans(),
)
def test_every_written_page_of_a_packed_ring(
    program: PackedProgram, frames: Sequence[bytes], burst: int, plain: bool, far: bool
) -> None:
    with program.rig(far=far) as rig:
        rig.plain = plain
        rig.mark()
        receive(rig, frames, burst)


@pytest.mark.parametrize("plain", [False, True], ids=["any chain", "plain chains"])
@pytest.mark.parametrize("make_rig", [Rig, PackedRig])
def test_what_is_not_written_is_not_marked(make_rig: type[Rig], plain: bool) -> None:
    with make_rig(8) as rig:
        rig.plain = plain
        rig.mark()
        rig.chain(0, [(BIG + 100, 3 * _PAGE)], WRITE)  # one page of four
        rig.chain(1, [(BIG + 6 * _PAGE - 12 - 50, 112)], WRITE)  # across a border
        rig.chain(2, [(BIG + 8 * _PAGE, 2000)], WRITE)  # nothing comes for it
        assert receive(rig, [bytes(100)] * 2).packets == 2
        assert _marked(rig) == [BIG, BIG + 5 * _PAGE, BIG + 6 * _PAGE]


def test_a_buffer_that_goes_on_in_another_window() -> None:
    with Rig(8) as rig:
        rig.mark()
        rig.chain(0, [(DATA_SEAM - 100, 300)], WRITE)
        assert receive(rig, [bytes(200)]).packets == 1
        assert _marked(rig) == [DATA_SEAM - _PAGE, DATA_SEAM]


def test_frames_that_are_dropped_mark_nothing() -> None:
    with Rig(8) as rig:
        rig.mark()
        rig.chain(0, [(DATA, 20)], WRITE)
        assert receive(rig, [bytes(100)]).drops == {"small_buffer": 1}
        assert _marked(rig) == []


def test_a_ring_that_transmits_marks_nothing() -> None:
    with Rig(8) as rig:
        rig.mark()
        sender = rig.queue(DirectionStats())
        with Rig(8) as other:
            other.mark()
            stock(other, 3)
            receiver = other.queue(DirectionStats())
            content = other.content()
            send(rig, [(bytes(60), PLAIN), (bytes(range(250)), PLAIN)])
            with joined((sender, None), (None, receiver)) as works:
                while works[0].turn(32):
                    pass
            assert receiver.stats.packets == 2
            assert other.unmarked(content) == []
            assert _marked(other) == [BIG]
            other.close()
        assert _marked(rig) == []


@pytest.mark.parametrize("packed", [False, True], ids=["VM1 split", "VM1 packed"])
@pytest.mark.parametrize("apart", [False, True], ids=["one descriptor", "two"])
def test_what_the_vf_wrote(packed: bool, apart: bool) -> None:
    """By its own DMA: marked once VM1 is given it, all of the buffer."""
    direct = make(packed=packed, kind=Feature.RING_PACKED)
    rig = direct.vm1.rig
    with rig:
        rig.mark()
        direct.vm1.post(*[ORDINARY] * 5, apart=apart)
        direct.vm1.post(LEAST, apart=apart)
        assert direct.begin()
        content = rig.content()
        frames = [frame(1, 4000), frame(2, 100)]
        for each in frames:
            assert direct.model.receive(each)
        direct.turn()
        assert direct.vm1.received() == frames
        assert rig.unmarked(content) == []
        assert _marked(rig) == [BIG + number * _PAGE for number in range(4)]
        direct.close()
