"""The packed ring's oracle against a driver written by hand."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.packed_driver import WRAP, WRITE, Returned
from tests.kernel.packed_rig import AT, DISABLE, ENABLE, HEADER, PackedRig, received
from tests.kernel.rig import BIG

_SIZES = st.sampled_from([1, 2, 3, 5, 8, 30])


@settings(max_examples=200, deadline=None)
@given(
    size=_SIZES,
    start=st.integers(0, 1 << 16),
    in_order=st.booleans(),
    burst=st.integers(1, 8),
    seed=st.integers(0, 1 << 32),
)
def test_what_is_transmitted(size: int, start: int, in_order: bool, burst: int, seed: int) -> None:
    choose = random.Random(seed)
    sent: list[bytes] = []
    got: list[bytes] = []
    back: list[Returned] = []
    begin = (start & WRAP) | (start % WRAP) % size
    with PackedRig(size, begin, in_order=in_order) as rig:
        driver, ring = rig.driver, rig.live_oracle()
        while len(sent) < 5 * size or driver.posted:
            if len(sent) < 5 * size and driver.free and choose.random() < 0.7:
                payload = choose.randbytes(choose.randint(14, 80))
                rig.post_frame(len(sent), choose.randint(1, min(driver.free, 4)), payload)
                sent.append(payload)
                if choose.random() < 0.6:
                    driver.show()
            else:
                driver.show()
                got += ring.transmit(burst, choose.choice([None, 1, 3]))
                back += driver.reap()
        assert got == sent
        assert [each.id for each in back] == list(range(len(sent)))
        assert {each.length for each in back} <= ({0, None} if in_order else {0})
        assert list(rig.commit) == [driver.position] * 2
        assert (ring.packets, ring.completed, dict(ring.drops)) == (len(sent), len(sent), {})


@settings(max_examples=200, deadline=None)
@given(size=_SIZES, mergeable=st.booleans(), in_order=st.booleans(), seed=st.integers(0, 1 << 32))
def test_what_is_received(size: int, mergeable: bool, in_order: bool, seed: int) -> None:
    choose = random.Random(seed)
    room = 64 if mergeable else 300
    longest = min(300, size * room) - HEADER
    frames = [choose.randbytes(choose.randint(14, longest)) for _ in range(4 * size)]
    left, number = list(frames), 0
    got: list[bytes] = []
    where: dict[int, int] = {}
    with PackedRig(size, mergeable=mergeable, in_order=in_order) as rig:
        driver, ring = rig.driver, rig.live_oracle()
        while left:
            while driver.free and choose.random() < 0.9:
                where[number] = BIG + 512 * (number % size)
                driver.post(number, [(where[number], room)], WRITE)
                number += 1
            driver.show()
            left = left[ring.receive(left, choose.randint(1, 8)) :]
            got += received(rig, where, driver.reap())
        assert got == frames
        assert ring.packets == len(frames)


def test_a_driver_is_called_as_it_asks() -> None:
    """2.8.10: for each turn, or none, or the turn that uses the descriptor it names."""
    choose = random.Random(2810)
    for event_idx in (False, True):
        with PackedRig(7, event_idx=event_idx) as rig:
            driver, ring = rig.driver, rig.live_oracle()
            for number in range(300):
                flags = choose.choice([ENABLE, DISABLE, AT, 3])
                event = choose.choice([driver.position, driver.used_position, 3, 3 | WRAP, 7, 99])
                rig.set_event(flags, event)
                count = choose.randint(1, 4)
                begin = driver.position
                for each in range(count):
                    rig.post_frame(10 * number + each, 1, bytes(20))
                driver.show()
                calls = ring.calls
                ring.transmit(32)
                driver.reap()
                crossed = _steps(begin, event, 7) < count or event & ~WRAP >= 7
                wanted = flags != DISABLE and (flags != AT or not event_idx or crossed)
                assert ring.calls - calls == wanted, (begin, event, flags, count)


def _steps(begin: int, to: int, size: int) -> int:
    """From one position to another, by walking."""
    steps = 0
    while begin != to and steps < 2 * size:
        index = (begin & ~WRAP) + 1
        begin = (begin & WRAP) | index if index < size else (begin & WRAP) ^ WRAP
        steps += 1
    return steps
