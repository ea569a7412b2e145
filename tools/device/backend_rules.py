"""Which vhost-user messages the back-end takes, and in which form: everything else is refused.

Reference: QEMU's docs/interop/vhost-user.rst, "Front-end message types".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.mac_address import address_error
from tools.vhost_user_abi import (
    BASELINE_REGIONS,
    INFLIGHT,
    IOTLB,
    LOG,
    MEMORY_HEADER,
    MEMORY_REGION,
    RING_SIZE_MAX,
    SINGLE_REGION,
    U64,
    VRING_ADDRESS,
    VRING_STATE,
    ProtocolFeature,
    Request,
)

if TYPE_CHECKING:
    from tools.vhost_user_wire import Message

MEMORY_SLOTS = 64
NOTHING = ProtocolFeature(0)
ADDRESS_MASK = (1 << 48) - 1  # IEEE 802

# An int: the complement of an IntFlag has none of the bits that have no name.
PROTOCOL_FEATURES = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.STATUS
    | ProtocolFeature.GPA_ADDRESSES
    | ProtocolFeature.MTU
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.RARP
)


class Reason(enum.StrEnum):
    """Why a message was refused: names of counters, so they stay as they are."""

    UNKNOWN_REQUEST = "unknown_request"
    NOT_NEGOTIATED = "not_negotiated"
    DESCRIPTOR_COUNT = "descriptor_count"
    DESCRIPTORS_LOST = "descriptors_lost"
    FEATURES = "features"
    RING_INDEX = "ring_index"
    RING_SIZE = "ring_size"
    RING_BASE = "ring_base"
    RING_ADDRESS = "ring_address"
    RING_STARTED = "ring_started"
    VALUE = "value"
    EVENTFD = "eventfd"
    FILE = "file"
    MEMORY = "memory"
    LOG = "log"
    IOTLB = "iotlb"


class RefusalError(Exception):
    """One message is refused and has changed nothing; the connection goes on.

    must_tell: if the front-end did not ask for an acknowledgement it would go on in error, so it is
    disconnected instead.
    """

    def __init__(self, reason: Reason, text: str, *, must_tell: bool = False) -> None:
        self.reason = reason
        self.must_tell = must_tell
        super().__init__(text)


class DisconnectError(Exception):
    """The front-end cannot be talked to any longer; the text goes on from "it"."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The form of one request.

    size: of the payload; with a step, any number of steps more up to the limit.
    fds: least and most descriptors.
    needs: the protocol feature that allows it.
    answers: it has a reply of its own, whether an acknowledgement was asked for or not.
    takes_away: what comes next may build on the driver having let go: it is shown at once.
    """

    size: int = 0
    step: int = 0
    limit: int = 0
    fds: tuple[int, int] = (0, 0)
    needs: ProtocolFeature = NOTHING
    answers: bool = False
    takes_away: bool = False

    def fits(self, size: int) -> bool:
        """Whether a payload may have this size."""
        if not self.step:
            return size == self.size
        return self.size <= size <= self.limit and (size - self.size) % self.step == 0


RULES: dict[int, Rule] = {
    Request.GET_FEATURES: Rule(answers=True),
    Request.SET_FEATURES: Rule(U64.size),
    Request.SET_OWNER: Rule(),
    Request.RESET_OWNER: Rule(takes_away=True),
    Request.SET_MEM_TABLE: Rule(
        MEMORY_HEADER.size,
        step=MEMORY_REGION.size,
        limit=MEMORY_HEADER.size + MEMORY_SLOTS * MEMORY_REGION.size,
        fds=(0, MEMORY_SLOTS),
        takes_away=True,
    ),
    Request.SET_LOG_BASE: Rule(
        LOG.size, fds=(1, 1), needs=ProtocolFeature.LOG_SHMFD, answers=True, takes_away=True
    ),
    Request.SET_VRING_NUM: Rule(VRING_STATE.size),
    Request.SET_VRING_ADDR: Rule(VRING_ADDRESS.size),
    Request.SET_VRING_BASE: Rule(VRING_STATE.size),
    Request.GET_VRING_BASE: Rule(VRING_STATE.size, answers=True, takes_away=True),
    Request.SET_VRING_KICK: Rule(U64.size, fds=(0, 1)),
    Request.SET_VRING_CALL: Rule(U64.size, fds=(0, 1)),
    Request.SET_VRING_ERR: Rule(U64.size, fds=(0, 1)),
    Request.GET_PROTOCOL_FEATURES: Rule(answers=True),
    Request.SET_PROTOCOL_FEATURES: Rule(U64.size),
    # Asked for as soon as MQ is offered, not only once it is accepted.
    Request.GET_QUEUE_NUM: Rule(answers=True),
    Request.SET_VRING_ENABLE: Rule(VRING_STATE.size),
    Request.SET_BACKEND_REQ_FD: Rule(fds=(1, 1), needs=ProtocolFeature.BACKEND_REQ),
    # Some front-ends send what is behind the last field too.
    Request.IOTLB_MSG: Rule(IOTLB.size, step=6, limit=32, needs=ProtocolFeature.BACKEND_REQ),
    Request.GET_INFLIGHT_FD: Rule(
        INFLIGHT.size,
        step=4,
        limit=24,
        needs=ProtocolFeature.INFLIGHT_SHMFD,
        answers=True,
    ),
    Request.SET_INFLIGHT_FD: Rule(
        INFLIGHT.size, step=4, limit=24, fds=(1, 1), needs=ProtocolFeature.INFLIGHT_SHMFD
    ),
    Request.SEND_RARP: Rule(U64.size, needs=ProtocolFeature.RARP),
    Request.NET_SET_MTU: Rule(U64.size, needs=ProtocolFeature.MTU),
    Request.RESET_DEVICE: Rule(needs=ProtocolFeature.RESET_DEVICE, takes_away=True),
    Request.GET_MAX_MEM_SLOTS: Rule(needs=ProtocolFeature.CONFIGURE_MEM_SLOTS, answers=True),
    Request.ADD_MEM_REG: Rule(
        SINGLE_REGION.size, fds=(1, 1), needs=ProtocolFeature.CONFIGURE_MEM_SLOTS
    ),
    # A descriptor is allowed for front-ends that send one by mistake; it is closed.
    Request.REM_MEM_REG: Rule(
        SINGLE_REGION.size,
        fds=(0, 1),
        needs=ProtocolFeature.CONFIGURE_MEM_SLOTS,
        takes_away=True,
    ),
    Request.SET_STATUS: Rule(U64.size, needs=ProtocolFeature.STATUS, takes_away=True),
    Request.GET_STATUS: Rule(needs=ProtocolFeature.STATUS, answers=True),
}


_NAMES = {request.value: request.name for request in Request}


def request_name(request: int) -> str:
    """For messages: the name of the request, or its number."""
    return _NAMES.get(request, f"request {request}")


def find_rule(message: Message) -> Rule | None:
    """The rule of a message's request; None if there is none.

    Raises:
        DisconnectError: It is no request at all, or its payload has an impossible size.
    """
    if message.is_reply:
        raise DisconnectError(f"sent a reply to {request_name(message.request)}")
    rule = RULES.get(message.request)
    if rule and not rule.fits(len(message.payload)):
        size = len(message.payload)
        raise DisconnectError(f"sent {request_name(message.request)} with {size} bytes of payload")
    return rule


def judge(message: Message, rule: Rule | None, accepted: ProtocolFeature) -> None:
    """Check all that does not depend on the meaning of the payload.

    Raises:
        RefusalError: The message is not to be handled.
    """
    if rule is None:
        raise RefusalError(Reason.UNKNOWN_REQUEST, "is not known, or its feature was not offered")
    if rule.needs & ~accepted:
        raise RefusalError(
            Reason.NOT_NEGOTIATED, f"needs {rule.needs.name}, which was not accepted"
        )
    if message.truncated:
        raise RefusalError(
            Reason.DESCRIPTORS_LOST, "lost descriptors: this process has too many open"
        )
    least, most = rule.fds
    if not least <= len(message.fds) <= most:
        raise RefusalError(Reason.DESCRIPTOR_COUNT, f"came with {len(message.fds)} descriptors")


def parse_address(payload: bytes) -> int:
    """The MAC address of SEND_RARP, its first byte the lowest.

    Raises:
        RefusalError: No network card has that.
    """
    (value,) = U64.unpack(payload)
    address = int(value) & ADDRESS_MASK
    if address_error(address.to_bytes(6, "little")):
        raise RefusalError(Reason.VALUE, f"announces {address:#x}, which is no card's address")
    return address


def parse_inflight(message: Message, rings: int) -> tuple[int, int, int, int]:
    """Size, offset, rings and their size of GET_INFLIGHT_FD and SET_INFLIGHT_FD.

    Raises:
        RefusalError: There are fewer rings, or none can have that size.
    """
    size, offset, queues, ring_size = INFLIGHT.unpack_from(message.payload)
    if not 0 < queues <= rings or not 0 < ring_size <= RING_SIZE_MAX:
        text = f"speaks of {queues} rings of {ring_size}, and there are {rings}"
        raise RefusalError(Reason.VALUE, text)
    return size, offset, queues, ring_size


def memory_slots(accepted: ProtocolFeature) -> int:
    """How many memory regions there may be."""
    slots = ProtocolFeature.CONFIGURE_MEM_SLOTS
    return MEMORY_SLOTS if accepted & slots else BASELINE_REGIONS
