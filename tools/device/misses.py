"""What VM1's front-end is asked for on the back-end's own channel: misses of the IOTLB.

The front-end first sends the update, if VM1's IOMMU has one, and then acknowledges the miss.
Reference: QEMU's docs/interop/vhost-user.rst, "Back-end communication" and "IOMMU support".
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from tools.device.memory_table import ADDRESS_LIMIT
from tools.device.vm1_state import Span
from tools.vhost_user_abi import (
    IOTLB,
    U64,
    VERSION,
    BackendRequest,
    HeaderFlag,
    IotlbKind,
)
from tools.vhost_user_asyncio import receive_async
from tools.vhost_user_wire import Descriptors, Message, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

PAGE_BYTES = 4096
ASKED_MAX = 256  # pages at once; who wants more asks again
SENT_MAX = 32  # of them on the way: they fit any socket's buffer
ANSWER_TIMEOUT_S = 5.0


class Misses:
    """Asks, page by page, until all of it is answered. Thread rule: the event loop's.

    Args:
        covered: Whether an address is known by now, with a permission.
        refused: Called with what VM1's IOMMU does not have.
        answered: Called whenever nothing is left to be answered.
    """

    def __init__(
        self,
        covered: Callable[[int, int], bool],
        refused: Callable[[Span], None],
        answered: Callable[[], None],
    ) -> None:
        self._covered = covered
        self._refused = refused
        self._answered = answered
        self._channel: socket.socket | None = None
        self._listener: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked: dict[int, int] = {}  # page: permission
        self._waiting: deque[Span] = deque()
        self._sent: deque[Span] = deque()
        self._late = 0  # of the oldest sent: they are given up
        self.count = 0

    @property
    def outstanding(self) -> bool:
        """Whether anything is to be answered."""
        return bool(self._asked)

    def open(self, fd: int) -> None:
        """Ask on this socket from now on; it stays the caller's."""
        asked = self.outstanding
        self.close()
        if asked:
            self._answered()  # asked for again, it is on the new one
        self._channel = socket.socket(fileno=os.dup(fd))
        self._channel.setblocking(False)
        self._listener = asyncio.create_task(self._listen(self._channel))

    def ask(self, span: Span) -> None:
        """Ask for what is not known of a span's first ASKED_MAX pages, and not asked for yet."""
        first = span.address & -PAGE_BYTES
        end = min(span.address + span.length, first + ASKED_MAX * PAGE_BYTES, ADDRESS_LIMIT)
        for page in range(first, end, PAGE_BYTES):
            asked = self._asked.get(page, 0)
            if len(self._asked) < ASKED_MAX and span.permission & ~asked:
                self._want(page, span.permission, asked)
        self._send()

    def _want(self, page: int, permission: int, asked: int) -> None:
        if not self._covered(page, permission):
            self._asked[page] = asked | permission
            self._waiting.append(Span(page, PAGE_BYTES, permission))

    def permission(self, address: int, size: int) -> int:
        """What was asked for within these addresses; 0: nothing."""
        asked = 0
        if size <= PAGE_BYTES:
            return self._asked.get(address & -PAGE_BYTES, 0)
        for page, permission in self._asked.items():
            asked |= permission if address <= page < address + size else 0
        return asked

    def _send(self) -> None:
        while self._waiting and len(self._sent) < SENT_MAX:
            span = self._waiting.popleft()
            if self._covered(span.address, span.permission):
                self._settle(span)  # by the update of a larger page
                continue
            payload = IOTLB.pack(span.address, 0, 0, span.permission, IotlbKind.MISS)
            flags = VERSION | HeaderFlag.NEED_REPLY
            message = Message(BackendRequest.IOTLB_MSG, flags, payload + bytes(6))
            self._sent.append(span)
            self.count += 1
            try:
                if self._channel is None:
                    raise BrokenPipeError
                self._channel.sendall(message.pack())
            except OSError:
                self._give_up("does not take misses")
                return
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None
        if self._asked:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(ANSWER_TIMEOUT_S, self._expire)

    def _expire(self) -> None:
        """The front-end took too long; what it still answers is of no use any more."""
        logger.warning("VM1's front-end did not answer a miss within %g s", ANSWER_TIMEOUT_S)
        for span in (*islice(self._sent, self._late, None), *self._waiting):
            self._refused(span)
        self._asked.clear()
        self._waiting.clear()
        self._late = len(self._sent)
        self._answered()

    def _give_up(self, why: str) -> None:
        """Whatever is not answered is refused, and the channel is of no use any more."""
        if self._channel is not None:
            logger.warning("VM1's front-end %s", why)
        asked = self.outstanding
        for span in (*islice(self._sent, self._late, None), *self._waiting):
            self._refused(span)
        self.close()
        if asked:
            self._answered()

    async def _listen(self, channel: socket.socket) -> None:
        """Take answers until the front-end closes the channel, or says nonsense."""
        why = "closed its back-end channel"
        try:
            while message := await receive_async(channel, ANSWER_TIMEOUT_S):
                with Descriptors(message.fds):
                    self._take(message)
        except (OSError, WireError) as error:
            why = f"broke its back-end channel: it {error}"
        self._listener = None
        self._give_up(why)

    def _take(self, message: Message) -> None:
        if not message.is_reply or len(message.payload) != U64.size or not self._sent:
            raise WireError("sent what answers no miss")
        span = self._sent.popleft()
        if self._late:
            self._late -= 1
            self._send()
            return
        if U64.unpack(message.payload) != (0,):
            self._refused(span)
        self._settle(span)
        self._send()
        if not self._asked:
            self._answered()

    def _settle(self, span: Span) -> None:
        """Nothing is left to be answered of a page, unless it was asked for twice."""
        open_ = (*islice(self._sent, self._late, None), *self._waiting)
        if all(each.address != span.address for each in open_):
            self._asked.pop(span.address, None)

    def close(self) -> None:
        """Ask for nothing more. Twice is fine."""
        for pending in (self._timer, self._listener):
            if pending:
                pending.cancel()
        self._timer = self._listener = None
        if self._channel:
            self._channel.close()
        self._channel = None
        self._asked.clear()
        self._sent.clear()
        self._waiting.clear()
        self._late = 0
