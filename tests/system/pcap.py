"""Capture files for the tests: classic pcap, written and read by hand."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# draft-ietf-opsawg-pcap: magic (microseconds, nanoseconds), version, zone, accuracy, length, link.
_MAGIC_US = 0xA1B2C3D4
_MAGIC_NS = 0xA1B23C4D
_HEADER = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_ETHERNET = 1


def write(path: Path, frames: Iterable[bytes]) -> None:
    """Writes frames without FCS as a capture of an Ethernet link."""
    records = [_RECORD.pack(0, 0, len(frame), len(frame)) + frame for frame in frames]
    path.write_bytes(_HEADER.pack(_MAGIC_US, 2, 4, 0, 0, 262144, _ETHERNET) + b"".join(records))


def read(path: Path) -> list[bytes]:
    """All frames of a little-endian capture; fails if one was cut short."""
    data = path.read_bytes()
    magic, *_, link = _HEADER.unpack_from(data)
    assert magic in {_MAGIC_US, _MAGIC_NS}
    assert link == _ETHERNET
    frames = []
    at = _HEADER.size
    while at < len(data):
        _, _, captured, length = _RECORD.unpack_from(data, at)
        assert captured == length
        at += _RECORD.size
        frames.append(data[at : at + captured])
        assert len(frames[-1]) == captured
        at += captured
    return frames
