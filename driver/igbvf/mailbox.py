"""The mailbox between a VF and its PF: 16 words of memory and a control register.

Source: Intel 82576EB datasheet, 7.10 (virtualization) and 8.14; the messages are those of the
drivers (Linux igb and igbvf agree on them; the datasheet leaves them open). Either side takes the
buffer, writes, and lets it go with a request; the other takes it, reads, and acknowledges. The PF
serves a VF only after that VF's RESET (it is then "clear to send", which every reply says).
"""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING

from driver.igbvf.registers import MAILBOX, MAILBOX_MEMORY, MailboxBit
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from driver.igbvf.registers import Registers

_ANSWER_S = 1.0
_PAUSE_S = 0.0005
_CLEARS_ON_READ = MailboxBit.PF_WROTE | MailboxBit.PF_ACKNOWLEDGED | MailboxBit.PF_RESET_DONE


class Message(enum.IntEnum):
    """The low 16 bits of a message's first word."""

    RESET = 0x01
    SET_MAC_ADDRESS = 0x02
    SET_MULTICAST = 0x03
    SET_VLAN = 0x04
    SET_FRAME_SIZE = 0x05
    SET_PROMISCUOUS = 0x06
    FROM_PF = 0x0100


class Verdict(enum.IntFlag):
    """The high bits of a reply's first word."""

    CLEAR_TO_SEND = 1 << 29
    REFUSED = 1 << 30
    ACCEPTED = 1 << 31


PROMISCUOUS_MULTICAST = 0x02 << 16  # SET_PROMISCUOUS: what is wanted, in bits 16 to 23
ADD_VLAN = 0x01 << 16  # SET_VLAN: likewise


class Mailbox:
    """One VF's side. Thread rule: one thread at a time.

    Args:
        registers: The VF's.
        name: The VF's, for messages.
    """

    def __init__(self, registers: Registers, name: str) -> None:
        self._registers = registers
        self._name = name
        self._seen = MailboxBit(0)

    def _look(self) -> MailboxBit:
        """The control register, with what earlier reads cleared."""
        now = MailboxBit(self._registers.read(MAILBOX) & 0xFF)
        self._seen |= now & _CLEARS_ON_READ
        return now | self._seen

    def _take_note(self, bits: MailboxBit) -> bool:
        """Whether one of the bits is or was set; forgets them."""
        found = bool(self._look() & bits)
        self._seen &= ~bits
        return found

    def _wait(self, bits: MailboxBit, what: str) -> None:
        deadline = time.monotonic() + _ANSWER_S
        while not self._take_note(bits):
            if time.monotonic() > deadline:
                remedy = "see that the PF's interface is up: ip link set PF up"
                raise VhostPciError("use", self._name, f"its PF {what}", remedy)
            time.sleep(_PAUSE_S)

    def _take_buffer(self) -> None:
        """Own the buffer; the PF may have it for a moment."""
        deadline = time.monotonic() + _ANSWER_S
        while True:
            self._registers.write(MAILBOX, MailboxBit.OURS)
            if self._look() & MailboxBit.OURS:
                return
            if time.monotonic() > deadline:
                raise VhostPciError("use", self._name, "its PF keeps the mailbox")
            time.sleep(_PAUSE_S)

    def wait_for_pf(self) -> None:
        """Wait until the PF is not in reset, and forget what the mailbox told before.

        Raises:
            VhostPciError: It stays in reset.
        """
        deadline = time.monotonic() + _ANSWER_S
        while self._look() & MailboxBit.PF_IN_RESET:
            if time.monotonic() > deadline:
                raise VhostPciError("use", self._name, "its PF stays in reset")
            time.sleep(_PAUSE_S)
        self._seen = MailboxBit(0)

    def request(self, words: list[int], reply_words: int = 1) -> list[int]:
        """Send a message and wait for its reply: reply_words words, the first with a `Verdict`.

        Raises:
            VhostPciError: The PF does not take it, does not answer, or answers something else.
        """
        self._take_buffer()
        self._look()
        self._seen &= ~(MailboxBit.PF_WROTE | MailboxBit.PF_ACKNOWLEDGED)
        for index, word in enumerate(words):
            self._registers.write(MAILBOX_MEMORY, word, index)
        self._registers.write(MAILBOX, MailboxBit.REQUEST)  # lets the buffer go, too
        self._wait(MailboxBit.PF_ACKNOWLEDGED, "does not take its messages")
        self._wait(MailboxBit.PF_WROTE, "does not answer")
        reply = self._read(reply_words)
        if reply[0] & 0xFFFF != words[0] & 0xFFFF:
            cause = f"its PF answered {reply[0]:#x} to message {words[0]:#x}"
            raise VhostPciError("use", self._name, cause)
        return reply

    def _read(self, words: int) -> list[int]:
        self._take_buffer()
        read = [self._registers.read(MAILBOX_MEMORY, index) for index in range(words)]
        self._registers.write(MAILBOX, MailboxBit.ACKNOWLEDGE)  # lets the buffer go, too
        return read

    def trouble(self) -> str:
        """Why the VF must be set up anew, or "": the PF was reset, or no longer serves us.

        The PF pings its VFs when its link changes and when it is going to be reset; without
        CLEAR_TO_SEND it is the latter.
        """
        if self._look() & MailboxBit.PF_IN_RESET:
            return "its PF is in reset"
        if self._take_note(MailboxBit.PF_RESET_DONE):
            return "its PF was reset"
        if self._take_note(MailboxBit.PF_WROTE):
            message = self._read(1)[0]
            if not message & Verdict.CLEAR_TO_SEND:
                return "its PF wants it to be reset"
        return ""
