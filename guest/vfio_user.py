"""A PCI function served by another process: `guest.function.Function` over a vfio-user socket.

The ladder: connect, VERSION (limits of both sides), GET_INFO; then the function is open. Sources
are those of `guest.vfio_user_abi`; nothing the server says is used before it was judged.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
from typing import TYPE_CHECKING

from guest import vfio_user_abi as abi
from guest.closing import Closing
from guest.errors import VhostPciError
from guest.function import Doorbell, Region
from guest.info_chain import InfoError, region_info
from guest.mapping import Mapping
from guest.pci_config import HEADER_SIZE as CONFIG_HEADER_SIZE
from guest.pci_config import parse_identity
from guest.vfio_user_abi import Command, WireError
from guest.vfio_user_channel import LIMITS, VfioUserChannel, close_fds
from guest.vfio_user_io_fds import parse_io_fds
from guest.vfio_user_wire import Limits, pack_version, unpack_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guest.function import Area, Identity, RegionInfo

# More would be no PCI function, and would make a loop over the regions long.
_REGIONS_MAX = 1024
_IRQS_MAX = 64
# A sparse area has 16 bytes, so this is room for 65536 of them.
_INFO_MAX = 1 << 20
# How often an information may outgrow the room asked for, as a window changes, before we give up.
_INFO_TRIES = 4
_VERSION_MAX = 64 << 10


class VfioUserFunction(Closing):
    """An open function at the end of a socket.

    Windows are dynamic (docs/device.md 3): `region` asks the server each time, and descriptors
    that come with the answer live no longer than the call. Doorbells are eventfds of the server
    (DEVICE_GET_REGION_IO_FDS); where it gives none there is none, since a socket message is not
    for the data path. Requests of the server are refused with ENOTSUP.

    Thread rule: one thread at a time.

    Args:
        path: Of the server's socket, at most 107 bytes.
        timeout_s: For each answer; after it the connection is given up.

    Raises:
        UsageError: The path cannot be a socket's.
        VhostPciError: Nobody listens, another process is attached, or this is no PCI function.
    """

    def __init__(self, path: str, timeout_s: float = 5.0) -> None:
        self._doorbell_fds: list[int] = []
        self._event_fds: list[int] = []
        self._armed_irqs: set[int] = set()
        self._channel = VfioUserChannel(path, timeout_s)
        self.name = self._channel.name
        try:
            self._server_limits = self._negotiate()
            self._info()
        except BaseException:
            self.close()
            raise

    def _negotiate(self) -> Limits:
        """VERSION: the same major, and the server's limits."""
        capabilities = {
            "max_msg_fds": LIMITS.max_msg_fds,
            "max_data_xfer_size": LIMITS.max_data_xfer_size,
            abi.VHOST_PCI: {abi.DYNAMIC_WINDOWS: True, abi.EVENTS: True},
        }
        payload = self._ask(
            "attach to", Command.VERSION, pack_version(capabilities), reply_max=_VERSION_MAX
        )
        with self._judging("attach to"):
            version, offered = unpack_version(payload)
            if version.major != abi.MAJOR or version.minor > abi.MINOR:
                raise WireError(
                    f"its version is {version.major}.{version.minor}, "
                    f"ours is {abi.MAJOR}.{abi.MINOR}"
                )
            return Limits.from_capabilities(offered)

    def _info(self) -> abi.DeviceInfo:
        """DEVICE_GET_INFO, asked anew each time: extension windows come and go."""
        operation = "ask for the regions of"
        request = abi.DeviceInfo(abi.DeviceInfo.LAYOUT.size).pack()
        payload = self._ask(operation, Command.DEVICE_GET_INFO, request, reply_max=len(request))
        with self._judging(operation):
            info = abi.DeviceInfo.unpack(payload)
            if not info.flags & abi.DeviceFlag.PCI:
                raise WireError("this is not a PCI function")
            if not len(Region) <= info.region_count <= _REGIONS_MAX:
                raise WireError(f"a PCI function with {info.region_count} regions")
            if info.irq_count > _IRQS_MAX:
                raise WireError(f"a PCI function with {info.irq_count} interrupt indices")
        return info

    def fileno(self) -> int:
        """Readable when the connection is lost, and for nothing else."""
        return self._channel.fileno()

    def identity(self) -> Identity:
        """From configuration space, section 6.1 of the PCI specification."""
        return parse_identity(self.read(Region.CONFIG, 0, CONFIG_HEADER_SIZE))

    def region_count(self) -> int:
        """As the server says now."""
        return self._info().region_count

    def region(self, index: int) -> RegionInfo:
        """Ask the server. A region without a descriptor is trapped only, whatever its flags."""
        info, _, fds = self._region(f"ask for region {index} of", index)
        close_fds(fds)
        return info

    def _region(self, operation: str, index: int) -> tuple[RegionInfo, int, list[int]]:
        """The region, its offset in the descriptor, and that descriptor, which the caller owns."""
        payload, fds = self._ask_grown(
            operation,
            Command.DEVICE_GET_REGION_INFO,
            lambda argsz: abi.RegionInfo(argsz, 0, index),
            abi.RegionInfo.LAYOUT.size,
            reply_fds_max=1,
        )
        with contextlib.ExitStack() as undo, self._judging(operation):
            undo.callback(close_fds, fds)
            info, offset = region_info(payload, index)
            undo.pop_all()
        return info if fds else info._replace(areas=()), offset, fds

    def read(self, index: int, offset: int, size: int) -> bytes:
        """REGION_READ, in pieces of what both sides take."""
        piece = min(self._server_limits.max_data_xfer_size, LIMITS.max_data_xfer_size)
        data = bytearray()
        while len(data) < size:
            data += self._read_piece(index, offset + len(data), min(size - len(data), piece))
        return bytes(data)

    def _read_piece(self, index: int, offset: int, size: int) -> bytes:
        operation = f"read {size} bytes at {offset:#x} of region {index} of"
        request = abi.RegionAccess(offset, index, size).pack()
        payload = self._ask(operation, Command.REGION_READ, request, reply_max=len(request) + size)
        with self._judging(operation):
            if payload[: len(request)] != request or len(payload) != len(request) + size:
                raise WireError("the answer is to another read, or short")
        return payload[len(request) :]

    def write(self, index: int, offset: int, data: bytes) -> None:
        """REGION_WRITE, in pieces of what both sides take; the server has answered each."""
        piece = min(self._server_limits.max_data_xfer_size, LIMITS.max_data_xfer_size)
        for begin in range(0, len(data), piece):
            part = data[begin : begin + piece]
            at = offset + begin
            operation = f"write {len(part)} bytes at {at:#x} of region {index} of"
            request = abi.RegionAccess(at, index, len(part)).pack()
            payload = self._ask(
                operation, Command.REGION_WRITE, request + part, reply_max=len(request)
            )
            with self._judging(operation):
                if payload != request:
                    raise WireError("the answer is to another write, or short")

    def map_area(self, index: int, area: Area, *, writable: bool) -> Mapping:
        """Map an area, or a part of one, of the region as the server shows it now."""
        operation = f"map region {index} of"
        info, offset, fds = self._region(operation, index)
        with contextlib.ExitStack() as close:
            close.callback(close_fds, fds)
            end = area.offset + area.size
            if not any(a.offset <= area.offset and end <= a.offset + a.size for a in info.areas):
                raise VhostPciError(
                    operation,
                    self.name,
                    f"{area.size} bytes at {area.offset:#x} cannot be mapped (any more)",
                    "ask for the region again",
                )
            self._check_file(operation, fds[0], offset + end)
            name = f"{self.name} region {index}"
            return Mapping(fds[0], area.size, offset + area.offset, writable=writable, name=name)

    def _check_file(self, operation: str, fd: int, end: int) -> None:
        """A mapping past a file's end would kill this process at its first touch (mmap(2))."""
        status = os.fstat(fd)
        if (
            stat.S_ISREG(status.st_mode)
            and end > -(-status.st_size // mmap.PAGESIZE) * mmap.PAGESIZE
        ):
            raise VhostPciError(
                operation, self.name, f"its file ends at {status.st_size}, the area at {end}"
            )

    def doorbells(self, index: int, offsets: Sequence[int]) -> dict[int, Doorbell]:
        """The eventfds at these offsets; those of the call before are closed.

        Raises:
            VhostPciError: The server gives no eventfd for an offset; then the earlier ones stay.
        """
        operation = f"get doorbells in region {index} of"
        found = self._io_fds(operation, index, offsets)
        missing = [offset for offset in offsets if offset not in found]
        if missing:
            close_fds(list(set(found.values())))
            raise VhostPciError(
                operation, self.name, f"the server gives no eventfd for {missing[0]:#x}"
            )
        close_fds(self._doorbell_fds)
        self._doorbell_fds = list(set(found.values()))
        return {offset: Doorbell(fd, None) for offset, fd in found.items()}

    def events(self, index: int, offsets: Sequence[int]) -> dict[int, int]:
        """The eventfds at these offsets that the server gives; those of the call before close."""
        found = self._io_fds(f"get events in region {index} of", index, offsets)
        close_fds(self._event_fds)
        self._event_fds = list(set(found.values()))
        return found

    def _io_fds(self, operation: str, index: int, offsets: Sequence[int]) -> dict[int, int]:
        """The server's eventfds at such of these offsets as have one; the caller owns them."""
        if not offsets:
            return {}
        payload, fds = self._ask_grown(
            operation,
            Command.DEVICE_GET_REGION_IO_FDS,
            lambda argsz: abi.IoFds(argsz, 0, index),
            abi.IoFds.LAYOUT.size + len(offsets) * abi.IoEventFd.LAYOUT.size,
            reply_fds_max=LIMITS.max_msg_fds,
        )
        kept: dict[int, int] = {}
        try:
            with self._judging(operation):
                found = parse_io_fds(payload, index, fds)
            kept = {offset: found[offset] for offset in offsets if offset in found}
        finally:
            close_fds([fd for fd in fds if fd not in kept.values()])
        return kept

    def irq_count(self, index: int) -> int:
        """DEVICE_GET_IRQ_INFO; an index that the function does not have has no vectors."""
        if index >= self._info().irq_count:
            return 0
        operation = f"ask for interrupt {index} of"
        request = abi.IrqInfo(abi.IrqInfo.LAYOUT.size, 0, index).pack()
        payload = self._ask(operation, Command.DEVICE_GET_IRQ_INFO, request, reply_max=len(request))
        with self._judging(operation):
            info = abi.IrqInfo.unpack(payload)
            if info.index != index:
                raise WireError(f"information of interrupt {info.index} in answer to {index}")
        return info.count if info.flags & abi.IrqFlag.EVENTFD else 0

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        """DEVICE_SET_IRQS, in pieces of as many descriptors as the server takes at once."""
        operation = f"set interrupt {index} of"
        flags = abi.IrqSetFlag
        if index in self._armed_irqs:
            self._set_irqs(operation, flags.DATA_NONE, index, 0, ())
            self._armed_irqs.discard(index)
        piece = min(self._server_limits.max_msg_fds, abi.MESSAGE_FDS_MAX)
        for start in range(0, len(eventfds), piece):
            part = eventfds[start : start + piece]
            try:
                self._set_irqs(operation, flags.DATA_EVENTFD, index, start, part)
            except VhostPciError:
                if start:  # half of the vectors is no state to be in
                    with contextlib.suppress(VhostPciError):
                        self._set_irqs(operation, flags.DATA_NONE, index, 0, ())
                raise
        if eventfds:
            self._armed_irqs.add(index)

    def _set_irqs(
        self, operation: str, data: abi.IrqSetFlag, index: int, start: int, fds: Sequence[int]
    ) -> None:
        flags = data | abi.IrqSetFlag.ACTION_TRIGGER
        request = abi.IrqSet(abi.IrqSet.LAYOUT.size, flags, index, start, len(fds)).pack()
        self._channel.request(operation, Command.DEVICE_SET_IRQS, request, fds=fds)

    def reset(self) -> None:
        """DEVICE_RESET."""
        self._ask("reset", Command.DEVICE_RESET)

    def dma_map(self, address: int, size: int, iova: int, *, writable: bool) -> None:
        """DMA_MAP without a descriptor, since a process's memory has none that could be passed.

        The server can then reach it by DMA_READ and DMA_WRITE only, which this client refuses: a
        function that needs DMA is one of the kernel's. The call tells the server what there is.
        """
        del address  # of no use to another process
        flags = abi.DmaFlag.READ | (abi.DmaFlag.WRITE if writable else 0)
        request = abi.DmaMap(abi.DmaMap.LAYOUT.size, flags, 0, iova, size).pack()
        self._ask(f"map {size} bytes for DMA of", Command.DMA_MAP, request)

    def dma_unmap(self, iova: int, size: int) -> None:
        """DMA_UNMAP; the server may echo the request."""
        request = abi.DmaUnmap(abi.DmaUnmap.LAYOUT.size, 0, iova, size).pack()
        operation = f"unmap {size} bytes from DMA of"
        self._ask(operation, Command.DMA_UNMAP, request, reply_max=len(request))

    def _ask(
        self, operation: str, command: Command, payload: bytes = b"", *, reply_max: int = 0
    ) -> bytes:
        """A request without descriptors either way."""
        return self._channel.request(operation, command, payload, reply_max=reply_max)[0]

    def _ask_grown(
        self,
        operation: str,
        command: Command,
        request: Callable[[int], abi.Layout],
        argsz: int,
        *,
        reply_fds_max: int,
    ) -> tuple[bytes, list[int]]:
        """Ask again with more room until all of the answer fits ("Message sizes").

        argsz, the answer's first word, is what all of it needs. The caller owns the descriptors.
        """
        for _ in range(_INFO_TRIES):
            payload, fds = self._channel.request(
                operation,
                command,
                request(argsz).pack(),
                reply_max=argsz,
                reply_fds_max=reply_fds_max,
            )
            needed = struct.unpack_from("<I", payload)[0] if len(payload) >= 4 else 0
            if needed <= argsz:
                return payload, fds
            close_fds(fds)
            if needed > _INFO_MAX:
                break
            argsz = needed
        raise VhostPciError(operation, self.name, f"the answer needs {needed} bytes, too many")

    @contextlib.contextmanager
    def _judging(self, operation: str) -> Iterator[None]:
        """Turn what is wrong with an answer into the error the user sees."""
        try:
            yield
        except (WireError, InfoError) as error:
            cause = f"the server's answer is wrong: {error}"
            raise VhostPciError(operation, self.name, cause) from error

    def close(self) -> None:
        """Close doorbells and events, and disconnect. Twice is fine."""
        close_fds(self._doorbell_fds + self._event_fds)
        self._doorbell_fds, self._event_fds = [], []
        self._channel.close()
