"""How many lines pass, and what is said of the others."""

from __future__ import annotations

import logging

from guest.log_limit import BURST, INTERVAL_S, LogLimit


def _record(name: str, number: int) -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, "", 0, "line %d", (number,), None)


def test_a_burst_passes_then_one_line_an_interval() -> None:
    now = 100.0
    limit = LogLimit(lambda: now)
    passed = [limit.filter(_record("noisy", number)) for number in range(BURST + 7)]
    assert passed == [True] * BURST + [False] * 7
    assert limit.filter(_record("other", 0)), "one logger's noise is not another's"
    now += INTERVAL_S
    record = _record("noisy", 99)
    assert limit.filter(record)
    assert record.getMessage() == "line 99 (7 lines before it were left out)"
    assert not limit.filter(_record("noisy", 100))


def test_silence_gives_the_burst_back_and_no_more() -> None:
    now = 0.0
    limit = LogLimit(lambda: now)
    for _ in range(3):
        assert [limit.filter(_record("x", n)) for n in range(BURST + 1)] == [True] * BURST + [False]
        now += 1000 * BURST * INTERVAL_S


def test_what_passes_as_usual_is_not_touched() -> None:
    record = _record("x", 1)
    assert LogLimit().filter(record)
    assert record.getMessage() == "line 1"
