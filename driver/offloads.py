"""What may be left to the other side of a frame, to VM1 or a VF: checksums, segments, fragments."""

from __future__ import annotations

import enum


class Offloads(enum.IntFlag):
    """RK_RING_OFFLOADS: what may be left to the other side."""

    CSUM = 1 << 8
    TSO4 = 1 << 9
    TSO6 = 1 << 10
    ECN = 1 << 11
    USO = 1 << 12
    UFO = 1 << 13


NO_OFFLOADS = Offloads(0)
