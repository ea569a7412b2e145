"""A vhost-user front-end whose VM1 is behind an IOMMU: it answers misses as QEMU does."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from tests.device.vhost_user_peer import DEADLINE_S, FEATURES, PROTOCOL, FrontEnd
from tools.vhost_user_abi import Request

if TYPE_CHECKING:
    from pathlib import Path

ACCESS_PLATFORM = 1 << 33
PAGE = 4096
READ, WRITE, BOTH = 1, 2, 3
MISS, UPDATE, INVALIDATE = 1, 2, 3


class Miss(NamedTuple):
    """What the back-end asks for."""

    iova: int
    permission: int


class IommuFrontEnd(FrontEnd):
    """pages: VM1's I/O page table, user address and permission by page. Its own few lines."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path)
        self.pages: dict[int, tuple[int, int]] = {}
        self.channel, self._theirs = socket.socketpair()
        self.channel.settimeout(DEADLINE_S)

    def close(self) -> None:
        super().close()
        self.channel.close()
        self._theirs.close()

    def begin(self, features: int = FEATURES | ACCESS_PLATFORM, protocol: int = PROTOCOL) -> None:
        self.negotiate(features, protocol)
        self.send(Request.SET_BACKEND_REQ_FD, b"", [self._theirs.fileno()])

    def map(self, iova: int, user: int, pages: int = 1, permission: int = BOTH) -> None:
        for page in range(pages):
            self.pages[iova + page * PAGE] = (user + page * PAGE, permission)

    def say(self, kind: int, iova: int, size: int, user: int = 0, permission: int = 0) -> bool:
        payload = struct.pack("<QQQBB6x", iova, size, user, permission, kind)
        return self.acknowledged(Request.IOTLB_MSG, payload)

    def update(self, iova: int) -> bool:
        """QEMU says that everything is permitted, whatever the page table says."""
        return self.say(UPDATE, iova, PAGE, self.pages[iova][0], BOTH)

    def unmap(self, iova: int, pages: int = 1) -> bool:
        for page in range(pages):
            self.pages.pop(iova + page * PAGE, None)
        return self.say(INVALIDATE, iova, pages * PAGE)

    def miss(self) -> Miss:
        """The next miss; not yet answered."""
        data = b""
        while len(data) < 44:
            more = self.channel.recv(44 - len(data))
            assert more
            data += more
        request, flags, size, iova, _, _, permission, kind = struct.unpack("<IIIQQQBB6x", data)
        assert (request, flags, size, kind) == (1, 0x9, 32, MISS)
        return Miss(iova, permission)

    def answer(self, miss: Miss) -> None:
        """Update, if the page table permits, then the acknowledgement."""
        user, permission = self.pages.get(miss.iova, (0, 0))
        allowed = bool(user) and not miss.permission & ~permission
        if allowed:
            assert self.say(UPDATE, miss.iova, PAGE, user, BOTH)
        self.channel.sendall(struct.pack("<IIIQ", 1, 0x5, 8, not allowed))

    def serve(self, count: int) -> list[Miss]:
        """Answer so many misses."""
        misses = []
        for _ in range(count):
            misses.append(self.miss())
            self.answer(misses[-1])
        return misses
