"""2.4.1: from the answer to GET_VRING_BASE on, nobody looks into a ring, and nobody is called.

VM1's memory itself is the watcher. Its pages of those rings are taken out of the file: a read or a
write from anywhere, by whatever mapping, puts one back (fallocate(2), lseek(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING

from tests.pmd.many_pairs import Vm1
from tests.pmd.processes import Device, pmd
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path

BURST = 32
ROUNDS = 50
PAGE = 4096
_PUNCH_HOLE, _KEEP_SIZE = 2, 1  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def take_out(fd: int, page: int) -> None:
    """The file has nothing there, until somebody looks."""
    done = _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, page * PAGE, PAGE)
    assert done == 0, os.strerror(ctypes.get_errno())


def is_there(fd: int, page: int) -> bool:
    with contextlib.suppress(OSError):  # ENXIO: nothing from there to the end
        return os.lseek(fd, page * PAGE, os.SEEK_DATA) < (page + 1) * PAGE
    return False


def test_2_4_1_a_stopped_ring_is_not_looked_at(tmp_path: Path) -> None:
    """The VF has frames for it all the time, VM1 kicks, and the other pair is served."""
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(tmp_path, "a", "--queue-pairs", "2"))
        arguments = ("run", "--json", "--vf", "gen", "--device", device.name)
        daemon = stack.enter_context(pmd(*arguments))
        vm1 = stack.enter_context(Vm1(device.vhost_user, 2))
        first, last = vm1.pairs
        last.send(BURST)
        wait_for(last.all_sent, "the pair that is to be stopped")
        wait_for(lambda: bool(last.take_frames()), "its frames")
        vm1.stop(1)
        fd, pages = vm1.memory_fd, vm1.pages_of(1)
        for page in pages:
            take_out(fd, page)
        vm1.take_calls(1)
        for _ in range(ROUNDS):
            vm1.kick(1)
            first.send(BURST)
            wait_for(first.all_sent, "the other pair")
            first.take_frames()
        assert [page for page in pages if is_there(fd, page)] == []
        assert vm1.take_calls(1) == 0
        # And the watcher sees who looks.
        ctypes.string_at(vm1.address_of(pages[0]), 1)
        assert is_there(fd, pages[0])
        assert daemon.stop() == 0
        (channel,) = daemon.json()["channels"]
        assert channel["vm1_to_vf"]["packets"] == (ROUNDS + 1) * BURST
