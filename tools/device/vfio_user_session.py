"""One attached vfio-user client: its requests, checked, and the replies to them.

Source: vfio-user.rst. What is not in the table of commands is refused. A refusal is a header with
an errno, and changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from guest.vfio_user_abi import (
    MESSAGE_FDS_MAX,
    Command,
    DeviceFlag,
    DeviceInfo,
    DmaMap,
    DmaUnmap,
    HeaderFlag,
    IoEventFd,
    IoFds,
    IrqInfo,
    IrqSet,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    SparseArea,
    WireError,
)
from guest.vfio_user_wire import pack_error, pack_reply, pack_sparse_mmap
from tools.device.dma_commands import dma_map, dma_unmap
from tools.device.dma_table import DmaTable
from tools.device.interrupts import VECTORS
from tools.device.irq_commands import irq_info, set_irqs
from tools.device.vfio_user_connection import (
    DATA_SIZE_MAX,
    REQUEST_FDS_MAX,
    BadSizeError,
    ConnectionLostError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest.function import RegionInfo as FunctionRegion
    from guest.vfio_user_wire import Limits
    from tools.device.function import VhostPciDevice
    from tools.device.vfio_user_connection import Connection, Message

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """Payload and borrowed descriptors."""

    payload: bytes = b""
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A command: what does it, and what a request of it looks like. size: of its payload."""

    handle: Callable[[Message], Reply]
    size: int
    more_data: bool = False
    fds_max: int = 0


class Session:
    """Serves one client after VERSION until one side ends it.

    Thread rule: the event loop's. Does not own connection and device.

    Args:
        connection: The client's.
        device: Attached to this client.
        limits: What the client said it takes.
        greeting: The reply to its VERSION.
    """

    def __init__(
        self, connection: Connection, device: VhostPciDevice, limits: Limits, greeting: bytes
    ) -> None:
        self._connection = connection
        self._device = device
        self._limits = limits
        self._dma = DmaTable()
        self._greeting = greeting
        self._task = asyncio.current_task()
        self._ended_because = ""
        self.requests = 0
        self.refused = 0
        self._rules = {
            Command.DMA_MAP: Rule(self._dma_map, DmaMap.LAYOUT.size, fds_max=1),
            Command.DMA_UNMAP: Rule(self._dma_unmap, DmaUnmap.LAYOUT.size),
            Command.DEVICE_GET_INFO: Rule(self._device_info, DeviceInfo.LAYOUT.size),
            Command.DEVICE_GET_REGION_INFO: Rule(self._region_info, RegionInfo.LAYOUT.size),
            Command.DEVICE_GET_REGION_IO_FDS: Rule(self._io_fds, IoFds.LAYOUT.size),
            Command.DEVICE_GET_IRQ_INFO: Rule(self._irq_info, IrqInfo.LAYOUT.size),
            Command.DEVICE_SET_IRQS: Rule(
                self._set_irqs, IrqSet.LAYOUT.size, more_data=True, fds_max=REQUEST_FDS_MAX
            ),
            Command.REGION_READ: Rule(self._region_read, RegionAccess.LAYOUT.size),
            Command.REGION_WRITE: Rule(
                self._region_write, RegionAccess.LAYOUT.size, more_data=True
            ),
            Command.DEVICE_RESET: Rule(self._reset, 0),
        }

    @property
    def dma_maps(self) -> int:
        """How many ranges the client has mapped."""
        return len(self._dma)

    def end(self, reason: str) -> None:
        """Make `run` return this reason."""
        if self._task is not None and not self._ended_because:
            self._ended_because = reason
            self._task.cancel()

    async def run(self) -> str:
        """Serve until the end; returns why it came. To be run by the task that made the session."""
        try:
            await self._connection.send(self._greeting)
            while True:
                with await self._connection.receive() as message:
                    header = message.header
                    answer, fds = self._answer(message)
                if not header.flags & HeaderFlag.NO_REPLY:
                    await self._connection.send(answer, fds)
                await asyncio.sleep(0)  # a client that never pauses must not keep others waiting
        except ConnectionLostError as error:
            if isinstance(error, BadSizeError):
                with contextlib.suppress(ConnectionLostError):
                    await self._connection.send(pack_error(error.header, errno.EINVAL))
            return str(error)
        except asyncio.CancelledError:
            if not self._ended_because or self._task is None:
                raise
            self._task.uncancel()
            return self._ended_because
        finally:
            self._task = None

    def _answer(self, message: Message) -> tuple[bytes, tuple[int, ...]]:
        """The reply to a request as bytes, and the descriptors to go with it, borrowed."""
        self.requests += 1
        try:
            reply = self._dispatch(message)
        except (OSError, WireError) as error:
            self.refused += 1
            log.debug("vfio-user: command %d refused: %s", message.header.command, error)
            code = (isinstance(error, OSError) and error.errno) or errno.EINVAL
            return pack_error(message.header, code), ()
        return pack_reply(message.header, reply.payload), reply.fds

    def _dispatch(self, message: Message) -> Reply:
        header = message.header
        if header.flags not in (0, HeaderFlag.NO_REPLY):
            raise OSError(errno.EINVAL, f"header flags {header.flags:#x}")
        if header.command == Command.VERSION:
            raise OSError(errno.EINVAL, "the version was negotiated before")
        rule = self._rules.get(Command(header.command)) if header.command in _KNOWN else None
        if rule is None:
            raise OSError(errno.ENOTSUP, "there is no such command")
        excess = len(message.payload) - rule.size
        if excess < 0 or (excess and not rule.more_data):
            raise OSError(errno.EINVAL, f"payload of {len(message.payload)} bytes")
        if message.truncated or len(message.fds) > rule.fds_max:
            raise OSError(errno.EINVAL, f"{len(message.fds)} descriptors or more")
        return rule.handle(message)

    def _dma_map(self, message: Message) -> Reply:
        dma_map(self._dma, message)
        return Reply()

    def _dma_unmap(self, message: Message) -> Reply:
        return Reply(dma_unmap(self._dma, message))

    def _device_info(self, message: Message) -> Reply:
        request = DeviceInfo.unpack(message.payload)
        _check_argsz(request.argsz, DeviceInfo.LAYOUT.size)
        flags = DeviceFlag.RESET | DeviceFlag.PCI
        count = self._device.region_count
        return Reply(DeviceInfo(DeviceInfo.LAYOUT.size, flags, count, len(VECTORS)).pack())

    def _region_info(self, message: Message) -> Reply:
        """The region and its capability: without it and its descriptor if argsz has no room.

        QEMU takes cap_offset from that first reply too, and asks again with the argsz it names.
        """
        request = RegionInfo.unpack(message.payload)
        fixed = RegionInfo.LAYOUT.size
        _check_argsz(request.argsz, fixed)
        view = self._device.region(request.index)
        mappable = view.fd >= 0
        areas = [SparseArea(area.offset, area.size) for area in view.info.areas]
        capability = pack_sparse_mmap(areas) if mappable else b""
        info = RegionInfo(
            argsz=fixed + len(capability),
            flags=_region_flags(view.info, mappable=mappable),
            index=request.index,
            cap_offset=fixed if mappable else 0,
            size=view.info.size,
            offset=view.file_offset,
        )
        if not mappable or request.argsz < info.argsz:
            return Reply(info.pack())
        return Reply(info.pack() + capability, (view.fd,))

    def _io_fds(self, message: Message) -> Reply:
        """BAR 0's eventfds, as many as the client takes; none if argsz has no room."""
        request = IoFds.unpack(message.payload)
        fixed = IoFds.LAYOUT.size
        _check_argsz(request.argsz, fixed)
        if request.flags or request.index >= self._device.region_count:
            raise OSError(errno.EINVAL, f"region {request.index}, flags {request.flags:#x}")
        eventfds = self._device.eventfds() if request.index == 0 else []
        eventfds = eventfds[: min(self._limits.max_msg_fds, MESSAGE_FDS_MAX)]
        subs = [IoEventFd(offset, 4, n) for n, (offset, _fd) in enumerate(eventfds)]
        data = b"".join(sub.pack() for sub in subs)
        reply = IoFds(fixed + len(data), 0, request.index, len(subs))
        if request.argsz < reply.argsz:
            return Reply(replace(reply, count=0).pack())
        return Reply(reply.pack() + data, tuple(fd for _offset, fd in eventfds))

    def _irq_info(self, message: Message) -> Reply:
        return Reply(irq_info(message))

    def _set_irqs(self, message: Message) -> Reply:
        set_irqs(self._device.interrupts, message)
        return Reply()

    def _region_read(self, message: Message) -> Reply:
        request = RegionAccess.unpack(message.payload)
        if request.count > min(DATA_SIZE_MAX, self._limits.max_data_xfer_size):
            raise OSError(errno.EINVAL, f"a read of {request.count} bytes")
        data = self._device.read(request.region, request.offset, request.count)
        return Reply(message.payload + data)

    def _region_write(self, message: Message) -> Reply:
        request = RegionAccess.unpack(message.payload)
        data = message.payload[RegionAccess.LAYOUT.size :]
        if len(data) != request.count:
            raise OSError(errno.EINVAL, f"{len(data)} bytes in a write of {request.count}")
        self._device.write(request.region, request.offset, data)
        return Reply(request.pack())

    def _reset(self, _message: Message) -> Reply:
        self._device.reset()
        return Reply()


_KNOWN = frozenset(Command)


def _check_argsz(argsz: int, needed: int) -> None:
    if argsz < needed:
        raise OSError(errno.EINVAL, f"argsz {argsz} where {needed} is needed")


def _region_flags(info: FunctionRegion, *, mappable: bool) -> RegionFlag:
    flags = RegionFlag.READ if info.readable else RegionFlag(0)
    flags |= RegionFlag.WRITE if info.writable else 0
    return flags | RegionFlag.MMAP | RegionFlag.CAPS if mappable else flags
