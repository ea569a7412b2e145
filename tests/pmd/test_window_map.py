"""`--window-map auto`: which way is taken, from what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guest.errors import VhostPciError
from pmd.config import WINDOW_MAPS
from pmd.window_map import WindowMap, choose
from pmd.window_probe import WindowSpeed

if TYPE_CHECKING:
    from collections.abc import Callable

CACHED = WindowSpeed(2.0, 3.0)
UNCACHED = WindowSpeed(120.0, 480.0)
COMBINED = WindowSpeed(120.0, 40.0)
REFUSED = VhostPciError("map", "BAR 2 write-combining", "the kernel is locked down")


def measured(
    by_vfio: WindowSpeed | None, by_wc: WindowSpeed | VhostPciError | None = None
) -> Callable[[WindowMap], WindowSpeed | None]:
    def measure(way: WindowMap) -> WindowSpeed | None:
        found = by_vfio if way is WindowMap.VFIO else by_wc
        if isinstance(found, VhostPciError):
            raise found
        return found

    return measure


def test_the_options_are_those_of_the_configuration() -> None:
    assert tuple(each.value for each in WindowMap) == WINDOW_MAPS


def test_uncached_gives_way_to_write_combining() -> None:
    way, why = choose(measured(UNCACHED, COMBINED), offered=True)
    assert way is WindowMap.WC
    assert why == f"{COMBINED}; faster than {UNCACHED}"


@pytest.mark.parametrize(
    ("by_vfio", "by_wc", "why"),
    [
        (CACHED, REFUSED, str(CACHED)),
        (None, REFUSED, "VM1's memory is not there to be measured"),
        (UNCACHED, REFUSED, f"{UNCACHED}; {REFUSED}"),
        (UNCACHED, UNCACHED, f"{UNCACHED}; no slower than {UNCACHED}"),
    ],
)
def test_vfio_is_kept(
    by_vfio: WindowSpeed | None, by_wc: WindowSpeed | VhostPciError, why: str
) -> None:
    assert choose(measured(by_vfio, by_wc), offered=True) == (WindowMap.VFIO, why)


def test_nothing_is_measured_where_there_is_one_way() -> None:
    def never(way: WindowMap) -> WindowSpeed | None:
        raise AssertionError(way)

    way, why = choose(never, offered=False)
    assert (way, why) == (WindowMap.VFIO, "the kernel offers no other way")
