"""What an opened VF leaves to its user, and circumstances in which one is opened."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.software_vf import PortSpec, Vf


@contextlib.contextmanager
def opened(vf: Vf, queue_pairs: int = 1) -> Iterator[list[PortSpec]]:
    """The PortSpecs, closed afterwards as the ports would."""
    specs = vf.open(queue_pairs)
    try:
        yield specs
    finally:
        for spec in specs:
            if spec.fd >= 0:
                os.close(spec.fd)
        vf.close()


@contextlib.contextmanager
def without_capabilities(*few: int) -> Iterator[None]:
    """This thread without a few effective capabilities; by default without any."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before, none = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    dropped = sum(1 << each for each in few) if few else (1 << 64) - 1
    for i in range(6):
        none[i] = before[i]
    none[0] &= ~dropped  # the effective ones; 1 and 2 are permitted and inheritable
    none[3] &= ~(dropped >> 32)
    assert libc.capset(header, none) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@contextlib.contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """Room for so many more descriptors."""
    with contextlib.ExitStack() as stack:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        probe = os.open("/dev/null", os.O_RDONLY)
        os.close(probe)
        for _ in range(more):
            stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        highest = os.open("/dev/null", os.O_RDONLY)
        os.close(highest)
        stack.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
