"""tools/vm1/csrc/vm1.h as declarations, and the library, once it has agreed to them."""

from __future__ import annotations

import ctypes
import enum
import functools
import importlib.resources

from guest.errors import VhostPciError

ABI = 7
SLICES_MAX = 256  # of one vm1_run
LATENCY_BUCKETS = 2304
HEADROOM = 64  # bytes of a buffer's area before the frame
GUARD = 64  # bytes behind it
# Not beside this file where the package is installed for editing.
_LIBRARY = importlib.resources.files("tools.vm1") / "_vm1.so"


class RingFlag(enum.IntFlag):
    """Flags of a ring's configuration (VM1_RING_*)."""

    EVENT_IDX = 1 << 0
    IN_ORDER = 1 << 1
    INDIRECT = 1 << 2
    RECEIVE = 1 << 3
    PACKED = 1 << 4


class Offload(enum.IntFlag):
    """What is left to the other side of a frame (VM1_OFFLOAD_*)."""

    CSUM = 1 << 0
    TSO4 = 1 << 1
    TSO6 = 1 << 2
    GUEST_CSUM = 1 << 3
    GUEST_TSO4 = 1 << 4
    GUEST_TSO6 = 1 << 5


class Outcome(enum.IntEnum):
    """What vm1_run returns."""

    BUDGET = 0
    DONE = 1
    TIMED_OUT = 2
    TAP_GONE = 3


class Slot(ctypes.Structure):
    """struct vm1_slot."""

    _fields_ = (("host", ctypes.c_uint64), ("bus", ctypes.c_uint64))


class RingConfig(ctypes.Structure):
    """struct vm1_ring_config."""

    _fields_ = (
        ("desc", ctypes.c_uint64),
        ("avail", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
        ("indirect_host", ctypes.c_uint64),
        ("indirect_bus", ctypes.c_uint64),
        ("slots", ctypes.POINTER(Slot)),
        ("slot_count", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("chain", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("frame_capacity", ctypes.c_uint32),
        ("kick_fd", ctypes.c_int32),
        ("call_fd", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
    )


class Config(ctypes.Structure):
    """struct vm1_config."""

    _fields_ = (
        ("mode", ctypes.c_uint32),
        ("pairs", ctypes.c_uint32),
        ("header_bytes", ctypes.c_uint32),
        ("mergeable", ctypes.c_uint32),
        ("directions", ctypes.c_uint32),
        ("touch", ctypes.c_uint32),
        ("size_min", ctypes.c_uint32),
        ("size_max", ctypes.c_uint32),
        ("imix", ctypes.c_uint32),
        ("window", ctypes.c_uint32),
        ("stream", ctypes.c_uint32),
        ("peer_stream", ctypes.c_uint32),
        ("count", ctypes.c_uint64),
        ("timeout_ns", ctypes.c_uint64),
        ("rate", ctypes.c_uint64),
        ("destination", ctypes.c_uint8 * 8),
        ("source", ctypes.c_uint8 * 8),
        ("tap_fd", ctypes.c_int32),
        ("poll", ctypes.c_uint32),
        ("offloads", ctypes.c_uint32),
        ("leave", ctypes.c_uint32),
        ("sleep", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("slice_cycles", ctypes.c_uint64),
    )


class SliceCounts(ctypes.Structure):
    """struct vm1_slice."""

    _fields_ = (
        ("cycles", ctypes.c_uint64),
        ("sent", ctypes.c_uint32),
        ("received", ctypes.c_uint32),
        ("still_cycles", ctypes.c_uint64),
    )


class ProbeResult(ctypes.Structure):
    """struct vm1_probe_result."""

    _fields_ = (
        ("one_way_milli", ctypes.c_uint64),
        ("own_alu_milli", ctypes.c_uint64),
        ("peer_alu_milli", ctypes.c_uint64),
    )


class LatencyCounts(ctypes.Structure):
    """struct vm1_latency."""

    _fields_ = (
        ("sent", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("most_cycles", ctypes.c_uint64),
        ("counts", ctypes.c_uint64 * LATENCY_BUCKETS),
    )


TRAFFIC_COUNTERS = (
    "sent", "sent_bytes", "received", "received_bytes", "distinct", "highest", "duplicated",
    "reordered", "corrupt", "foreign", "acknowledged", "kicks", "calls", "tap_dropped",
    "unset_num_buffers", "offload_sent", "offload_received",
)  # fmt: skip
PROTOCOL_COUNTERS = (
    "bad_id", "duplicate_id", "out_of_order", "bad_length", "index_jump", "bad_header",
    "broken_merge", "canary", "readable_written", "desc_written", "lost_call",
)  # fmt: skip


class Stats(ctypes.Structure):
    """struct vm1_stats: TRAFFIC_COUNTERS, then PROTOCOL_COUNTERS."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in TRAFFIC_COUNTERS + PROTOCOL_COUNTERS)


_STRUCTURES = {
    "vm1_slot": Slot,
    "vm1_ring_config": RingConfig,
    "vm1_config": Config,
    "vm1_stats": Stats,
    "vm1_slice": SliceCounts,
    "vm1_probe_result": ProbeResult,
    "vm1_latency": LatencyCounts,
}
_HANDLE = ctypes.c_void_p
_SIGNATURES = {
    "vm1_new": (
        _HANDLE,
        (ctypes.POINTER(Config), ctypes.POINTER(RingConfig), ctypes.POINTER(Stats)),
    ),
    "vm1_free": (None, (_HANDLE,)),
    "vm1_run": (ctypes.c_uint32, (_HANDLE, ctypes.c_uint64)),
    "vm1_touch_clock": (None, (_HANDLE,)),
    "vm1_kick": (None, (_HANDLE,)),
    "vm1_base": (ctypes.c_uint32, (_HANDLE, ctypes.c_uint32)),
    "vm1_finish": (None, (_HANDLE,)),
    "vm1_drain": (ctypes.c_uint32, (_HANDLE, ctypes.c_uint64)),
    "vm1_slices": (ctypes.c_uint32, (_HANDLE, ctypes.POINTER(SliceCounts), ctypes.c_uint32)),
    "vm1_join": (None, (_HANDLE, _HANDLE)),
    "vm1_latency_begin": (None, (_HANDLE, ctypes.c_double)),
    "vm1_latency_found": (None, (_HANDLE, ctypes.POINTER(LatencyCounts))),
    "vm1_probe_new": (_HANDLE, (ctypes.c_uint32,)),
    "vm1_probe_free": (None, (_HANDLE,)),
    "vm1_probe_run": (ctypes.c_int, (_HANDLE, ctypes.POINTER(ProbeResult))),
    "vm1_tsc_hz": (ctypes.c_uint64, ()),
    "vm1_abi": (ctypes.c_uint32, ()),
    "vm1_sizeof": (ctypes.c_uint64, (ctypes.c_char_p,)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The hot loop's library; VhostPciError if it is missing or of another build."""
    remedy = "build it: cmake -S . -B build && cmake --build build --target vm1"
    try:
        loaded = ctypes.CDLL(str(_LIBRARY), use_errno=True)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise VhostPciError("load", str(_LIBRARY), str(error), remedy) from error
    if loaded.vm1_abi() != ABI:
        raise VhostPciError("load", str(_LIBRARY), f"its interface is not {ABI}", remedy)
    for name, structure in _STRUCTURES.items():
        if loaded.vm1_sizeof(name.encode()) != ctypes.sizeof(structure):
            raise VhostPciError("load", str(_LIBRARY), f"another layout of {name}", remedy)
    return loaded
