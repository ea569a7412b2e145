"""The capability chain of a VFIO information reply, as the kernel and vfio-user servers send it.

Source: linux/vfio.h, struct vfio_info_cap_header. What it says is judged before it is used: a
vfio-user server is not trusted (vfio-user.rst, "Security Considerations").
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

from guest import vfio_abi
from guest.function import Area, RegionInfo

if TYPE_CHECKING:
    from collections.abc import Iterator


class InfoError(ValueError):
    """An information reply that cannot be; the text says why, lower case."""


def capabilities(info: bytes, first: int) -> Iterator[tuple[int, int]]:
    """Each capability of the chain as (id, offset in info).

    Args:
        info: The whole reply.
        first: Its cap_offset; 0 is an empty chain.

    Raises:
        InfoError: A capability outside the reply, or not behind the one before it (kernel and
            servers append, so anything else could be a loop).
    """
    header_size = ctypes.sizeof(vfio_abi.VfioInfoCapHeader)
    offset, end = first, 0
    while offset != 0:
        if offset < end or offset + header_size > len(info):
            raise InfoError(f"a capability at {offset} of {len(info)} bytes")
        header = vfio_abi.VfioInfoCapHeader.from_buffer_copy(info, offset)
        yield header.id, offset
        end = offset + header_size
        offset = header.next


def region_info(info: bytes, index: int) -> tuple[RegionInfo, int]:
    """What a reply to GET_REGION_INFO says of a region, and the region's offset in its descriptor.

    Raises:
        InfoError: The reply is cut short, of another region, or its areas are not page aligned
            parts of the region.
    """
    fixed = ctypes.sizeof(vfio_abi.VfioRegionInfo)
    if len(info) < fixed:
        raise InfoError(f"region information of {len(info)} bytes, less than {fixed}")
    raw = vfio_abi.VfioRegionInfo.from_buffer_copy(info)
    if raw.index != index:
        raise InfoError(f"information of region {raw.index} in answer to {index}")
    areas: tuple[Area, ...] = ()
    if raw.flags & vfio_abi.VFIO_REGION_INFO_FLAG_MMAP and raw.size:
        areas = _areas(info, raw)
    region = RegionInfo(
        index=index,
        size=raw.size,
        readable=bool(raw.flags & vfio_abi.VFIO_REGION_INFO_FLAG_READ),
        writable=bool(raw.flags & vfio_abi.VFIO_REGION_INFO_FLAG_WRITE),
        areas=areas,
    )
    return region, raw.offset


def _areas(info: bytes, raw: vfio_abi.VfioRegionInfo) -> tuple[Area, ...]:
    """The sparse areas, or all whole pages of a region without that capability."""
    if raw.flags & vfio_abi.VFIO_REGION_INFO_FLAG_CAPS:
        if raw.cap_offset and raw.cap_offset < ctypes.sizeof(vfio_abi.VfioRegionInfo):
            raise InfoError(f"a capability at {raw.cap_offset}, inside the fixed part")
        for capability, offset in capabilities(info, raw.cap_offset):
            if capability == vfio_abi.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
                return _sparse_areas(info, offset, raw.size)
    whole = raw.size & -mmap.PAGESIZE
    return (Area(0, whole),) if whole else ()


def _sparse_areas(info: bytes, offset: int, region_size: int) -> tuple[Area, ...]:
    begin = offset + ctypes.sizeof(vfio_abi.VfioRegionInfoCapSparseMmap)
    if begin > len(info):
        raise InfoError("the sparse areas are cut short")
    count = vfio_abi.VfioRegionInfoCapSparseMmap.from_buffer_copy(info, offset).nr_areas
    item = ctypes.sizeof(vfio_abi.VfioRegionSparseMmapArea)
    if begin + count * item > len(info):
        raise InfoError(f"{count} sparse areas in {len(info)} bytes")
    areas = []
    for at in range(begin, begin + count * item, item):
        raw = vfio_abi.VfioRegionSparseMmapArea.from_buffer_copy(info, at)
        if (raw.offset | raw.size) % mmap.PAGESIZE or raw.offset + raw.size > region_size:
            raise InfoError(f"an area of {raw.size} bytes at {raw.offset} of {region_size}")
        if raw.size:
            areas.append(Area(raw.offset, raw.size))
    return tuple(areas)
