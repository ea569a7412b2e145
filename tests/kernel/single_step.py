"""A child process run instruction by instruction: what it leaves behind when killed there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from typing import TYPE_CHECKING

from driver.software_vf import PortSpec
from pmd.kernel import Port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_TRACEME, _SINGLESTEP = 0, 9  # ptrace(2)
_MMAP_THRESHOLD = -3  # mallopt(3)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@contextlib.contextmanager
def native_port(frames: Iterable[bytes] = ()) -> Iterator[Port]:
    """Has these few for VM1. Nothing of it is Python, which would take nearly all of the steps."""
    far, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with far:
        with near:
            for frame in frames:
                far.send(frame)
            port = Port(PortSpec("dgram", near.fileno()))
            near.detach()
        with port:
            yield port


def changes(action: Callable[[], object], look: Callable[[], bytes]) -> Iterator[bytes]:
    """What `look` sees, at first and after each instruction of `action` that changes it.

    action: Runs in a child, which has a copy of this process and is killed at the end.
    look: Runs here, on memory that both share.
    """
    seen: bytes | None = None
    for _ in steps(action):
        if (now := look()) != seen:
            seen = now
            yield seen


def steps(action: Callable[[], object]) -> Iterator[None]:
    """Before the first instruction of `action` and after each, while it stands still.

    action: As of `changes`.
    """
    child = os.fork()
    if child == 0:
        _use_up_free_memory()
        _libc.ptrace(_TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        action()
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        assert os.WSTOPSIG(os.waitpid(child, 0)[1]) == signal.SIGSTOP
        yield
        while _step(child) == signal.SIGTRAP:
            yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _use_up_free_memory() -> None:
    """What is allocated then comes from the system, as zeros: zeroing takes a step a byte."""
    for _ in range(100):
        _libc.malloc(1 << 18)
    _libc.mallopt(_MMAP_THRESHOLD, 1 << 14)


def _step(child: int) -> int:
    if _libc.ptrace(_SINGLESTEP, child, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    status = os.waitpid(child, 0)[1]
    assert os.WIFSTOPPED(status), f"the child ended: {status:#x}"
    return os.WSTOPSIG(status)
