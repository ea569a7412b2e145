"""One AF_XDP socket on one queue of an interface: frame memory (UMEM), four rings, bound.

Source: Documentation/networking/af_xdp.rst. Errors are OSError with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.software_vf import abi
from driver.software_vf.packet import enlarge
from guest.closing import Closing
from guest.dma import shared_memory
from guest.mapping import Mapping
from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

# A page each: the most that the kernel takes, so that few frames need two.
CHUNK_BYTES = 4096
RX_COUNT = 2048
TX_COUNT = 2048
_COMPLETION_MIN = 2  # of a socket that sends nothing: bind wants the ring
_SEND_BUFFER_BYTES = 4 << 20
_BUSY_S = 1.5  # the kernel lets go of a closed socket's queue a little later
_BUSY_LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class XdpRing:
    """Addresses in this process: its two indices, its flags, its entries."""

    producer: int = 0
    consumer: int = 0
    flags: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True)
class XdpQueue:
    """A bound socket as pmd/csrc/port_xdp.c works with it: struct rk_xdp_queue. All stays the VF's.

    memory holds rx_count chunks, then tx_count; each ring has as many entries.
    """

    fd: int
    memory: int
    rx_count: int
    tx_count: int
    fill: XdpRing
    completion: XdpRing
    rx: XdpRing
    tx: XdpRing


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A ring: the option that makes it, where it is then mapped, its entries (0: none)."""

    option: int
    page: int
    count: int
    entry_bytes: int


class Statistics(NamedTuple):
    """struct xdp_statistics (linux/if_xdp.h): frames and descriptors that the kernel did not take.

    rx_dropped: For lack of memory, or too long. rx_ring_full: We were too slow.
    """

    rx_dropped: int = 0
    rx_invalid_descriptors: int = 0
    tx_invalid_descriptors: int = 0
    rx_ring_full: int = 0
    fill_ring_empty: int = 0
    tx_ring_empty: int = 0

    def __add__(self, other: Statistics) -> Statistics:  # type: ignore[override] # tuples are joined
        return Statistics(*(a + b for a, b in zip(self, other, strict=True)))


class XdpSocket(Closing):
    """Bound, with empty rings; no frame comes before it is in a program's map.

    Args:
        interface: The interface's number.
        queue: Of the interface.
        flags: XDP_COPY or XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP, XDP_USE_SG.
        sends: Whether it is to send as well.

    Raises:
        OSError: EBUSY where another socket has the queue; EINVAL or EOPNOTSUPP where the kernel or
            its driver cannot do what flags ask.
        VhostPciError: There is no memory.
    """

    def __init__(self, interface: int, queue: int, flags: int, *, sends: bool) -> None:
        self._tx_count = TX_COUNT if sends else 0
        with contextlib.ExitStack() as stack:
            memory = shared_memory((RX_COUNT + self._tx_count) * CHUNK_BYTES)
            stack.callback(memory.close)
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = stack.enter_context(socket.socket(abi.AF_XDP, kind))
            enlarge(self._socket, abi.SO_SNDBUFFORCE, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            self.facts = self._set_up(stack, memory)
            self._bind(abi.SOCKADDR_XDP.pack(abi.AF_XDP, flags, interface, queue, 0))
            self._left = stack.pop_all()

    def _set_up(self, stack: contextlib.ExitStack, memory: mmap.mmap) -> XdpQueue:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        size = (RX_COUNT + self._tx_count) * CHUNK_BYTES
        umem = abi.XDP_UMEM.pack(address, size, CHUNK_BYTES, 0, 0, 0)
        self._socket.setsockopt(abi.SOL_XDP, abi.XDP_UMEM_REG, umem)
        completions = self._tx_count or _COMPLETION_MIN
        wanted = (
            _Wanted(abi.XDP_RX_RING, abi.XDP_PGOFF_RX_RING, RX_COUNT, abi.XDP_DESC_BYTES),
            _Wanted(abi.XDP_TX_RING, abi.XDP_PGOFF_TX_RING, self._tx_count, abi.XDP_DESC_BYTES),
            _Wanted(abi.XDP_UMEM_FILL_RING, abi.XDP_UMEM_PGOFF_FILL_RING, RX_COUNT, 8),
            _Wanted(
                abi.XDP_UMEM_COMPLETION_RING, abi.XDP_UMEM_PGOFF_COMPLETION_RING, completions, 8
            ),
        )
        for each in wanted:
            if each.count:
                self._socket.setsockopt(abi.SOL_XDP, each.option, each.count)
        size = abi.XDP_RING_OFFSETS.size
        answer = self._socket.getsockopt(abi.SOL_XDP, abi.XDP_MMAP_OFFSETS, size)
        offsets = abi.XDP_RING_OFFSETS.unpack(answer)
        rx, tx, fill, completion = (
            self._map(stack, each, offsets[4 * i : 4 * i + 4]) for i, each in enumerate(wanted)
        )
        fd = self._socket.fileno()
        return XdpQueue(fd, address, RX_COUNT, self._tx_count, fill, completion, rx, tx)

    def _map(self, stack: contextlib.ExitStack, ring: _Wanted, offsets: Sequence[int]) -> XdpRing:
        if not ring.count:
            return XdpRing()
        producer, consumer, entries, flags = offsets
        size = entries + ring.count * ring.entry_bytes
        name = f"the ring of XDP socket option {ring.option}"
        mapping = Mapping(self._socket.fileno(), size, ring.page, writable=True, name=name)
        start = stack.enter_context(mapping).address
        return XdpRing(start + producer, start + consumer, start + flags, start + entries)

    def _bind(self, address: bytes) -> None:
        libc = ctypes.CDLL(None, use_errno=True)  # socket.bind() knows no such family
        deadline = time.monotonic() + _BUSY_S
        while libc.bind(self._socket.fileno(), address, len(address)) != 0:
            error = ctypes.get_errno()
            if error != errno.EBUSY or time.monotonic() > deadline:
                raise OSError(error, os.strerror(error))
            time.sleep(_BUSY_LOOK_S)

    def statistics(self) -> Statistics:
        """What the kernel counted since it was made. At any time until it is closed."""
        size = abi.XDP_STATISTICS_WORDS.size
        answer = self._socket.getsockopt(abi.SOL_XDP, abi.XDP_STATISTICS, size)
        return Statistics(*abi.XDP_STATISTICS_WORDS.unpack(answer))

    @property
    def zero_copy(self) -> bool:
        """Whether the interface's driver reads and writes the frame memory itself."""
        options = self._socket.getsockopt(abi.SOL_XDP, abi.XDP_OPTIONS, 4)
        return bool(int.from_bytes(options, "little") & abi.XDP_OPTIONS_ZEROCOPY)

    @property
    def need_wakeup(self) -> bool:
        """Whether the kernel says when it waits for a call; of a socket that sends, just bound.

        It does wait for the first one where it agreed to say so (net/xdp/xsk_buff_pool.c).
        """
        flags = ctypes.c_uint32.from_address(self.facts.tx.flags)
        return bool(flags.value & abi.XDP_RING_NEED_WAKEUP)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the queue back. No port uses it any more. Twice is fine."""
        self._left.close()
