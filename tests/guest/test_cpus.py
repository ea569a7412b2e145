"""guest/cpus.py on this machine's CPUs. Refusals first."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.cpus import default_lcores, kept_off, parse_lcores, pin_current_thread, usable_cpus
from guest.errors import UsageError, VhostPciError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALLOWED = sorted(os.sched_getaffinity(0))
FIRST = ALLOWED[0]


@pytest.fixture
def only_first() -> Iterator[None]:
    """This thread may use one CPU."""
    os.sched_setaffinity(0, {FIRST})
    yield
    os.sched_setaffinity(0, ALLOWED)


@pytest.mark.parametrize("text", ["", ",", "1,", "a", "-1", "1-", "1--2", "1.0", "0x1", "1 2", "²"])
def test_malformed(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no CPU or range; give a list like 1,3-4"):
        parse_lcores(text)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("3-1", r"cannot use lcores '3-1': the range 3-1 runs backwards; write 1-3"),
        (f"{FIRST},{FIRST}", rf"CPU {FIRST} is in it twice"),
        (f"{FIRST}-{FIRST},{FIRST}", rf"CPU {FIRST} is in it twice"),
        ("1023", r"CPU 1023 is not online; online are 0"),
        ("0-999999", r"CPU 999999 is not there"),
    ],
)
def test_refused(text: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as caught:
        parse_lcores(text)
    assert caught.value.exit_status == 2


@pytest.mark.usefixtures("only_first")
def test_not_in_the_affinity_mask() -> None:
    assert parse_lcores(str(FIRST)) == (FIRST,)
    for cpu in ALLOWED[1:]:
        with pytest.raises(UsageError, match=f"is not this process's; it may use {FIRST} "):
            parse_lcores(str(cpu))
    with pytest.raises(VhostPciError, match=r"choose 2 lcores: this process may use 1 CPUs; ask"):
        default_lcores(2)
    assert default_lcores(1) == (FIRST,)


def test_lists() -> None:
    assert parse_lcores(",".join(map(str, ALLOWED))) == tuple(ALLOWED)
    assert parse_lcores(",".join(map(str, reversed(ALLOWED)))) == tuple(reversed(ALLOWED))
    assert parse_lcores(f" {FIRST}-{FIRST} ") == (FIRST,)
    if list(range(ALLOWED[0], ALLOWED[-1] + 1)) == ALLOWED:
        assert parse_lcores(f"{ALLOWED[0]}-{ALLOWED[-1]}") == tuple(ALLOWED)


@given(st.text(alphabet="0123456789,- ", max_size=12))
def test_whatever_is_typed(text: str) -> None:
    try:
        cpus = parse_lcores(text)
    except UsageError as error:
        assert str(error).startswith("cannot use lcores ")  # noqa: PT017 - both outcomes are right
    else:
        assert len(set(cpus)) == len(cpus) > 0
        assert set(cpus) <= set(ALLOWED)


def test_default_lcores_are_the_highest() -> None:
    assert default_lcores(0) == ()
    assert default_lcores(1) == (ALLOWED[-1],)
    assert default_lcores(len(ALLOWED)) == tuple(ALLOWED)
    with pytest.raises(VhostPciError, match="ask for fewer"):
        default_lcores(len(ALLOWED) + 1)


def test_pinning_is_the_threads_own() -> None:
    seen = []

    def pinned() -> None:
        pin_current_thread(ALLOWED[-1])
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=pinned)
    thread.start()
    thread.join()
    assert seen == [{ALLOWED[-1]}]
    assert sorted(os.sched_getaffinity(0)) == ALLOWED


@pytest.mark.parametrize("cpu", [1023, -1, 1 << 40])
def test_pinning_refused(cpu: int) -> None:
    with pytest.raises(VhostPciError, match=f"cannot pin a thread to CPU {cpu}: "):
        pin_current_thread(cpu)
    assert sorted(os.sched_getaffinity(0)) == ALLOWED


def test_kept_off_meanwhile_and_what_it_starts_too() -> None:
    seen = []
    with kept_off(ALLOWED[-1:]):
        thread = threading.Thread(target=lambda: seen.append(sorted(os.sched_getaffinity(0))))
        thread.start()
        thread.join()
        assert seen == [sorted(os.sched_getaffinity(0))] == [ALLOWED[:-1] or ALLOWED]
    assert sorted(os.sched_getaffinity(0)) == ALLOWED
    with kept_off(ALLOWED):  # there is no other
        assert sorted(os.sched_getaffinity(0)) == ALLOWED


def cpus(root: Path, online: str, isolated: str) -> Path:
    """sysfs at root, with these lists."""
    folder = root / "devices/system/cpu"
    folder.mkdir(parents=True)
    (folder / "online").write_text(f"{online}\n")
    (folder / "isolated").write_text(f"{isolated}\n")
    return root


@pytest.mark.usefixtures("only_first")
def test_isolated_cpus_are_out_of_the_mask_and_usable(tmp_path: Path) -> None:
    last = FIRST + 3
    root = cpus(tmp_path, f"{FIRST}-{last}", f"{FIRST + 1}-{last}")
    assert usable_cpus(root) == set(range(FIRST, last + 1))
    assert parse_lcores(f"{FIRST + 1},{last}", root) == (FIRST + 1, last)
    assert default_lcores(2, root) == (last - 1, last)


@pytest.mark.usefixtures("only_first")
def test_isolated_cpus_come_before_others(tmp_path: Path) -> None:
    root = cpus(tmp_path, f"{FIRST},{FIRST + 700}", f"{FIRST + 700}")
    assert default_lcores(1, root) == (FIRST + 700,)
    assert default_lcores(2, root) == (FIRST, FIRST + 700)


@pytest.mark.usefixtures("only_first")
def test_a_mask_that_was_narrowed_is_respected(tmp_path: Path) -> None:
    root = cpus(tmp_path, f"{FIRST}-{FIRST + 2}", f"{FIRST + 2}")
    assert usable_cpus(root) == {FIRST}
    assert default_lcores(1, root) == (FIRST,)
    with pytest.raises(UsageError, match=rf"CPU {FIRST + 2} is not this process's"):
        parse_lcores(str(FIRST + 2), root)
