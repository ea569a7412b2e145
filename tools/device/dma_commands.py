"""DMA_MAP and DMA_UNMAP of a vfio-user client: checked and remembered; the device does no DMA."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from guest.vfio_user_abi import DmaFlag, DmaMap, DmaUnmap, DmaUnmapFlag

if TYPE_CHECKING:
    from tools.device.dma_table import DmaTable
    from tools.device.vfio_user_connection import Message


def dma_map(table: DmaTable, message: Message) -> None:
    """Remember a range; its descriptor, if any, is checked and let go. OSError with the errno."""
    request = DmaMap.unpack(message.payload)
    permissions = (DmaFlag.READ, DmaFlag.WRITE, DmaFlag.READ | DmaFlag.WRITE)
    if request.argsz != DmaMap.LAYOUT.size or request.flags not in permissions:
        raise OSError(errno.EINVAL, f"argsz {request.argsz}, flags {request.flags:#x}")
    for fd in message.fds:
        _check_file(fd, request)
    table.add(request.address, request.size)


def _check_file(fd: int, request: DmaMap) -> None:
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and request.offset + request.size > status.st_size:
        raise OSError(errno.EINVAL, f"the file ends at {status.st_size}")
    read_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    if read_only and request.flags & DmaFlag.WRITE:
        raise OSError(errno.EACCES, "the file is open for reading only")


def dma_unmap(table: DmaTable, message: Message) -> bytes:
    """Forget what was mapped inside a range, or ALL; the reply's payload is the request's."""
    request = DmaUnmap.unpack(message.payload)
    if request.argsz < DmaUnmap.LAYOUT.size:
        raise OSError(errno.EINVAL, f"argsz {request.argsz}")
    if request.flags == DmaUnmapFlag.ALL:
        if request.address or request.size:
            raise OSError(errno.EINVAL, "ALL with a range")
        table.clear()
    elif request.flags:
        raise OSError(errno.EINVAL, f"flags {request.flags:#x}")
    else:
        table.remove(request.address, request.size)
    return message.payload
