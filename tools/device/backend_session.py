"""One connected front-end: receive, judge, show the change to the driver, answer.

Whatever a message takes away from the driver in VM2 is answered only after `publish` returned, that
is, after the driver let go of it (docs/device.md 5.2).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tools.device.backend_rules import (
    DisconnectError,
    RefusalError,
    Rule,
    find_rule,
    judge,
    request_name,
)
from tools.device.misses import Misses
from tools.device.vm1_state import RingState, Vm1State
from tools.vhost_user_abi import U64, ProtocolFeature, Request
from tools.vhost_user_asyncio import receive_async, send_async
from tools.vhost_user_wire import Descriptors, WireError, pending

if TYPE_CHECKING:
    import socket
    from collections import Counter
    from collections.abc import Awaitable, Callable, Iterable
    from typing import TypeAlias

    from tools.device.backend_state import FrontEndState
    from tools.device.vm1_state import Span
    from tools.vhost_user_wire import Message

    Publish: TypeAlias = Callable[[Vm1State], Awaitable[None]]

logger = logging.getLogger(__name__)

LINES_MAX = 16  # a front-end that is refused all the time must not fill a disk
RELEASED_MAX = 64  # descriptors that may wait for the next publication


def disconnected(queue_pairs: int) -> Vm1State:
    """What the driver sees while no front-end is there."""
    return Vm1State(False, 0, (), (RingState(),) * (2 * queue_pairs))


class Session:
    """One connection from its beginning to its end. Runs once, on the event loop's thread.

    Args:
        connection: Non-blocking, the caller's to close after `run`.
        front_end: New; closed by `run`.
        publish: Called with each new state; returns when the driver has followed.
        counters: Refused messages by reason; counted up.
        timeout_s: For the rest of a message that has begun, and for a reply to be taken.
    """

    def __init__(
        self,
        connection: socket.socket,
        front_end: FrontEndState,
        publish: Publish,
        counters: Counter[str],
        timeout_s: float,
    ) -> None:
        self.front_end = front_end
        self.shown = disconnected(len(front_end.rings) // 2)
        self._connection = connection
        self._publish = publish
        self._counters = counters
        self._timeout_s = timeout_s
        self._nothing = self.shown
        self._lines = 0
        self._lock = asyncio.Lock()
        self._answering: asyncio.Task[None] | None = None
        self._channel = -1
        self._misses = Misses(front_end.iotlb.covers, front_end.refuse, self._answer)
        front_end.asked = self._misses.permission

    async def run(self) -> None:
        """Serve until the front-end goes, or has to go; then let everything of it go."""
        try:
            await self._commit()
            cause = await self._converse()
            logger.info("VM1's front-end is gone: %s", cause)
            await self._end_answers()
            await self._show(self._nothing)
        finally:
            await self._end_answers()
            self.front_end.close()

    async def _end_answers(self) -> None:
        self._misses.close()
        if self._answering:
            self._answering.cancel()
            await asyncio.wait([self._answering])

    def miss(self, spans: Iterable[Span]) -> None:
        """Ask the front-end for what the driver misses; a new state answers, whatever comes."""
        self.front_end.forget_refusals()
        for span in spans:
            self._misses.ask(span)
        if not self._misses.outstanding:
            self._answer()

    @property
    def misses(self) -> int:
        """How many were asked for."""
        return self._misses.count

    def _answer(self) -> None:
        """Show the driver what is known by now, as soon as nothing else is being shown."""
        self.front_end.answers += 1
        if self._answering is None:
            self._answering = asyncio.create_task(self._show_answer())
            self._answering.add_done_callback(self._answer_shown)

    async def _show_answer(self) -> None:
        async with self._lock:
            await self._commit()
            self._ask_for_rings()

    def _answer_shown(self, task: asyncio.Task[None]) -> None:
        self._answering = None
        if task.cancelled():
            return
        if error := task.exception():
            logger.error("the answer to a miss is not shown: %s", error)
        elif self.front_end.answers != self.shown.answers and self.shown.connected:
            self._answer()  # one more, while that was shown

    def _completes_a_ring(self) -> bool:
        """Whether the driver is to see one more started, and nothing is still to be answered."""
        front_end, shown = self.front_end, self.shown.rings
        waiting = [n for n, r in enumerate(front_end.rings.rings) if r.kicked > shown[n].started]
        if self._misses.outstanding or not waiting:
            return False
        states = front_end.rings.states()
        return any(states[number].started for number in waiting)

    def _ask_for_rings(self) -> None:
        for span in self.front_end.wanted():
            self._misses.ask(span)

    async def _converse(self) -> str:
        """Serve messages; returns why no more."""
        try:
            while True:
                message = await receive_async(self._connection, self._timeout_s)
                if message is None:
                    return "it closed the connection"
                with Descriptors(message.fds) as fds:
                    async with self._lock:
                        await self._serve(message, fds)
        except (DisconnectError, WireError) as error:
            self._counters["disconnected"] += 1
            return f"disconnected, because it {error}"
        except OSError as error:
            return f"the connection broke ({error})"

    async def _serve(self, message: Message, fds: Descriptors) -> None:
        rule = find_rule(message)
        acknowledge = message.need_reply and self._accepted(ProtocolFeature.REPLY_ACK)
        try:
            judge(message, rule, self.front_end.protocol_features)
            answer = self.front_end.handle(message, fds)
        except RefusalError as refusal:
            fds.close()
            self._refused(message, refusal)
            if not acknowledge and (refusal.must_tell or (rule and rule.answers)):
                text = f"was refused {request_name(message.request)} and asked for no reply"
                raise DisconnectError(text) from refusal
            if acknowledge:
                await self._reply(message, U64.pack(1))
            return
        fds.close()
        if message.request == Request.SET_VRING_KICK:
            self.front_end.forget_refusals()  # VM1 may have mapped meanwhile what it has not
        if self.front_end.translated and self.front_end.channel != self._channel:
            self._channel = self.front_end.channel
            self._misses.open(self._channel)
        # What answers one of several misses is shown with the last of them, and what nobody has
        # asked for when somebody does.
        waits = self.front_end.adds_only and not self._completes_a_ring()
        if not waits and (acknowledge or answer or self._urgent(rule)):
            await self._commit()
            self._ask_for_rings()
        if answer:
            answered = answer()
            payload, sent = answered if isinstance(answered, tuple) else (answered, ())
            await self._reply(message, payload, sent)
        elif acknowledge:
            await self._reply(message, U64.pack(0))

    def _accepted(self, feature: ProtocolFeature) -> bool:
        return bool(self.front_end.protocol_features & feature)

    def _urgent(self, rule: Rule | None) -> bool:
        """Whether to show the driver the change before looking at the next message.

        A driver is set up by some twenty messages: those that only add, and wait in the socket
        already, are shown together.
        """
        return (
            bool(rule and rule.takes_away)
            or len(self.front_end.released) > RELEASED_MAX
            or not pending(self._connection)
        )

    async def _reply(self, message: Message, payload: bytes, fds: tuple[int, ...] = ()) -> None:
        await send_async(self._connection, message.reply(payload, fds), self._timeout_s)

    async def _commit(self) -> None:
        """Let the driver see what has changed, and close what it has let go of."""
        await self._show(self.front_end.vm1_state())
        self.front_end.close_released()
        while self.front_end.notes:
            self._log(logging.WARNING, self.front_end.notes.pop(0))

    async def _show(self, state: Vm1State) -> None:
        if state == self.shown:
            return
        before, self.shown = self.shown, state
        await self._publish(state)
        self.front_end.note_stops(before, state)

    def _refused(self, message: Message, refusal: RefusalError) -> None:
        self._counters[refusal.reason] += 1
        text = f"refused {request_name(message.request)}: it {refusal}"
        self._log(logging.WARNING, text)

    def _log(self, level: int, text: str) -> None:
        self._lines += 1
        if self._lines <= LINES_MAX:
            logger.log(level, "%s", text)
        elif self._lines == LINES_MAX + 1:
            logger.warning("more such lines of this connection are left out; they are counted")
