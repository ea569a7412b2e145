"""Structures of pmd/csrc/ringk.h for ctypes: what an xdp port is opened with."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_int32, c_uint32, c_uint64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from driver.software_vf.xdp import XdpQueues
    from driver.software_vf.xdp_socket import XdpRing


class XdpRingStructure(Structure):
    """struct rk_xdp_ring."""

    _fields_ = [
        ("producer", c_uint64),
        ("consumer", c_uint64),
        ("flags", c_uint64),
        ("entries", c_uint64),
    ]


class XdpQueueStructure(Structure):
    """struct rk_xdp_queue."""

    _fields_ = [
        ("fill", XdpRingStructure),
        ("completion", XdpRingStructure),
        ("rx", XdpRingStructure),
        ("tx", XdpRingStructure),
        ("memory", c_uint64),
        ("rx_count", c_uint32),
        ("tx_count", c_uint32),
        ("fd", c_int32),
        ("reserved", c_uint32),
    ]


class XdpConfigStructure(Structure):
    """struct rk_xdp_config."""

    _fields_ = [
        ("queues", POINTER(XdpQueueStructure)),
        ("count", c_uint32),
        ("chunk_bytes", c_uint32),
        ("multi_buffer", c_uint32),
        ("reserved", c_uint32),
        ("state", c_uint64),
    ]


def xdp_config(of: XdpQueues) -> XdpConfigStructure:
    """A port's queues as struct rk_xdp_config."""
    queues = (XdpQueueStructure * len(of.queues))()
    for queue, each in zip(queues, of.queues, strict=True):
        queue.fill, queue.completion = _ring(each.fill), _ring(each.completion)
        queue.rx, queue.tx = _ring(each.rx), _ring(each.tx)
        queue.memory, queue.fd = each.memory, each.fd
        queue.rx_count, queue.tx_count = each.rx_count, each.tx_count
    return XdpConfigStructure(
        queues=queues,
        count=len(queues),
        chunk_bytes=of.chunk_bytes,
        multi_buffer=of.multi_buffer,
        state=of.state,
    )


def _ring(ring: XdpRing) -> XdpRingStructure:
    return XdpRingStructure(ring.producer, ring.consumer, ring.flags, ring.entries)
