"""One VF by its registers: reset, addresses, queues, link and counters.

Source: Intel 82576EB datasheet, 4.5 (initialization) and 8.26.
"""

from __future__ import annotations

import struct
import threading
import time
from typing import TYPE_CHECKING

from driver.igbvf import registers as reg
from driver.igbvf.mailbox import ADD_VLAN, PROMISCUOUS_MULTICAST, Mailbox, Message, Verdict
from driver.igbvf.queue import BUFFER_BYTES
from guest.errors import DeviceGoneError, VhostPciError
from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driver.igbvf.queue import Ring
    from guest.function import Function

MTU_MIN = 68  # RFC 791
MTU_MAX = 9216  # what the PFs' drivers let a VF have
FRAME_OVERHEAD = 18  # an Ethernet header and a VLAN tag
FRAME_BYTES_MAX = MTU_MAX + FRAME_OVERHEAD
FCS_BYTES = 4
RECEIVE_VECTOR = 0
_ENABLE_S = 1.0
_PAUSE_S = 0.0005
_NO_ADDRESS = bytes(6)


class Counters(NamedTuple):
    """What the VF counted since it was opened: frames, and their bytes with FCS (8.26)."""

    packets_received: int = 0
    packets_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    multicasts_received: int = 0


_COUNTERS = (reg.VFGPRC, reg.VFGPTC, reg.VFGORC, reg.VFGOTC, reg.VFMPRC)


class Device:
    """An open VF. Thread rule: one thread at a time.

    Args:
        function: Open, with memory decode and bus mastering on.
    """

    def __init__(self, function: Function) -> None:
        self.name = function.name
        self._registers = reg.Registers(function)
        self._mailbox = Mailbox(self._registers, self.name)
        self._last = (0,) * len(_COUNTERS)
        self._totals = (0,) * len(_COUNTERS)
        self._counting = threading.Lock()
        self._troubled = False

    def reset(self) -> bytes:
        """Reset queues and filters and make the PF serve us; the address the PF chose, or zeros.

        Raises:
            VhostPciError: The PF does not answer.
        """
        self._registers.write(reg.CTRL, self._registers.read(reg.CTRL) | reg.Ctrl.RESET)
        self._mailbox.wait_for_pf()
        verdict, low, high = self._mailbox.request([Message.RESET], reply_words=3)
        self._last = self._read_counters()
        # A PF that has no address for us refuses the message's sense, and serves us all the same.
        return struct.pack("<II", low, high)[:6] if verdict & Verdict.ACCEPTED else _NO_ADDRESS

    def set_address(self, address: bytes) -> None:
        """Receive what is sent to this address, and be allowed to send from it.

        Raises:
            VhostPciError: The PF refuses.
        """
        words = struct.unpack("<II", address + bytes(2))
        if not self._asked(Message.SET_MAC_ADDRESS, *words):
            text = address.hex(":")
            remedy = f"on its host: ip link set PF vf NUMBER mac {text}"
            raise VhostPciError("use", self.name, f"its PF does not let it have {text}", remedy)

    def set_frame_size(self, size: int) -> bool:
        """Have the PF keep longer frames from the VF; whether it promises that.

        Linux's makes it VMOLR.RLPML, which counts all that a frame has on the wire.

        Args:
            size: In bytes, with tag and FCS.
        """
        return self._asked(Message.SET_FRAME_SIZE, size)

    def set_multicast(self) -> bool:
        """Receive all multicast; whether the PF lets us."""
        return self._asked(Message.SET_PROMISCUOUS | PROMISCUOUS_MULTICAST)

    def join_vlans(self, numbers: Sequence[int]) -> None:
        """Send and receive frames of these VLANs, beside untagged ones.

        Raises:
            VhostPciError: The PF refuses one.
        """
        for number in numbers:
            if not self._asked(Message.SET_VLAN | ADD_VLAN, number):
                remedy = "it has room for 32 of all VFs, and none where it tags itself: ip link set"
                remedy += " PF vf NUMBER vlan 0"
                cause = f"its PF does not let it into VLAN {number}"
                raise VhostPciError("use", self.name, cause, remedy)
        if numbers:
            # Linux's PF has tags taken out of frames from the first VLAN on, and left in from
            # VLAN 0 on. If it refuses, they are put back.
            self._asked(Message.SET_VLAN | ADD_VLAN, 0)

    def _asked(self, message: int, *words: int) -> bool:
        return bool(self._mailbox.request([message, *words])[0] & Verdict.ACCEPTED)

    def start_queue(self, index: int, rx: Ring, tx: Ring) -> None:
        """Enable a queue pair, off since `reset`, with both rings empty: head and tail 0.

        Raises:
            VhostPciError: A queue does not come up.
        """
        write = self._registers.write
        for ring, low, high, length, head, tail in (
            (rx, reg.RDBAL, reg.RDBAH, reg.RDLEN, reg.RDH, reg.RDT),
            (tx, reg.TDBAL, reg.TDBAH, reg.TDLEN, reg.TDH, reg.TDT),
        ):
            write(low, ring.iova & 0xFFFFFFFF, index)
            write(high, ring.iova >> 32, index)
            write(length, ring.size, index)
            write(head, 0, index)
            write(tail, 0, index)
        # A full queue must not hold up those of the other VFs: drop.
        flags = reg.Srrctl.ADVANCED_ONE_BUFFER | reg.Srrctl.DROP_ENABLE
        write(reg.SRRCTL, flags | BUFFER_BYTES >> 10, index)
        for control in (reg.RXDCTL, reg.TXDCTL):
            write(control, reg.QueueControl.ENABLE, index)
            self._wait_control(control, index, reg.QueueControl.ENABLE)

    def use_interrupts(self) -> None:
        """Have the receive queue of pair 0 use vector 0, which is off; `reset` ends it.

        Its cause stays until it is sent, so one of while it is off is sent when it is turned on.
        """
        write = self._registers.write
        write(reg.VTIVAR, reg.Ivar.VALID | RECEIVE_VECTOR)
        for once in (reg.VTEIAC, reg.VTEIAM):
            write(once, 1 << RECEIVE_VECTOR)

    def stop_queue(self, index: int) -> None:
        """Disable a queue pair; when it returns, the VF touches neither ring any more.

        Raises:
            VhostPciError: A queue does not stop.
        """
        for control in (reg.RXDCTL, reg.TXDCTL):
            self._stop(control, index)

    def halt(self, index: int) -> None:
        """Stop a queue pair; one that does not stop takes a reset of the VF.

        Raises:
            DeviceGoneError: It left the bus.
        """
        try:
            self.stop_queue(index)
        except DeviceGoneError:
            raise
        except VhostPciError:
            self._registers.write(reg.CTRL, reg.Ctrl.RESET)

    def stop_receive(self, index: int) -> None:
        """Disable a receive queue; when it returns, the VF touches neither ring nor buffers.

        Raises:
            VhostPciError: It does not stop.
        """
        self._stop(reg.RXDCTL, index)

    def start_receive(self, index: int) -> None:
        """Enable a stopped receive queue with its ring empty: head and tail 0.

        Raises:
            VhostPciError: It does not come up.
        """
        for end in (reg.RDH, reg.RDT):
            self._registers.write(end, 0, index)
        self._registers.write(reg.RXDCTL, reg.QueueControl.ENABLE, index)
        self._wait_control(reg.RXDCTL, index, reg.QueueControl.ENABLE)

    def receive_ends(self, index: int) -> tuple[int, int]:
        """Head and tail of a receive queue: alike, where the VF has no descriptor left."""
        tail = self._registers.read(reg.RDT, index)
        return self._registers.read(reg.RDH, index), tail

    def _stop(self, control: reg.Register, index: int) -> None:
        self._registers.write(control, 0, index)
        self._wait_control(control, index, reg.QueueControl(0))

    def _wait_control(self, control: reg.Register, index: int, wanted: reg.QueueControl) -> None:
        deadline = time.monotonic() + _ENABLE_S
        while self._registers.read(control, index) & reg.QueueControl.ENABLE != wanted:
            if time.monotonic() > deadline:
                does = "come up" if wanted else "stop"
                raise VhostPciError("use", self.name, f"its {control.name} does not {does}")
            time.sleep(_PAUSE_S)

    def link_up(self) -> bool:
        """Whether the VF's port has a link."""
        return bool(self._registers.read(reg.STATUS) & reg.DeviceStatus.LINK_UP)

    def trouble(self, index: int) -> str:
        """Why the VF must be set up anew, or "". To be asked once in a while."""
        trouble = self._find_trouble(index)
        self._troubled = bool(trouble)
        return trouble

    def _find_trouble(self, index: int) -> str:
        try:
            trouble = self._mailbox.trouble()
            if trouble:
                return trouble
            for control in (reg.RXDCTL, reg.TXDCTL):
                if not self._registers.read(control, index) & reg.QueueControl.ENABLE:
                    return "it was reset"
        except DeviceGoneError as error:
            return error.cause
        return ""

    def _read_counters(self) -> tuple[int, ...]:
        return tuple(self._registers.read(counter) for counter in _COUNTERS)

    def counters(self) -> Counters:
        """Counts since `reset`, if it is asked more often than they go round. On any thread.

        Those of before its trouble, if it has any: a PF's reset sets the registers to 0, and one
        that left the bus reads as ones.
        """
        with self._counting:
            now = self._last if self._troubled else self._read_counters()
            if set(now) == {reg.ALL_ONES}:
                now = self._last
            self._totals = tuple(
                total + (new - last) % (1 << 32)
                for total, new, last in zip(self._totals, now, self._last, strict=True)
            )
            self._last = now
            return Counters(*self._totals)

    @property
    def counted(self) -> Counters:
        """The last `counters`, of a VF that may have left the bus."""
        return Counters(*self._totals)
