"""The device's IOTLB by itself, beside a page table that is as slow as it is simple."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.device.backend_rules import RefusalError
from tools.device.iotlb import READ, WRITE, Iotlb
from tools.device.memory_table import MemoryTable
from tools.device.vm1_state import MemoryFile, MemoryRegion

PAGE = 4096
FILE = MemoryFile(-1, 1, 1, 64 * PAGE, True)
OTHER = MemoryFile(-1, 1, 2, 64 * PAGE, True)
USER = 0x7F00_0000_0000
# Neighbours in user addresses, in different files.
TABLE = MemoryTable(
    (
        MemoryRegion(0, 16 * PAGE, USER, FILE, 8 * PAGE),
        MemoryRegion(1 << 32, 16 * PAGE, USER + 16 * PAGE, OTHER, 0),
    )
)
pages = st.integers(0, 31)
counts = st.integers(1, 8)
operations = st.one_of(
    st.tuples(st.just("update"), pages, counts, pages, st.sampled_from((1, 2, 3))),
    st.tuples(st.just("invalidate"), pages, counts, st.just(0), st.just(0)),
)


def looked_up(iotlb: Iotlb) -> dict[int, tuple[int, int, int]]:
    """Guest-physical page, file offset and permission by page."""
    found = {}
    for each in iotlb.translations(TABLE).all:
        for inside in range(0, each.size, PAGE):
            page = each.bus + inside
            assert page not in found
            found[page] = (each.physical + inside, each.file_offset + inside, each.permission)
    return found


def expected(model: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int, int]]:
    found = {}
    for page, (user, permission) in model.items():
        for region in TABLE.regions:
            inside = user - region.user
            if 0 <= inside < region.size:
                found[page] = (region.bus + inside, region.file_offset + inside, permission)
    return found


@given(st.lists(operations, max_size=30))
def test_it_is_a_page_table(steps: list[tuple[str, int, int, int, int]]) -> None:
    iotlb, model = Iotlb(), dict[int, tuple[int, int]]()
    for what, page, count, target, permission in steps:
        if what == "invalidate":
            iotlb.invalidate(page * PAGE, count * PAGE)
            for each in range(page, page + count):
                model.pop(each * PAGE, None)
            continue
        taken = False
        for index in range(count):
            at, user = (page + index) * PAGE, USER + (target + index) * PAGE
            known = model.get(at)
            taken |= known is not None and known[0] != user
            more = known[1] if known and known[0] == user else 0
            model[at] = (user, permission | more)
        assert taken == iotlb.update(page * PAGE, count * PAGE, USER + target * PAGE, permission)
    assert looked_up(iotlb) == expected(model)
    for page in range(40):
        for permission in (READ, WRITE):
            known = model.get(page * PAGE, (0, 0))
            assert iotlb.covers(page * PAGE, permission) == bool(known[1] & permission)


def test_neighbours_that_continue_each_other_are_one() -> None:
    iotlb = Iotlb()
    for page in (0, 2, 1, 3):
        iotlb.update(page * PAGE, PAGE, USER + page * PAGE, READ)
    assert len(iotlb) == 1
    found = iotlb.translations(TABLE)
    assert found.bus_address(0x800, 2 * PAGE, write=False) == 0x800
    assert found.bus_address(0x800, 4 * PAGE, write=False) is None
    assert found.locate(0x800, 8) == (FILE, 8 * PAGE + 0x800)


def test_a_run_may_cross_permissions_and_not_files() -> None:
    iotlb = Iotlb()
    iotlb.update(0, PAGE, USER, READ)
    iotlb.update(PAGE, PAGE, USER + PAGE, READ | WRITE)
    found = iotlb.translations(TABLE)
    assert found.bus_address(0, 2 * PAGE, write=False) == 0
    assert found.bus_address(0, 2 * PAGE, write=True) is None
    assert found.bus_address(PAGE, PAGE, write=True) == PAGE
    iotlb.update(0, 4 * PAGE, USER + 14 * PAGE, READ | WRITE)
    assert len(iotlb) == 1
    found = iotlb.translations(TABLE)
    assert [each.file for each in found.all] == [FILE, OTHER]
    assert found.bus_address(0, 2 * PAGE, write=True) == 0
    assert found.bus_address(PAGE, 2 * PAGE, write=True) is None


def test_a_flood_forgets_the_oldest_but_not_what_is_to_be_kept() -> None:
    iotlb = Iotlb(capacity=16)
    kept = (0x1000_0000, 2 * PAGE)
    iotlb.update(*kept, USER, READ | WRITE)
    for number in range(1000):
        iotlb.update(2 * number * PAGE, PAGE, USER, READ, [kept])
    assert len(iotlb) == 16
    assert iotlb.forgotten == 985
    assert iotlb.covers(kept[0], WRITE)
    assert iotlb.covers(2 * 999 * PAGE, READ)
    assert not iotlb.covers(0, READ)


def test_holes_torn_into_one_entry_are_bounded_too() -> None:
    iotlb = Iotlb(capacity=16)
    iotlb.update(0, 1 << 40, 0, READ)
    for number in range(100):
        iotlb.invalidate((2 * number + 1) * PAGE, PAGE)
    assert len(iotlb) == 16


@pytest.mark.parametrize(
    ("iova", "size", "user", "permission"),
    [
        (0, 0, USER, 3),
        ((1 << 64) - PAGE, 2 * PAGE, USER, 3),
        (0, 2 * PAGE, (1 << 64) - PAGE, 3),
        (0, PAGE, USER, 0),
        (0, PAGE, USER, 4),
    ],
)
def test_what_is_no_translation(iova: int, size: int, user: int, permission: int) -> None:
    iotlb = Iotlb()
    iotlb.update(0, PAGE, USER, READ)
    with pytest.raises(RefusalError):
        iotlb.update(iova, size, user, permission)
    assert looked_up(iotlb) == {0: (0, 8 * PAGE, READ)}


def test_all_is_invalidated_by_every_way_to_say_all() -> None:
    for size in (0, (1 << 64) - 1):
        iotlb = Iotlb()
        iotlb.update(0, PAGE, USER, READ)
        iotlb.update((1 << 48) - PAGE, PAGE, USER, READ)
        iotlb.invalidate(0, size)
        assert len(iotlb) == 0
