"""vhost-user as declarations: QEMU's docs/interop/vhost-user.rst as of QEMU 11.1.

Shared by the device (the back-end) and the embedded VM1 (a front-end). Constants and layouts only.
Numbers are of the machine's byte order; every machine we run on is little endian.
"""

from __future__ import annotations

import enum
import struct

VERSION = 1  # the lower two bits of the header's flags
PAYLOAD_MAX = 4096  # bytes; the longest payload used here, 64 memory regions, has 2056
DESCRIPTORS_MAX = 253  # linux/net/scm.h SCM_MAX_FD: what one message can carry at all
BASELINE_REGIONS = 8  # memory regions where CONFIGURE_MEM_SLOTS is not negotiated
RING_SIZE_MAX = 32768  # virtio 1.3, 2.7
RING_INDEX_LIMIT = 256  # the eventfd messages hold the ring's index in 8 bits
EVENT_INDEX_MASK = 0xFF
EVENT_NO_DESCRIPTOR = 1 << 8  # NOFD: the message carries no eventfd, the ring is to be polled

HEADER = struct.Struct("<III")  # request, flags, payload size in bytes
U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")  # index, number
VRING_ADDRESS = struct.Struct("<IIQQQQ")  # index, flags, descriptor, used, available, log
MEMORY_HEADER = struct.Struct("<II")  # regions, padding
MEMORY_REGION = struct.Struct("<QQQQ")  # guest address, size, user address, mmap offset
LOG = struct.Struct("<QQ")  # mmap size, mmap offset
VRING_LOG = 1  # in the flags of VRING_ADDRESS: what is written to the used ring is to be logged
INFLIGHT = struct.Struct("<QQHH")  # mmap size, mmap offset, rings, their size; may be padded to 24
IOTLB = struct.Struct("<QQQBB")  # I/O virtual address, size, user address, permission, kind
SINGLE_REGION = struct.Struct("<QQQQQ")  # padding, then a memory region


class HeaderFlag(enum.IntFlag):
    """Bits of the header's flags above the version."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


HEADER_VERSION_MASK = 0x3
# An int: the complement of an IntFlag has none of the bits that have no name.
HEADER_FLAGS_MASK = int(HEADER_VERSION_MASK | HeaderFlag.REPLY | HeaderFlag.NEED_REPLY)


class Request(enum.IntEnum):
    """Requests of the front-end ("front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(enum.IntEnum):
    """Requests of the back-end, on the channel of SET_BACKEND_REQ_FD."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class IotlbKind(enum.IntEnum):
    """What a message about the IOTLB says ("IOTLB message", type)."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class ProtocolFeature(enum.IntFlag):
    """Bits of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES ("protocol features")."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM = 1 << 22


class Feature(enum.IntFlag):
    """Virtio and vhost feature bits of a network device (virtio 1.3, 5.1.3 and 6)."""

    NET_CSUM = 1 << 0
    NET_GUEST_CSUM = 1 << 1
    NET_CTRL_GUEST_OFFLOADS = 1 << 2
    NET_MTU = 1 << 3
    NET_MAC = 1 << 5
    NET_GSO = 1 << 6
    NET_GUEST_TSO4 = 1 << 7
    NET_GUEST_TSO6 = 1 << 8
    NET_GUEST_ECN = 1 << 9
    NET_GUEST_UFO = 1 << 10
    NET_HOST_TSO4 = 1 << 11
    NET_HOST_TSO6 = 1 << 12
    NET_HOST_ECN = 1 << 13
    NET_HOST_UFO = 1 << 14
    NET_MRG_RXBUF = 1 << 15
    NET_STATUS = 1 << 16
    NET_CTRL_VQ = 1 << 17
    NET_CTRL_RX = 1 << 18
    NET_CTRL_VLAN = 1 << 19
    NET_GUEST_ANNOUNCE = 1 << 21
    NET_MQ = 1 << 22
    NET_CTRL_MAC_ADDR = 1 << 23
    NOTIFY_ON_EMPTY = 1 << 24  # legacy, 6.3
    LOG_ALL = 1 << 26  # linux/vhost_types.h VHOST_F_LOG_ALL
    ANY_LAYOUT = 1 << 27  # legacy, 6.3
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    RING_RESET = 1 << 40
    NET_GUEST_USO4 = 1 << 54
    NET_GUEST_USO6 = 1 << 55
    NET_HOST_USO = 1 << 56


class DeviceStatus(enum.IntFlag):
    """Device status bits of GET_STATUS and SET_STATUS (virtio 1.3, 2.1)."""

    ACKNOWLEDGE = 1 << 0
    DRIVER = 1 << 1
    DRIVER_OK = 1 << 2
    FEATURES_OK = 1 << 3
    NEEDS_RESET = 1 << 6
    FAILED = 1 << 7
