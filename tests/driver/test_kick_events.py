"""What a sleeping driver waits for: by the function's own eventfds, by MSI, or by both."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from driver.state_area import Register
from driver.vhost_pci import VhostPci
from guest.errors import VhostPciError
from tests.driver.fake_function import FakeFunction

if TYPE_CHECKING:
    from collections.abc import Iterator

ARM = 1 << 16


@pytest.fixture
def function() -> Iterator[FakeFunction]:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only counted
    with FakeFunction() as fake:
        fake.sleeps = True
        yield fake
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def armed(function: FakeFunction) -> list[int]:
    return [value for offset, value in function.writes if offset == Register.KICK_ARM]


def test_by_interrupt(function: FakeFunction) -> None:
    """docs/device.md 6: vector 1 + (n mod 7), vector 0 for a new generation."""
    with VhostPci(function) as device:
        assert device.change_fd == -1
        fds = device.kick_fds([1, 8, 3])
        assert fds.keys() == {1, 3, 8}
        assert fds[1] == fds[8] == function.interrupts[2]
        assert fds[3] == function.interrupts[4]
        assert device.change_fd == function.interrupts[0]
        assert len(function.interrupts) == 5
        assert not any(os.get_blocking(fd) for fd in function.interrupts)
        assert armed(function) == [ARM | 1, ARM | 3, ARM | 8]
        first = function.interrupts
        assert device.kick_fds([3, 6]).keys() == {3, 6}
        assert function.interrupts[:5] == first
        assert len(function.interrupts) == 8
        assert armed(function)[3:] == [1, 8, ARM | 6]
        function.writes.clear()
    assert armed(function) == [3, 6]
    assert function.interrupts == ()


def test_natively_no_kick_is_armed(function: FakeFunction) -> None:
    with contextlib.ExitStack() as stack:
        for ring in (0, 1, 9):
            function.kicks[0x400 + 4 * ring] = os.eventfd(0)
            stack.callback(os.close, function.kicks[0x400 + 4 * ring])
        with VhostPci(function) as device:
            assert device.kick_fds([1, 9]) == {1: function.kicks[0x404], 9: function.kicks[0x424]}
            assert list(function.interrupts) == [device.change_fd]
            assert armed(function) == []
            mixed = device.kick_fds([1, 2])
            assert mixed == {1: function.kicks[0x404], 2: function.interrupts[3]}
            assert armed(function) == [ARM | 2]


def test_too_few_vectors(function: FakeFunction) -> None:
    function.vectors = 3
    with VhostPci(function) as device:
        assert device.kick_fds([1]).keys() == {1}
        with pytest.raises(VhostPciError, match="it has 3 MSI vectors, and 4 are needed; poll"):
            device.kick_fds([1, 2])
        assert armed(function) == [ARM | 1]


def test_a_lost_function_lets_itself_be_closed(function: FakeFunction) -> None:
    with VhostPci(function) as device:
        device.kick_fds([0, 1])
        function.vectors = 0  # and it refuses to be told
        function.gone = True
