"""The eventfds of a region's registers: the answer to DEVICE_GET_REGION_IO_FDS, judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from guest import vfio_user_abi as abi
from guest.vfio_user_abi import WireError

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse_io_fds(payload: bytes, index: int, fds: Sequence[int]) -> dict[int, int]:
    """Offset of a 32-bit register -> the eventfd that any write to it signals. Raises WireError."""
    info = abi.IoFds.unpack(payload)
    if info.index != index:
        raise WireError(f"doorbells of region {info.index} in answer to {index}")
    if info.count == 0:
        return {}
    stride = (len(payload) - abi.IoFds.LAYOUT.size) // info.count
    if stride < abi.IoEventFd.LAYOUT.size:
        raise WireError(f"{info.count} sub-regions in {len(payload)} bytes")
    found = {}
    for number in range(info.count):
        part = abi.IoEventFd.unpack(payload, abi.IoFds.LAYOUT.size + number * stride)
        if part.type != abi.IoFdType.IOEVENTFD or part.flags or part.size not in {0, 4}:
            continue  # needs a value, a port or another memory: not ours to ring
        if part.fd_index >= len(fds):
            raise WireError(f"descriptor {part.fd_index} of {len(fds)}")
        fd = fds[part.fd_index]
        # The data path writes 8 bytes to it without looking: a pipe could block it for good.
        if str(Path(f"/proc/self/fd/{fd}").readlink()) != "anon_inode:[eventfd]":
            raise WireError("a descriptor that is not an eventfd")
        found[part.offset] = fd
    return found
