"""An 82576's VF and its PF in memory, which bite: they do what datasheet and Linux's driver do.

The VF's registers lie in a file, so that the driver's mapping of BAR 0 is the model's memory: what
the port writes to a tail is seen at the next `run` or `receive`. What breaks a rule of the hardware
is noted in `faults`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from guest.function import Area, Identity, Irq, Region, RegionInfo
from guest.mapping import Mapping
from tests.driver.dma_model import DmaModel
from tests.driver.igb_transmit import REPORT, IgbTransmit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest.function import Doorbell

BAR_SIZE = 0x4000
CTRL, STATUS, MEMORY, MAILBOX = 0x0000, 0x0008, 0x0800, 0x0C40
RX, TX = 0x2800, 0x3800  # then: low, high, length, (receive: SRRCTL,) head, tail, control
LOW, HIGH, LENGTH, SRRCTL, HEAD, TAIL, CONTROL = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x18, 0x28
ENABLE = 1 << 25
COUNTERS = {"rx": 0x0F10, "tx": 0x0F14, "rx_bytes": 0x0F18, "tx_bytes": 0x0F34}
EIMS, EIMC, EIAC, EIAM, IVAR = 0x1524, 0x1528, 0x152C, 0x1530, 0x1700
IVAR_VALID = 0x80
REQUEST, ACKNOWLEDGE, VFU, PFU, PFSTS, PFACK, RSTI, RSTD = (1 << bit for bit in range(8))
READ_CLEARS = PFSTS | PFACK | RSTD
ACK, NACK, CTS = 1 << 31, 1 << 30, 1 << 29
_EXCHANGE = ctypes.CDLL("libatomic.so.1")["__atomic_exchange_4"]  # comes with gcc
_SEQUENTIAL = 5  # __ATOMIC_SEQ_CST


class IgbModel(DmaModel):
    """One VF with one queue pair, as an open function, and its PF.

    Attributes:
        pf_up: Whether the PF answers. pf_mac: What it gives the VF, or zeros.
        pf_refuses: Messages it answers with a refusal.
        messages: What the VF sent, by first word. vlans: Those it asked for, in order.
        completes: Whether transmitted frames are reported as done.
        reports: Whether received frames, which are counted, are reported.
        stops: Whether queues stop when they are disabled, and not by a reset only.
        keeps_fcs: Whether frames are received with theirs (RCTL.SECRC off).
        strips: Whether VLAN tags are taken out of frames.
        heeds_limit: Whether frames longer than the PF lets the VF receive are dropped.
        irq_max: MSI-X vectors that it has. irqs: Eventfds, by vector. interrupts: How many it sent.
        masks_itself: Whether the PF has EIAM heeded (GPIE.EIAME).
        wire: Frames sent. transmit: Its transmit queue since it was reset.
        gone: All reads are ones.
    """

    name = "0000:01:10.0"
    irq_max = 3

    def __init__(self) -> None:
        super().__init__()
        self.pf_up = True
        self.pf_mac = bytes.fromhex("525400123456")
        self.pf_refuses: set[int] = set()
        self.messages: list[int] = []
        self.vlans: list[int] = []
        self.mac = b""
        self.frame_limit = 1518
        self.completes = True
        self.reports = True
        self.stops = True
        self.keeps_fcs = False
        self.heeds_limit = True
        self.strips = True
        self.irqs: tuple[int, ...] = ()
        self.interrupts = 0
        self.masks_itself = True
        self._causes = self._enabled = 0  # EICR and EIMS
        self._tails: dict[int, int] = {}  # of queues when they were stopped
        self.wire: list[bytes] = []
        self.gone = False
        self.closed = False
        self.identity_now = Identity(0x8086, 0x10CA, 0x020000, 1, 0x8086, 0)
        self._clear_to_send = False
        self.transmit = IgbTransmit(self.memory, self.faults)
        self.request = os.eventfd(0, os.EFD_CLOEXEC)
        self._file = os.memfd_create("bar0", os.MFD_CLOEXEC)
        os.ftruncate(self._file, BAR_SIZE)
        self._bar = mmap.mmap(self._file, BAR_SIZE)
        self.mappings: list[Mapping] = []
        self.link(up=True)

    # ---- registers, as the model sees them

    def get(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self._bar, offset)[0])

    def put(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self._bar, offset, value & 0xFFFFFFFF)

    def _take(self, offset: int) -> int:
        """What was written to a register since the last time, by whatever thread."""
        at = ctypes.c_uint32.from_buffer(self._bar, offset)
        return int(_EXCHANGE(ctypes.byref(at), 0, _SEQUENTIAL))

    def link(self, *, up: bool) -> None:
        self.put(STATUS, 0x80 | (2 if up else 0))

    def ping(self, *, clear_to_send: bool) -> None:
        """The PF says something: its link changed, or it is going to be reset."""
        self._clear_to_send = clear_to_send
        self.put(MEMORY, 0x0100 | (CTS if clear_to_send else 0))
        self.put(MAILBOX, self.get(MAILBOX) | PFSTS)

    @property
    def receive_count(self) -> int:
        """Descriptors of the receive ring."""
        return self.get(RX + LENGTH) // 16

    def reset_vf(self) -> None:
        """A function-level reset, whoever asked for it."""
        for ring in (RX, TX):
            self.put(ring + CONTROL, 0)
            for register in (LOW, HIGH, LENGTH, HEAD, TAIL):
                self.put(ring + register, 0)
        for register in (EIMS, EIMC, EIAC, EIAM, IVAR):
            self.put(register, 0)
        self._causes = self._enabled = 0
        self._tails.clear()
        self._clear_to_send = False
        self.transmit = IgbTransmit(self.memory, self.faults)

    # ---- guest.function.Function

    def fileno(self) -> int:
        return self.request

    def identity(self) -> Identity:
        return self.identity_now

    def region_count(self) -> int:
        return 9

    def region(self, index: int) -> RegionInfo:
        size = BAR_SIZE if index == Region.BAR0 else 0
        return RegionInfo(index, size, True, True, (Area(0, size),) if size else ())

    def read(self, index: int, offset: int, size: int) -> bytes:
        assert (index, size, offset % 4) == (Region.BAR0, 4, 0)
        if self.gone:
            return b"\xff" * 4
        value = self.get(offset)
        if offset == MAILBOX:
            self.put(MAILBOX, value & ~READ_CLEARS)
            value &= ~(REQUEST | ACKNOWLEDGE)
        return struct.pack("<I", value)

    def write(self, index: int, offset: int, data: bytes) -> None:
        assert (index, len(data), offset % 4) == (Region.BAR0, 4, 0)
        value = int(struct.unpack("<I", data)[0])
        if offset == CTRL:
            if value & 1 << 26:
                self.reset_vf()
        elif offset == MAILBOX:
            self._write_mailbox(value)
        elif MEMORY <= offset < MEMORY + 64:
            if not self.get(MAILBOX) & VFU:
                self.faults.append("the mailbox is written without being owned")
            self.put(offset, value)
        elif offset == RX + TAIL and not self.get(RX + CONTROL) & ENABLE:
            if self.get(offset) != self._tails.pop(RX, self.get(offset)):
                self.faults.append("a stopped queue is given descriptors")
            self.put(offset, value)
        elif offset in (RX + CONTROL, TX + CONTROL):
            self._write_control(offset - CONTROL, value)
        elif offset == STATUS or offset in COUNTERS.values():
            self.faults.append(f"a write to the read-only register {offset:#x}")
        else:
            self.put(offset, value)

    def _write_control(self, ring: int, value: int) -> None:
        if value & ENABLE:
            if self.get(ring + LOW) % 128 or self.get(ring + LENGTH) % 128:
                self.faults.append("a ring is enabled that is not aligned to 128 bytes")
            if not self.get(ring + LENGTH) or self.get(ring + HEAD) != self.get(ring + TAIL):
                self.faults.append("a ring is enabled that is not an empty ring")
            if not self._clear_to_send:
                self.faults.append("a ring is enabled before the PF serves the VF")
        if value & ENABLE or self.stops:
            self.put(ring + CONTROL, value)
            self._tails[ring] = self.get(ring + TAIL)

    # ---- the PF

    def _write_mailbox(self, value: int) -> None:
        status = self.get(MAILBOX) & ~VFU
        if value & VFU and not status & PFU:
            status |= VFU
        self.put(MAILBOX, status)
        if value & REQUEST and self.pf_up:
            self._answer()

    def _answer(self) -> None:
        words = struct.unpack_from("<3I", self._bar, MEMORY)
        message = words[0] & 0xFFFF
        self.messages.append(words[0])
        reply = [words[0] & 0xFFFF]
        if message == 1:
            self._clear_to_send = True
            self.mac = self.pf_mac
            accepted = any(self.pf_mac)
            reply += struct.unpack("<II", self.pf_mac + bytes(2))
        else:
            accepted = self._clear_to_send and message not in self.pf_refuses
            reply[0] |= CTS if self._clear_to_send else 0
            if accepted and message == 2:
                self.mac = struct.pack("<II", words[1], words[2])[:6]
            if accepted and message == 4 and words[0] >> 16 & 0xFF:
                self.vlans.append(words[1])
                self.strips = bool(words[1])
            if accepted and message == 5:
                self.frame_limit = words[1]
        reply[0] |= ACK if accepted else NACK
        struct.pack_into(f"<{len(reply)}I", self._bar, MEMORY, *reply)
        self.put(MAILBOX, self.get(MAILBOX) | PFSTS | PFACK)

    # ---- rings

    def _descriptor(self, ring: int) -> memoryview | None:
        """The descriptor at the head, or None: the VF owns none."""
        head, tail, count = (
            self.get(ring + HEAD),
            self.get(ring + TAIL),
            self.get(ring + LENGTH) // 16,
        )
        if not self.get(ring + CONTROL) & ENABLE or head == tail:
            return None
        if tail >= count:
            self.faults.append(f"a tail of {tail} in a ring of {count}")
            return None
        base = self.get(ring + HIGH) << 32 | self.get(ring + LOW)
        return self.memory(base + 16 * head, 16)

    def _advance(self, ring: int) -> None:
        self.put(ring + HEAD, (self.get(ring + HEAD) + 1) % (self.get(ring + LENGTH) // 16))

    def _count(self, direction: str, size: int) -> None:
        for name, more in ((direction, 1), (f"{direction}_bytes", size + 4)):
            self.put(COUNTERS[name], self.get(COUNTERS[name]) + more)

    def run(self, limit: int = 1 << 30) -> None:
        """Send what the transmit ring holds, at most limit descriptors."""
        while limit and (descriptor := self._descriptor(TX)) is not None:
            limit -= 1
            for frame in self.transmit.take(bytes(descriptor)):
                self.wire.append(frame)
                self._count("tx", len(frame))
            command, status = struct.unpack_from("<II", descriptor, 8)
            if command & REPORT and self.completes:
                descriptor[12:] = struct.pack("<I", status | 1)
            self._advance(TX)

    def report_all_sent(self) -> None:
        """Write back every descriptor of the transmit ring, whether it was given, sent, or not."""
        base = self.get(TX + HIGH) << 32 | self.get(TX + LOW)
        for at in range(base, base + self.get(TX + LENGTH), 16):
            self.memory(at + 12, 4)[0] |= 1

    def receive(self, frame: bytes, tag: int | None = None) -> bool:
        """A frame from the wire; False if it was dropped: too long, or no descriptors.

        tag: It has this VLAN tag as well.
        """
        limit = (self.get(RX + SRRCTL) & 0x7F) << 10
        free = (self.get(RX + TAIL) - self.get(RX + HEAD)) % max(1, self.get(RX + LENGTH) // 16)
        if self.heeds_limit and len(frame) + (4 if tag is not None else 0) + 4 > self.frame_limit:
            return False
        if tag is not None and not self.strips:
            frame, tag = frame[:12] + struct.pack(">HH", 0x8100, tag) + frame[12:], None
        if self.keeps_fcs:
            frame += b"\xfc\xfc\xfc\xfc"
        if len(frame) > free * limit:
            return False
        self._count("rx", len(frame))
        if not self.reports:
            return True
        for at in range(0, len(frame), limit):
            part = frame[at : at + limit]
            last = at + limit >= len(frame)
            status = 1 | (2 if last else 0) | (8 if last and tag is not None else 0)
            self.report(part, status, len(part), tag or 0 if last else 0)
        return True

    def report(self, data: bytes, status: int, length: int, tag: int = 0) -> None:
        """Fill one receive descriptor's buffer and write it back, true or not."""
        descriptor = self._descriptor(RX)
        assert descriptor is not None
        address, header = struct.unpack("<QQ", descriptor)
        if header:
            self.faults.append("a receive descriptor with a header address, or still written back")
        self.memory(address, len(data))[:] = data
        descriptor[:] = struct.pack("<QIHH", 0x1234, status, length, tag)
        self._advance(RX)
        vector = self.get(IVAR) & 0xFF
        if vector & IVAR_VALID:
            self._causes |= 1 << (vector & 7)
        self.interrupt()

    def claim(self, index: int, length: int) -> None:
        """Write a receive descriptor back that was not filled, and need not even be the VF's."""
        base = self.get(RX + HIGH) << 32 | self.get(RX + LOW)
        at = base + 16 * (index % self.receive_count)
        self.memory(at + 8, 8)[:] = struct.pack("<IHH", 3, length, 0)

    def interrupt(self) -> None:
        """Send what is due, after what the driver has turned on and off since it was last asked.

        Its registers are memory here: where it did both, which one was the last is not seen, and
        what is due is sent. It may have been on when that came, and too much wakes nobody wrongly.
        """
        turned_on, turned_off = self._take(EIMS), self._take(EIMC)  # in this order: see above
        self._enabled = (self._enabled & ~turned_off) | turned_on
        due = self._causes & self._enabled
        for vector, fd in enumerate(self.irqs):
            if due & 1 << vector:
                self.interrupts += 1
                os.eventfd_write(fd, 1)
        self._causes &= ~(due & self.get(EIAC))
        if self.masks_itself:
            self._enabled &= ~(due & self.get(EIAM))

    # ---- the rest of guest.function.Function

    def map_area(self, index: int, area: Area, *, writable: bool) -> Mapping:
        assert index == Region.BAR0
        mapping = Mapping(self._file, area.size, area.offset, writable=writable, name="bar0")
        self.mappings.append(mapping)
        return mapping

    def doorbells(self, index: int, offsets: Sequence[int]) -> dict[int, Doorbell]:
        raise VhostPciError("ring", self.name, f"region {index} has no doorbells at {offsets}")

    def irq_count(self, index: int) -> int:
        return self.irq_max if index == Irq.MSIX else 0

    def events(self, index: int, offsets: Sequence[int]) -> dict[int, int]:
        raise VhostPciError("wait for", self.name, f"region {index} has no events at {offsets}")

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        if index != Irq.MSIX or len(eventfds) > self.irq_max:
            raise VhostPciError("arm", self.name, f"interrupt {index}, {eventfds}")
        self.irqs = tuple(eventfds)

    def reset(self) -> None:
        self.reset_vf()

    def _check_unused(self, iova: int, size: int) -> None:
        """No enabled ring lies there, and no descriptor the VF owns has its buffer there."""
        for ring in (RX, TX):
            base = self.get(ring + HIGH) << 32 | self.get(ring + LOW)
            count = self.get(ring + LENGTH) // 16
            if not self.get(ring + CONTROL) & ENABLE:
                continue
            if iova <= base < iova + size:
                self.faults.append("memory is taken away from an enabled queue")
                continue
            at, tail = self.get(ring + HEAD), self.get(ring + TAIL)
            while at != tail:
                (address,) = struct.unpack("<Q", self.memory(base + 16 * at, 8))
                if iova <= address < iova + size:
                    self.faults.append("a window is taken away from frames in the ring")
                at = (at + 1) % count

    def close(self) -> None:
        self.closed = True

    def dispose(self) -> None:
        """The machine is gone."""
        self._bar.close()
        os.close(self._file)
        os.close(self.request)
