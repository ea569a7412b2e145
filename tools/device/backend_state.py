"""One connection of a front-end: what was negotiated, its memory, its rings.

Does no input or output: a message goes in, and an answer comes out that is to be asked for once the
driver in VM2 has followed. Reference: QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from typing import TYPE_CHECKING

from driver.state_area import MISS_CAPACITY
from tools.device import backend_rules as rules
from tools.device.backend_rules import Reason, RefusalError
from tools.device.commit_area import COMMIT_SIZE
from tools.device.dirty_log import Log, check_log, make_log
from tools.device.iotlb import Iotlb, TranslatedTable
from tools.device.memory_table import MemoryTable, RegionDescription, is_sealed
from tools.device.offer import MTU_MIN
from tools.device.ring_set import RingSet
from tools.device.vm1_state import Announcement, Span, Vm1State
from tools.vhost_user_abi import (
    INFLIGHT,
    IOTLB,
    LOG,
    MEMORY_HEADER,
    MEMORY_REGION,
    SINGLE_REGION,
    U64,
    DeviceStatus,
    Feature,
    IotlbKind,
    ProtocolFeature,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.device.commit_area import CommitArea
    from tools.device.offer import Offer
    from tools.device.ring_set import Answer, Handler
    from tools.vhost_user_wire import Descriptors, Message


class FrontEndState:
    """The state of one connection, changed by `handle` only.

    Owns every descriptor it took. Those it needs no longer are in `released`: whoever shows the
    state to the driver closes them afterwards. What an operator should know is in `notes`, until
    somebody logs it. `close` ends it. Not to be shared by threads.

    iotlb: what is known of VM1's I/O virtual addresses; asked tells with which permission an
    address was asked for. adds_only: the last message took nothing from the driver. answers: how
    often all misses were answered.

    Args:
        queue_pairs: How many the device has, 1 to 128.
        offer: What it may accept.
        commits: Where the driver leaves the positions of packed rings.
    """

    def __init__(self, queue_pairs: int, offer: Offer, commits: CommitArea) -> None:
        self._offer = offer
        self._commits = commits
        self.mtu = 0  # until NET_SET_MTU
        self._announcement = Announcement()
        self.released: list[int] = []
        self.notes: list[str] = []
        self.rings = RingSet(queue_pairs, commits, self.released, self.notes)
        self.table = MemoryTable()
        self.features: int | None = None
        self.protocol_features = ProtocolFeature(0)
        self.status = 0
        self.iotlb = Iotlb()
        self.asked: Callable[[int, int], int] = lambda _address, _size: 0
        self.adds_only = False
        self.answers = 0
        self._refused: deque[Span] = deque(maxlen=MISS_CAPACITY)
        self._logging = False
        self._log: Log | None = None
        self._backend_channel = -1
        self._warned_unsealed = False
        self._handlers: dict[int, Handler] = {
            Request.GET_FEATURES: self._get_features,
            Request.SET_FEATURES: self._set_features,
            Request.SET_OWNER: self._set_owner,
            Request.RESET_OWNER: self._reset_owner,
            Request.SET_MEM_TABLE: self._set_memory_table,
            Request.SET_LOG_BASE: self._set_log,
            Request.IOTLB_MSG: self._take_iotlb,
            Request.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.GET_QUEUE_NUM: self._get_queue_count,
            Request.SET_BACKEND_REQ_FD: self._set_backend_channel,
            Request.NET_SET_MTU: self._set_mtu,
            Request.SEND_RARP: self._announce,
            Request.GET_INFLIGHT_FD: self._get_inflight,
            Request.SET_INFLIGHT_FD: self._set_inflight,
            Request.RESET_DEVICE: self._reset_device,
            Request.GET_MAX_MEM_SLOTS: self._get_memory_slots,
            Request.ADD_MEM_REG: self._add_region,
            Request.REM_MEM_REG: self._remove_region,
            Request.SET_STATUS: self._set_status,
            Request.GET_STATUS: self._get_status,
            **self.rings.handlers,
        }

    @property
    def accepted(self) -> Feature:
        """The virtio features VM1's driver accepted; vhost's own bits 26 and 30 are left out."""
        return Feature((self.features or 0) & ~int(Feature.PROTOCOL_FEATURES))

    def handle(self, message: Message, fds: Descriptors) -> Answer:
        """Take a message that the rules let pass; what is not taken of fds, the caller closes.

        Raises:
            RefusalError: Nothing has changed.
        """
        self.adds_only = False
        return self._handlers[message.request](message, fds)

    @property
    def translated(self) -> bool:
        """Whether VM1's bus addresses are I/O virtual."""
        return bool((self.features or 0) & Feature.ACCESS_PLATFORM)

    def vm1_state(self) -> Vm1State:
        """What the driver may know now."""
        return Vm1State(
            connected=True,
            features=int(self.accepted),
            memory=self.table.regions if self.features is not None else (),
            rings=self.rings.states(),
            commit_serial=self._commits.serial,
            resumes=self.rings.resumes,
            mtu=self.mtu if self.accepted & Feature.NET_MTU else 0,
            logging=self._logging,
            log=self._log,
            translations=self.iotlb.translations(self.table).all if self.translated else None,
            refused=tuple(self._refused) if self.translated else (),
            answers=self.answers,
            announcement=self._announcement,
        )

    def note_stops(self, before: Vm1State, after: Vm1State) -> None:
        """Remember where each ring stands that ended between two states the driver has seen."""
        self.rings.note_stops(before, after)

    def close_released(self) -> None:
        """Close what the driver has let go of."""
        while self.released:
            os.close(self.released.pop())

    def close(self) -> None:
        """Give everything up. The driver must have let go of it."""
        self.released.extend(self.table.descriptors)
        self.rings.close()
        self._release(self._backend_channel)
        self._release(self._log.fd if self._log else -1)
        self.table, self._backend_channel, self._log = MemoryTable(), -1, None
        self.close_released()

    # -- negotiation --

    def _get_features(self, _message: Message, _fds: Descriptors) -> Answer:
        return lambda: U64.pack(self._offer.features)

    def _set_features(self, message: Message, _fds: Descriptors) -> Answer:
        (features,) = U64.unpack(message.payload)
        if unknown := features & ~self._offer.features:
            text = f"accepts features {unknown:#x}, which were not offered"
            raise RefusalError(Reason.FEATURES, text, must_tell=True)
        channel = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK
        if features & Feature.ACCESS_PLATFORM and channel & ~self.protocol_features:
            text = "accepts ACCESS_PLATFORM, and could not be asked for translations"
            raise RefusalError(Reason.FEATURES, text, must_tell=True)
        logging, features = bool(features & Feature.LOG_ALL), features & ~int(Feature.LOG_ALL)
        # QEMU says the same again for each of its queue pairs while the first ones run.
        if features != self.features and self.rings.started:
            text = "changes features under a started ring"
            raise RefusalError(Reason.RING_STARTED, text, must_tell=True)
        self.features = features
        self.rings.take_features(features)
        self._choose_table()
        self._logging = logging
        return None

    def _get_protocol_features(self, _message: Message, _fds: Descriptors) -> Answer:
        return lambda: U64.pack(rules.PROTOCOL_FEATURES)

    def _set_protocol_features(self, message: Message, _fds: Descriptors) -> Answer:
        (features,) = U64.unpack(message.payload)
        if features & ~rules.PROTOCOL_FEATURES:
            unknown = features & ~rules.PROTOCOL_FEATURES
            text = f"accepts protocol features {unknown:#x}, which were not offered"
            raise RefusalError(Reason.FEATURES, text, must_tell=True)
        if features != self.protocol_features and self.table.regions:
            text = "changes protocol features after memory was given"
            raise RefusalError(Reason.FEATURES, text, must_tell=True)
        self.protocol_features = ProtocolFeature(features)
        return None

    def _get_queue_count(self, _message: Message, _fds: Descriptors) -> Answer:
        # Queue pairs: QEMU and DPDK compare it with their `queues` option.
        return lambda: U64.pack(len(self.rings) // 2)

    def _set_owner(self, _message: Message, _fds: Descriptors) -> Answer:
        return None

    def _reset_owner(self, _message: Message, _fds: Descriptors) -> Answer:
        # Deprecated, and means "disable all rings". Stopped too: who sends it (DPDK up to 20.02)
        # writes the rings anew before the next start.
        self.rings.stop_all()
        return None

    def _reset_device(self, _message: Message, _fds: Descriptors) -> Answer:
        # Memory stays: QEMU sends only the difference to what it sent before.
        self.rings.stop_all()
        self.features = None
        self.rings.take_features(None)
        self.iotlb.clear()
        self._choose_table()
        self._logging = False
        self.status = 0
        return None

    def _set_status(self, message: Message, _fds: Descriptors) -> Answer:
        (status,) = U64.unpack(message.payload)
        if status > 0xFF:
            raise RefusalError(Reason.VALUE, f"gives status {status:#x}, more than 8 bits")
        if status == 0:
            self.rings.stop_all()
        elif self.features is None:
            status &= ~int(DeviceStatus.FEATURES_OK)  # virtio 1.3, 2.2.2: how a device says no
        self.status = status
        return None

    def _get_status(self, _message: Message, _fds: Descriptors) -> Answer:
        broken = any(ring.broken for ring in self.rings.rings)
        return lambda: U64.pack(self.status | (DeviceStatus.NEEDS_RESET if broken else 0))

    def _set_mtu(self, message: Message, _fds: Descriptors) -> Answer:
        (mtu,) = U64.unpack(message.payload)
        if not MTU_MIN <= mtu <= self._offer.mtu:
            text = f"gives an MTU of {mtu}, not {MTU_MIN} to {self._offer.mtu}"
            raise RefusalError(Reason.VALUE, text)
        self.mtu = mtu
        return None

    def _announce(self, message: Message, _fds: Descriptors) -> Answer:
        address = rules.parse_address(message.payload)
        self._announcement = Announcement(address, self._announcement.number + 1)
        return None

    def _set_backend_channel(self, _message: Message, fds: Descriptors) -> Answer:
        fd = next(iter(fds))
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise RefusalError(Reason.FILE, "has a descriptor that is no socket")
        self._release(self._backend_channel)
        self._backend_channel = fds.take(fd)
        return None

    # -- I/O virtual addresses: docs/device.md 5.8 --

    @property
    def channel(self) -> int:
        """The socket on which the front-end can be asked; -1: it gave none."""
        return self._backend_channel

    def refuse(self, span: Span) -> None:
        """VM1's IOMMU has nothing there."""
        self._refused.append(span)

    def forget_refusals(self) -> None:
        """Whoever asks again is answered anew."""
        self._refused.clear()

    def wanted(self) -> list[Span]:
        """What the rings need that VM1 has kicked, but for what was refused."""
        spans = self.rings.spans() if self.translated else []
        return [each for each in spans if not any(map(each.overlaps, self._refused))]

    def _take_iotlb(self, message: Message, _fds: Descriptors) -> Answer:
        iova, size, user, permission, kind = IOTLB.unpack_from(message.payload)
        places = [(span.address, span.length) for span in self.rings.spans()]
        if kind == IotlbKind.INVALIDATE:
            self.iotlb.invalidate(iova, size, places)
            return None
        if kind != IotlbKind.UPDATE:
            raise RefusalError(Reason.VALUE, f"says {kind} of the IOTLB")
        if not self.translated:
            raise RefusalError(Reason.NOT_NEGOTIATED, "needs ACCESS_PLATFORM")
        if not self.table.covers_user(user, size):
            raise RefusalError(Reason.IOTLB, f"translates {iova:#x} to what is not VM1's memory")
        # QEMU permits both, whatever it was asked for: what was looked up is what is permitted.
        permission = permission & self.asked(iova, size) or permission
        self.adds_only = not self.iotlb.update(iova, size, user, permission, places)
        for old in filter(Span(iova, size, permission).overlaps, tuple(self._refused)):
            self._refused.remove(old)
        return None

    def _choose_table(self) -> None:
        table = self.table
        self.rings.take_table(TranslatedTable(self.iotlb, table) if self.translated else table)

    # -- migration --

    def _set_log(self, message: Message, fds: Descriptors) -> Answer:
        size, offset = LOG.unpack(message.payload)
        fd = next(iter(fds))
        log = make_log(fd, offset, size, self.table.regions)
        self._release(self._log.fd if self._log else -1)
        fds.take(fd)
        self._log = log
        return lambda: b""

    # -- what a front-end keeps for the next device: docs/device.md 5.6 --

    def _get_inflight(self, message: Message, _fds: Descriptors) -> Answer:
        _, _, queues, ring_size = rules.parse_inflight(message, len(self.rings))
        if self.rings.started:
            raise RefusalError(Reason.RING_STARTED, "asks for a new region under a started ring")
        self._commits.clear()
        reply = INFLIGHT.pack(COMMIT_SIZE, 0, queues, ring_size)
        reply += bytes(len(message.payload) - INFLIGHT.size)
        return lambda: (reply, (self._commits.fd,))

    def _set_inflight(self, message: Message, fds: Descriptors) -> Answer:
        size, offset, _, _ = rules.parse_inflight(message, len(self.rings))
        if (size, offset) != (COMMIT_SIZE, 0):
            raise RefusalError(Reason.VALUE, f"has a region of {size} bytes at {offset:#x}")
        if self.rings.started:
            raise RefusalError(Reason.RING_STARTED, "brings a region under a started ring")
        fd = next(iter(fds))
        former = self._commits.adopt(fd)
        self._release(fds.take(fd) if former == fd else former)
        if former != fd:
            fds.take(fd)
        self.rings.resumes = True
        return None

    # -- memory --

    def _describe(self, region: tuple[int, int, int, int]) -> RegionDescription:
        bus, size, user, file_offset = region
        # Under GPA_ADDRESSES ring addresses are guest-physical, and user addresses mean nothing.
        if self.protocol_features & ProtocolFeature.GPA_ADDRESSES:
            user = bus
        return RegionDescription(bus, size, user, file_offset)

    def _set_memory_table(self, message: Message, fds: Descriptors) -> Answer:
        count, _ = MEMORY_HEADER.unpack_from(message.payload)
        content = message.payload[MEMORY_HEADER.size :]
        if len(content) != count * MEMORY_REGION.size:
            text = f"has {count} regions in {len(content)} bytes"
            raise RefusalError(Reason.MEMORY, text)
        described = [self._describe(region) for region in MEMORY_REGION.iter_unpack(content)]
        slots = rules.memory_slots(self.protocol_features)
        self._replace_table(self.table.replaced(described, tuple(fds), slots), fds)
        return None

    def _add_region(self, message: Message, fds: Descriptors) -> Answer:
        _, *region = SINGLE_REGION.unpack(message.payload)
        described = self._describe((region[0], region[1], region[2], region[3]))
        table = self.table.extended(described, next(iter(fds)), rules.MEMORY_SLOTS)
        self._replace_table(table, fds)
        return None

    def _remove_region(self, message: Message, fds: Descriptors) -> Answer:
        _, *region = SINGLE_REGION.unpack(message.payload)
        described = self._describe((region[0], region[1], region[2], region[3]))
        self._replace_table(self.table.reduced(described), fds)
        return None

    def _get_memory_slots(self, _message: Message, _fds: Descriptors) -> Answer:
        return lambda: U64.pack(rules.MEMORY_SLOTS)

    def _replace_table(self, table: MemoryTable, fds: Descriptors) -> None:
        check_log(self._log, table.regions)
        before, after = self.table.descriptors, table.descriptors
        for fd in after - before:
            fds.take(fd)
            if not is_sealed(fd) and not self._warned_unsealed:
                self._warned_unsealed = True
                self.notes.append(
                    "VM1's memory cannot be sealed against shrinking: "
                    "if its owner truncates it, the driver loses the channel"
                )
        self.released.extend(before - after)
        if not set(self.table.regions) <= set(table.regions):
            self.iotlb.clear()  # user addresses may be of other memory now
        self.table = table
        self._choose_table()

    def _release(self, fd: int) -> None:
        if fd >= 0:
            self.released.append(fd)
