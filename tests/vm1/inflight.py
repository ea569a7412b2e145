"""A back-end's half of vhost-user's "Inflight I/O tracking", as far as messages go."""

from __future__ import annotations

import os

from tools import vhost_user_abi as abi
from tools.vhost_user_wire import Message

REGION_BYTES = 4096


class InflightRegion:
    """Makes the region when asked for one, and takes one that an earlier back-end made.

    made: how often it was asked. taken: what the region held when it was given, each time.
    """

    def __init__(self, mark: bytes) -> None:
        self.made = 0
        self.taken: list[bytes] = []
        self._mark = mark
        self._fds: list[int] = []

    def make(self, request: Message) -> Message:
        """The reply to GET_INFLIGHT_FD; the region holds the mark."""
        assert len(request.payload) == 24
        size, offset, queues, ring_size = abi.INFLIGHT.unpack_from(request.payload)
        assert (size, offset) == (0, 0)
        fd = os.memfd_create("inflight")
        os.ftruncate(fd, REGION_BYTES)
        os.pwrite(fd, self._mark, 0)
        self._fds.append(fd)
        self.made += 1
        payload = abi.INFLIGHT.pack(REGION_BYTES, 0, queues, ring_size) + bytes(4)
        reply = request.reply(payload)
        return Message(reply.request, reply.flags, reply.payload, (fd,))

    def take(self, message: Message) -> None:
        """SET_INFLIGHT_FD, whose descriptor this owns from now on."""
        size, offset, queues, ring_size = abi.INFLIGHT.unpack_from(message.payload)
        assert (size, offset, queues, ring_size) == (REGION_BYTES, 0, 2, 256)
        (fd,) = message.fds
        self.taken.append(os.pread(fd, len(self._mark), 0))
        self._fds.append(fd)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
