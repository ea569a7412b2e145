"""Functions that come and go, as udevd tells; what is here already, as this machine has it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest.discovery import pci_functions
from guest.hotplug import Change, Hotplug
from tests.guest.fake_udevd import FakeUdevd, in_new_namespace, must_be_root

if TYPE_CHECKING:
    from collections.abc import Callable

DESCRIPTORS = Path("/proc/self/fd")
IDS = 0x1AF4, 0x10F0
FIRST, SECOND = "0000:fe:00.0", "0000:fe:01.0"

needs_root = pytest.mark.skipif(bool(must_be_root()), reason=must_be_root())


def watching(source: str | None = None) -> Hotplug:
    hotplug = Hotplug(*IDS, source=source)
    hotplug.watch()
    return hotplug


def told(*events: tuple[str, ...], before: Callable[[Hotplug], None] | None = None) -> list[Change]:
    """The changes after these events of udevd: (action, address and so on)."""

    def work() -> list[Change]:
        with (
            contextlib.closing(FakeUdevd()) as udevd,
            watching(source="udev") as hotplug,
        ):
            if before is not None:
                before(hotplug)
            for event in events:
                udevd.say(*event)
            return hotplug.changes()

    return in_new_namespace(work)


@needs_root
def test_functions_come_and_go_in_order() -> None:
    events = [("add", FIRST), ("add", SECOND), ("remove", FIRST), ("add", FIRST)]
    assert told(*events) == [
        Change(FIRST, present=True),
        Change(SECOND, present=True),
        Change(FIRST, present=False),
        Change(FIRST, present=True),
    ]


@needs_root
def test_a_driver_of_its_own_makes_a_function_usable() -> None:
    assert told(("bind", FIRST)) == [Change(FIRST, present=True)]


@needs_root
@pytest.mark.parametrize("action", ["unbind", "change", "move"])
def test_what_is_no_coming_and_no_going(action: str) -> None:
    assert told(("add", FIRST), (action, FIRST)) == [Change(FIRST, present=True)]


@needs_root
def test_other_functions_and_other_buses() -> None:
    assert told(("add", FIRST, "8086:10F0"), ("add", FIRST, "1AF4:10F0", "usb")) == []


@needs_root
def test_the_going_of_what_never_came() -> None:
    assert told(("remove", FIRST), ("add", SECOND, "8086:1"), ("remove", SECOND)) == []


@needs_root
def test_the_descriptor_tells_when_there_is_something() -> None:
    def work() -> tuple[int, int, int]:
        with contextlib.closing(FakeUdevd()) as udevd, watching(source="udev") as hotplug:
            quiet = len(select.select([hotplug], [], [], 0)[0])
            udevd.say("add", FIRST)
            loud = len(select.select([hotplug], [], [], 10)[0])
            hotplug.changes()
            return quiet, loud, len(select.select([hotplug], [], [], 0)[0])

    assert in_new_namespace(work) == (0, 1, 0)


@needs_root
def test_more_events_than_the_kernel_keeps() -> None:
    """What was known and is not here has gone; afterwards all is as before."""

    def work() -> tuple[list[Change], int, list[Change]]:
        with contextlib.closing(FakeUdevd()) as udevd, watching(source="udev") as hotplug:
            udevd.say("add", FIRST)
            assert hotplug.changes() == [Change(FIRST, present=True)]
            with socket.socket(fileno=os.dup(hotplug.fileno())) as small:
                small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least there is
            for _ in range(1000):
                udevd.say("change", SECOND)
            lost = hotplug.changes()
            quiet = len(select.select([hotplug], [], [], 0)[0])
            udevd.say("add", SECOND)
            return lost, quiet, hotplug.changes()

    lost, quiet, after = in_new_namespace(work)
    here = [Change(function.address, present=True) for function in pci_functions(*IDS)]
    assert lost == [Change(FIRST, present=False), *here]
    assert quiet == 0
    assert after == [Change(SECOND, present=True)]


def test_what_is_here_is_present_and_told_once_more() -> None:
    """What comes between `present` and `watch` was seen by neither."""
    with Hotplug(*IDS) as hotplug:
        here = hotplug.present()
        assert here == [function.address for function in pci_functions(*IDS)]
        hotplug.watch()
        hotplug.watch()
        assert hotplug.changes() == [Change(address, present=True) for address in here]
        assert hotplug.changes() == []


def test_without_libudev() -> None:
    """Another process, whose ctypes finds no library."""
    script = (
        "import ctypes.util\n"
        "ctypes.util.find_library = lambda name: None\n"
        "from guest.hotplug import Hotplug\n"
        "from guest.errors import VhostPciError\n"
        "hotplug = Hotplug(1, 2)\n"
        "print(hotplug.present())\n"
        "try:\n    hotplug.watch()\n"
        "except VhostPciError as error:\n    print(error)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert output.startswith("[]\ncannot watch PCI functions: libudev is missing (")
    assert output.endswith("install libudev1\n")


def test_closing_twice_leaves_no_descriptor() -> None:
    watching().close()  # the first one imports pyudev
    before = len(list(DESCRIPTORS.iterdir()))
    hotplug = watching()
    hotplug.close()
    hotplug.close()
    assert len(list(DESCRIPTORS.iterdir())) == before
