"""struct rk_virtio_config of pmd/csrc/ringk.h for ctypes, and how it comes of a queue pair."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_uint32, c_uint64
from typing import TYPE_CHECKING

from driver.virtio_net.features import Feature

if TYPE_CHECKING:
    from driver.virtio_net.queue import Queue, VirtioPair


class VirtioQueueStructure(Structure):
    """struct rk_virtio_queue."""

    _fields_ = [
        ("descriptor_area", c_uint64),
        ("driver_area", c_uint64),
        ("device_area", c_uint64),
        ("buffers", c_uint64),
        ("buffers_iova", c_uint64),
        ("notify", c_uint64),
        ("size", c_uint32),
        ("number", c_uint32),
    ]


class VirtioConfigStructure(Structure):
    """struct rk_virtio_config."""

    _fields_ = [
        ("rx", VirtioQueueStructure),
        ("tx", VirtioQueueStructure),
        ("features", c_uint32),
        ("buffer_bytes", c_uint32),
        ("frame_bytes_max", c_uint32),
        ("wake_fd", c_int32),
        ("link_up", c_uint64),
        ("report", c_uint64),
        ("windows", c_uint64),
    ]


# RK_RING_* of pmd/csrc/ringk.h.
_FLAGS = {
    Feature.MRG_RXBUF: 1 << 2,
    Feature.RING_PACKED: 1 << 4,
    Feature.IN_ORDER: 1 << 5,
    Feature.CSUM: 1 << 8,
    Feature.HOST_TSO4: 1 << 9,
    Feature.HOST_TSO6: 1 << 10,
    Feature.HOST_ECN: 1 << 11,
    Feature.HOST_USO: 1 << 12,
    Feature.HOST_UFO: 1 << 13,
}


def _queue(queue: Queue, notify: int) -> VirtioQueueStructure:
    areas = queue.areas
    return VirtioQueueStructure(
        areas.descriptor,
        areas.driver,
        areas.device,
        queue.buffers,
        queue.buffers_iova,
        notify,
        areas.size,
        queue.number,
    )


def virtio_config(pair: VirtioPair) -> VirtioConfigStructure:
    """A device's queue pair as struct rk_virtio_config."""
    return VirtioConfigStructure(
        rx=_queue(pair.rx, pair.rx_notify),
        tx=_queue(pair.tx, pair.tx_notify),
        features=sum(flag for feature, flag in _FLAGS.items() if pair.features & feature),
        buffer_bytes=pair.buffer_bytes,
        frame_bytes_max=pair.frame_bytes_max,
        wake_fd=pair.wake_fd,
        link_up=pair.link_up,
        report=pair.report,
        windows=pair.windows,
    )
