"""Translation by slots: whatever the slots come to, it is what the table says."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from driver.memory_map import HostRegion
from pmd.kernel import Map
from tests.kernel.rig import DATA, RINGS, TABLE, WRITABLE, Rig, transmit

# A few bytes and gigabytes, side by side and far apart, at both ends of what there is.
_BEGINS = st.one_of(
    st.integers(0, 1 << 16),
    st.integers(0, 1 << 32).map(lambda page: page & ~0xFFF),
    st.integers((1 << 64) - (1 << 33), (1 << 64) - 1),
)
_LENGTHS = st.one_of(st.integers(1, 1 << 14), st.integers(1, 1 << 20).map(lambda n: n << 12))


@st.composite
def _tables(draw: st.DrawFn) -> list[HostRegion]:
    rows: list[HostRegion] = []
    begins = sorted(draw(st.lists(_BEGINS, min_size=1, max_size=40, unique=True)))
    for begin, after in zip(begins, [*begins[1:], 1 << 64], strict=True):
        length = min(draw(_LENGTHS), after - begin)
        rows.append(HostRegion(begin, length, (len(rows) + 1) << 48, draw(st.integers(1, 3))))
    return rows


@settings(deadline=None)
@given(rows=_tables(), aside=st.integers(0, 1 << 14), length=st.integers(1, 1 << 14))
def test_translation_is_what_the_table_says(
    rows: list[HostRegion], aside: int, length: int
) -> None:
    with Map(rows) as map_:
        for bus, size, _, _ in rows:
            near = {bus, bus - 1, bus + 1, bus + aside, bus + size - 1, bus + size, bus + size // 2}
            near = {at for at in near if 0 <= at < 1 << 64}
            for at, permission in itertools.product(near, (1, 2, 3)):
                holds = [row for row in rows if row[0] <= at < row[0] + row[1]]
                expected = None
                if holds and holds[0][3] & permission == permission:
                    begin, room, host = holds[0][:3]
                    expected = (host + at - begin, min(length, begin + room - at))
                assert map_.translate(at, length, permission) == expected


def test_a_buffer_round_the_end_of_all_addresses() -> None:
    """It begins in a slot whose first byte another region has: its end is before that one's."""
    border = (1 << 64) - (1 << 54)  # so wide are the slots of a table that has both ends

    class Wide(Rig):
        regions = [  # noqa: RUF012 - a constant, as its base's
            *TABLE[:-1],
            (border - 0x1000, 0x2000, 0x60000, WRITABLE, 3),
            TABLE[-1],
        ]

    with Wide(8) as rig:
        rig.chain(0, [(DATA, 100)])
        rig.chain(1, [(border - 50, 100)])
        rig.chain(2, [((1 << 64) - 50, 100)])
        rig.chain(3, [((1 << 64) - 100, 100)])
        outcome = transmit(rig)
    assert (outcome.packets, outcome.drops) == (3, {"bad_address": 1})


def test_a_buffer_that_begins_before_all_regions() -> None:
    """It ends in the first one. Its begin is looked up as another's: the last of 1024 pages'."""
    last = RINGS + (1023 << 12)

    class Pages(Rig):
        regions = [*TABLE[:-2], (last, 0x1000, 0x60000, WRITABLE, 3)]  # noqa: RUF012 - as above

    with Pages(8) as rig:
        rig.chain(0, [(last, 100)])
        rig.chain(1, [(RINGS - 50, 100)])
        rig.chain(2, [(last + (1 << 22), 100)])
        rig.chain(3, [(DATA - (1 << 22) & (1 << 64) - 1, 100)])
        rig.chain(4, [(DATA, 100)])
        outcome = transmit(rig)
    assert (outcome.packets, outcome.drops) == (2, {"bad_address": 3})


def test_no_table() -> None:
    with Map([]) as map_:
        assert map_.translate(0, 1, 1) is None
        assert map_.translate((1 << 64) - 1, 1, 1) is None
