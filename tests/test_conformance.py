"""docs/conformance.md is what its table says, and the table names tests that there are."""

from __future__ import annotations

import pytest

from tests.conformance import PAGE, Row, TestName, load, page

TABLES = load()
ROWS = [row for table in TABLES for row in table.rows]
# A row gets here only by hand: nothing becomes untested unnoticed.
NOT_YET: set[str] = set()
# Likewise of the rules of the specifications: sections that say what a device must do.
RULES = (
    "2.1.2 a; 2.1.2 b; 2.2.2 a; 2.2.2 b; 2.4.1; 2.6.1; 2.7.4.1; 2.7.5.1; 2.7.5.3.2; 2.7.6; "
    "2.7.7.2 a; 2.7.7.2 b; 2.7.8.2; 2.7.9, 6.2; 2.7.10.2; 2.8.1, 2.8.2; 2.8.6, 2.8.7; 2.8.10; "
    "2.8.12; 2.8.15; 2.8.18; 4.1.4.3.1; 4.1.5.3.1; 5.1.6.2.2; 5.1.6.3.2, 5.1.6.4.1 a; "
    "5.1.6.4.1 b; 5.1.6.5.5; 5.1.6.5.6; 5.1.4.1; 6.2; vhost-user, ring states; disabled "
    "rings; SET_FEATURES; on the fly; suspended; IOTLB; REM_MEM_REG; GET_CONFIG, SET_CONFIG; "
    "inflight; LOG_ALL; SET_LOG_BASE; in-band notifications; vfio-user, DMA_MAP; replies; "
    "disconnect; trust"
)


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text() == page(TABLES), "run python -m tests.conformance"


def test_named_tests_exist() -> None:
    assert [str(name) for row in ROWS for name in row.tests if not name.exists()] == []


def test_every_row_is_shown_or_says_why_not() -> None:
    assert [row.id for row in ROWS if not (row.tests or row.elsewhere or row.not_yet)] == []
    assert {row.id for row in ROWS if row.not_yet} == NOT_YET


def test_rows_are_whole() -> None:
    ids = [row.id for row in ROWS]
    assert len(set(ids)) == len(ids)
    assert [row.id for row in ROWS if not row.says or "|" in row.says] == []
    catalogue = {f"S{n:02}" for n in range(1, 40)} | {f"P{n:02}" for n in range(1, 19)}
    catalogue |= {f"N{n:02}" for n in range(1, 13)}
    assert {row.id for row in ROWS if row.verdict} == catalogue
    assert [row.id for row in ROWS if not row.verdict] == RULES.split("; ")


@pytest.mark.parametrize(
    ("name", "exists"),
    [
        ("kernel/transmit::test_broken_chain_is_dropped_and_the_next_goes_through[S01]", True),
        ("kernel/transmit::test_broken_chain_is_dropped_and_the_next_goes_through[S0]", False),
        ("kernel/transmit::test_broken_chain_is_dropped_and_the_next_goes_through[S99]", False),
        # Another test's case; a word in another place of the file.
        (
            "kernel/transmit::test_s29_what_vm1_writes_into_the_used_ring_changes_nothing[S01]",
            False,
        ),
        ("conformance::test_names_are_looked_up[kernel/transmit]", True),
        ("conformance::test_names_are_looked_up[run python]", False),
        ("kernel/transmit::test_broken", False),
        ("kernel/transmitted::test_broken", False),
        ("conformance::test_named_tests_exist", True),
    ],
)
def test_names_are_looked_up(name: str, exists: bool) -> None:
    assert TestName.parse(name).exists() is exists


def test_what_is_not_yet_is_said() -> None:
    row = Row("1", "x", tests=(TestName.parse("a/b::test_c[d]"),), not_yet="half of it")
    assert row.shown() == "`a/b::c[d]`; **not yet**: half of it"
    with pytest.raises(ValueError, match="not written"):
        TestName.parse("a/b")
