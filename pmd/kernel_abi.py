"""Structures and signatures of pmd/csrc/ringk.h for ctypes.

Constants, structures and tables only; `pmd.kernel` owns the objects behind the pointers.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import TYPE_CHECKING, Any

from driver.sending import Sending
from driver.software_vf.xdp_state import SharedState
from driver.virtio_net.report import Report
from pmd.virtio_abi import VirtioConfigStructure, VirtioQueueStructure
from pmd.xdp_abi import XdpConfigStructure, XdpQueueStructure, XdpRingStructure

if TYPE_CHECKING:
    from driver.igbvf.queue import QueuePair

ABI = 20  # RK_ABI
BURST_MAX = 256  # RK_BURST_MAX
FRAME_MAX = 65562  # RK_FRAME_MAX
DROP_SLOTS = 16
MISSES_MAX = 32  # RK_MISSES_MAX


class RingFlags(enum.IntFlag):
    """RK_RING_*."""

    INDIRECT = 1 << 0
    EVENT_IDX = 1 << 1
    MERGEABLE = 1 << 2
    ENABLED = 1 << 3
    PACKED = 1 << 4
    IN_ORDER = 1 << 5
    COMBINING = 1 << 6
    TRANSLATED = 1 << 7
    CSUM = 1 << 8
    TSO4 = 1 << 9
    TSO6 = 1 << 10
    ECN = 1 << 11
    USO = 1 << 12
    UFO = 1 << 13


class Event(enum.IntFlag):
    """RK_EVENT_*: why `Loop.run` returned, or (GENERATION and after) why a work is passed over."""

    STOP = 1 << 0
    BUDGET = 1 << 1
    GENERATION = 1 << 2
    FAULT = 1 << 3
    UNSUITED = 1 << 4
    MISSING = 1 << 5
    SUITED = 1 << 6


class RegionStructure(Structure):
    """struct rk_region; host is an address in this process."""

    _fields_ = [
        ("bus", c_uint64),
        ("length", c_uint64),
        ("host", c_uint64),
        ("permission", c_uint32),
        ("reserved", c_uint32),
    ]


class MissStructure(Structure):
    """struct rk_miss."""

    _fields_ = [
        ("bus", c_uint64),
        ("length", c_uint64),
        ("permission", c_uint32),
        ("reserved", c_uint32),
    ]


class RingConfigStructure(Structure):
    """struct rk_ring_config."""

    _fields_ = [
        ("desc", c_uint64),
        ("avail", c_uint64),
        ("used", c_uint64),
        ("size", c_uint32),
        ("flags", c_uint32),
        ("header_bytes", c_uint32),
        ("call_fd", c_int32),
        ("call_offset", c_int64),
        ("kick_fd", c_int32),
        ("mtu", c_uint32),
        ("commit", c_uint64),
        ("dirty", c_uint64),
        ("dirty_bytes", c_uint64),
        ("dirty_shift", c_uint32),
        ("reserved", c_uint32),
    ]


class DirectionStats(Structure):
    """struct rk_direction_stats: one direction of one queue pair, counted since it was made.

    Zero at first; several queues in turn may count into it. Each field is written by one thread
    and read whole by any; `DirectionStats.from_buffer_copy(stats)` is a snapshot.
    """

    packets: int
    bytes: int
    drops: ctypes.Array[c_uint64]
    bursts: int
    cycles: int
    calls: int
    flushed: int
    _fields_ = [
        ("packets", c_uint64),
        ("bytes", c_uint64),
        ("drops", c_uint64 * DROP_SLOTS),
        ("bursts", c_uint64),
        ("cycles", c_uint64),
        ("calls", c_uint64),
        ("flushed", c_uint64),
    ]


class Segment(Structure):
    """struct iovec."""

    _fields_ = [("base", c_void_p), ("length", c_size_t)]


class Offload(Structure):
    """struct rk_offload."""

    _fields_ = [
        ("flags", c_uint8),
        ("gso_type", c_uint8),
        ("header_bytes", c_uint16),
        ("segment_bytes", c_uint16),
        ("checksum_start", c_uint16),
        ("checksum_offset", c_uint16),
    ]


class Frame(Structure):
    """struct rk_frame; only tests of ports make them in Python."""

    _fields_ = [
        ("segments", POINTER(Segment)),
        ("segment_count", c_uint32),
        ("bytes", c_uint32),
        ("verdict", c_uint32),
        ("offload", Offload),
        ("header_read", c_uint8),
        ("done_here", c_uint8),
    ]


VF_WINDOW_BYTES = 24  # struct rk_vf_window: address, length, iova


class IgbvfConfigStructure(Structure):
    """struct rk_igbvf_config."""

    _fields_ = [
        ("rx_tail", c_uint64),
        ("tx_tail", c_uint64),
        ("rx_ring", c_uint64),
        ("tx_ring", c_uint64),
        ("rx_buffers", c_uint64),
        ("tx_buffers", c_uint64),
        ("rx_buffers_iova", c_uint64),
        ("tx_buffers_iova", c_uint64),
        ("rx_count", c_uint32),
        ("tx_count", c_uint32),
        ("buffer_bytes", c_uint32),
        ("frame_bytes_max", c_uint32),
        ("link_up", c_uint64),
        ("windows", c_uint64),
        ("report", c_uint64),
        ("interrupts_on", c_uint64),
        ("interrupts_off", c_uint64),
        ("direct_bytes", c_uint32),
        ("wake_fd", c_int32),
    ]


def igbvf_config(pair: QueuePair) -> IgbvfConfigStructure:
    """A VF's queue pair as struct rk_igbvf_config."""
    rx, tx = pair.rx, pair.tx
    return IgbvfConfigStructure(
        rx_tail=pair.rx_tail,
        tx_tail=pair.tx_tail,
        rx_ring=rx.address,
        tx_ring=tx.address,
        rx_buffers=rx.buffers,
        tx_buffers=tx.buffers,
        rx_buffers_iova=rx.buffers_iova,
        tx_buffers_iova=tx.buffers_iova,
        rx_count=rx.count,
        tx_count=tx.count,
        buffer_bytes=pair.buffer_bytes,
        frame_bytes_max=pair.frame_bytes_max,
        link_up=pair.link_up,
        windows=pair.windows,
        report=pair.report,
        interrupts_on=pair.interrupts_on,
        interrupts_off=pair.interrupts_off,
        direct_bytes=pair.direct_bytes,
        wake_fd=pair.wake_fd,
    )


class PortConfigStructure(Structure):
    """struct rk_port_config."""

    _fields_ = [
        ("kind", c_char_p),
        ("fd", c_int32),
        ("frame_bytes", c_uint32),
        ("input", c_char_p),
        ("output", c_char_p),
        ("offloads", c_uint32),
        ("igbvf", POINTER(IgbvfConfigStructure)),
        ("virtio", POINTER(VirtioConfigStructure)),
        ("xdp", POINTER(XdpConfigStructure)),
    ]


class WorkStructure(Structure):
    """struct rk_work."""

    _fields_ = [
        ("generation", c_void_p),
        ("heartbeat", c_void_p),
        ("fault", c_void_p),
        ("tx", c_void_p),
        ("rx", c_void_p),
        ("port", c_void_p),
        ("expected", c_uint32),
        ("events", c_uint32),
        ("wake_fd", c_int32),
        ("idle", c_uint16),
        ("next", c_uint16),
    ]


class LoopStats(Structure):
    """struct rk_loop_stats; read as `DirectionStats` is."""

    turns: int
    busy_turns: int
    cycles: int
    busy_cycles: int
    sleeps: int
    slept_cycles: int
    _fields_ = [
        ("turns", c_uint64),
        ("busy_turns", c_uint64),
        ("cycles", c_uint64),
        ("busy_cycles", c_uint64),
        ("sleeps", c_uint64),
        ("slept_cycles", c_uint64),
    ]


class PollStructure(Structure):
    """struct rk_poll."""

    _fields_ = [
        ("may_sleep", c_uint32),
        ("reserved", c_uint32),
        ("idle_ns", c_uint64),
        ("coalesce_ns", c_uint64),
    ]


SIZES = {
    "rk_region": ctypes.sizeof(RegionStructure),
    "rk_miss": ctypes.sizeof(MissStructure),
    "rk_ring_config": ctypes.sizeof(RingConfigStructure),
    "rk_direction_stats": ctypes.sizeof(DirectionStats),
    "rk_offload": ctypes.sizeof(Offload),
    "rk_frame": ctypes.sizeof(Frame),
    "rk_vf_window": VF_WINDOW_BYTES,
    "rk_sending": ctypes.sizeof(Sending),
    "rk_igbvf_config": ctypes.sizeof(IgbvfConfigStructure),
    "rk_virtio_queue": ctypes.sizeof(VirtioQueueStructure),
    "rk_virtio_report": ctypes.sizeof(Report),
    "rk_virtio_config": ctypes.sizeof(VirtioConfigStructure),
    "rk_xdp_ring": ctypes.sizeof(XdpRingStructure),
    "rk_xdp_queue": ctypes.sizeof(XdpQueueStructure),
    "rk_xdp_state": ctypes.sizeof(SharedState),
    "rk_xdp_config": ctypes.sizeof(XdpConfigStructure),
    "rk_port_config": ctypes.sizeof(PortConfigStructure),
    "rk_work": ctypes.sizeof(WorkStructure),
    "rk_poll": ctypes.sizeof(PollStructure),
    "rk_loop_stats": ctypes.sizeof(LoopStats),
}

# Every exported function: result, arguments.
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "rk_map_new": (c_void_p, [c_void_p, c_uint32]),
    "rk_map_free": (None, [c_void_p]),
    "rk_map_translate": (c_uint64, [c_void_p, c_uint64, c_uint64, c_uint32, POINTER(c_uint64)]),
    "rk_queue_new": (
        c_void_p,
        [POINTER(RingConfigStructure), c_void_p, POINTER(DirectionStats)],
    ),
    "rk_queue_free": (None, [c_void_p]),
    "rk_queue_fault": (c_uint32, [c_void_p]),
    "rk_queue_call": (None, [c_void_p]),
    "rk_queue_set_direct": (c_uint32, [c_void_p, c_void_p]),
    "rk_queue_set_copied": (None, [c_void_p, c_uint32]),
    "rk_queue_misses": (c_uint32, [c_void_p, POINTER(MissStructure)]),
    "rk_queue_refuse": (c_int, [c_void_p, POINTER(MissStructure), c_uint32]),
    "rk_queue_remap": (c_int, [c_void_p, c_void_p]),
    "rk_queue_in_flight": (c_uint32, [c_void_p]),
    "rk_queue_abandon": (None, [c_void_p]),
    "rk_port_open": (c_void_p, [POINTER(PortConfigStructure), c_char_p, c_size_t]),
    "rk_port_close": (None, [c_void_p]),
    "rk_port_rx_missed": (c_uint64, [c_void_p]),
    "rk_port_tx_held": (c_uint64, [c_void_p]),
    "rk_port_rx_direct": (c_uint64, [c_void_p]),
    "rk_port_set_copy_below": (None, [c_void_p, c_uint32]),
    "rk_port_set_direct": (None, [c_void_p, c_uint32]),
    "rk_port_drop_rest": (None, [c_void_p]),
    "rk_port_tx": (c_uint32, [c_void_p, POINTER(Frame), c_uint32]),
    "rk_port_rx": (c_uint32, [c_void_p, POINTER(Frame), c_uint32]),
    "rk_port_rx_done": (None, [c_void_p, c_uint32]),
    "rk_steering_new": (c_void_p, [c_void_p, POINTER(c_void_p), c_uint32]),
    "rk_steering_port": (c_void_p, [c_void_p, c_uint32]),
    "rk_steering_free": (None, [c_void_p]),
    "rk_loop_new": (c_void_p, [c_uint32, POINTER(LoopStats)]),
    "rk_loop_free": (None, [c_void_p]),
    "rk_loop_poll": (None, [c_void_p, POINTER(PollStructure)]),
    "rk_loop_set": (None, [c_void_p, POINTER(WorkStructure), c_uint32]),
    "rk_loop_run": (c_uint32, [c_void_p, c_uint64]),
    "rk_loop_stop": (None, [c_void_p]),
    "rk_work_turn": (c_uint32, [POINTER(WorkStructure), c_uint32]),
    "rk_work_drain": (c_uint32, [POINTER(WorkStructure)]),
    "rk_work_take_rest": (None, [POINTER(WorkStructure)]),
    "rk_guard_install": (c_int, []),
    "rk_guard_add": (c_int, [c_void_p, c_uint64, POINTER(c_uint32)]),
    "rk_guard_remove": (None, [c_void_p]),
    "rk_probe_load_ps": (c_uint64, [c_void_p, c_uint64, c_uint64]),
    "rk_probe_line_ps": (c_uint64, [c_void_p, c_uint64, c_uint64]),
    "rk_abi": (c_uint32, []),
    "rk_drop_name": (c_char_p, [c_uint32]),
    "rk_fault_name": (c_char_p, [c_uint32]),
    "rk_isa": (c_char_p, []),
    "rk_isa_name": (c_char_p, [c_uint32]),
    "rk_tsc_hz": (c_uint64, []),
    "rk_sizeof": (c_uint64, [c_char_p]),
}
