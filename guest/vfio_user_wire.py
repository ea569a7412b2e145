"""Whole vfio-user messages as bytes: the VERSION message's JSON, requests and replies.

Shared by client and server; layouts and source are those of `guest.vfio_user_abi`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest.vfio_user_abi import (
    CAPABILITIES,
    HEADER_SIZE,
    MAJOR,
    MINOR,
    VHOST_PCI,
    CapabilityHeader,
    Header,
    HeaderFlag,
    RegionCapability,
    SparseArea,
    SparseMmap,
    Version,
    WireError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """What the sender of a VERSION message takes; the defaults are the specification's.

    Field names are the JSON's keys. max_msg_fds: descriptors in one message. max_data_xfer_size:
    bytes in one REGION_READ, REGION_WRITE, DMA_READ or DMA_WRITE. pgsizes: page sizes, or'ed.
    """

    max_msg_fds: int = 1
    max_data_xfer_size: int = 1 << 20
    max_dma_maps: int = 65535
    pgsizes: int = 4096

    @classmethod
    def from_capabilities(cls, capabilities: Mapping[str, Any]) -> Limits:
        """The limits in the other side's capabilities; WireError if one is no positive integer."""
        given = {}
        for field in dataclasses.fields(cls):
            value = capabilities.get(field.name, field.default)
            if type(value) is not int or not 0 < value < 1 << 64:
                raise WireError(f"{field.name} is {value!r}, not a positive integer")
            given[field.name] = value
        return cls(**given)


def wants(capabilities: Mapping[str, Any], extension: str) -> bool:
    """Whether a client's capabilities name one of our extensions: DYNAMIC_WINDOWS or EVENTS."""
    ours = capabilities.get(VHOST_PCI)
    return isinstance(ours, dict) and ours.get(extension) is True


def pack_version(
    capabilities: Mapping[str, Any], *, major: int = MAJOR, minor: int = MINOR
) -> bytes:
    """Payload of a VERSION message, request or reply."""
    text = json.dumps({CAPABILITIES: capabilities}, separators=(",", ":"))
    return Version(major, minor).pack() + text.encode() + b"\0"


def unpack_version(payload: bytes) -> tuple[Version, dict[str, Any]]:
    """Version and capabilities of a VERSION message, request or reply.

    The JSON is optional, and so is "capabilities" in it. Raises WireError.
    """
    version = Version.unpack(payload)
    text = payload[Version.LAYOUT.size :]
    if not text:
        return version, {}
    if text[-1] != 0:
        raise WireError("the version data does not end with NUL")
    try:
        data = json.loads(text[:-1])
    except (ValueError, RecursionError) as error:
        raise WireError(f"the version data is not JSON ({error})") from error
    capabilities = data.get(CAPABILITIES, {}) if isinstance(data, dict) else None
    if not isinstance(capabilities, dict):
        raise WireError("the version data holds no capabilities object")
    return version, capabilities


def pack_request(message_id: int, command: int, payload: bytes = b"", *, flags: int = 0) -> bytes:
    """A request with its header."""
    return Header(message_id, command, HEADER_SIZE + len(payload), flags).pack() + payload


def pack_reply(request: Header, payload: bytes = b"") -> bytes:
    """The reply to a request, with its header."""
    size = HEADER_SIZE + len(payload)
    return Header(request.message_id, request.command, size, HeaderFlag.REPLY).pack() + payload


def pack_error(request: Header, error: int) -> bytes:
    """The reply that says errno error; it has no payload (vfio-user.rst, "Header")."""
    flags = HeaderFlag.REPLY | HeaderFlag.ERROR
    return Header(request.message_id, request.command, HEADER_SIZE, flags, error).pack()


def pack_sparse_mmap(areas: Sequence[SparseArea]) -> bytes:
    """The SPARSE_MMAP capability with these areas, the last one of its chain."""
    header = CapabilityHeader(RegionCapability.SPARSE_MMAP, 1, 0).pack()
    return header + SparseMmap(len(areas)).pack() + b"".join(area.pack() for area in areas)
