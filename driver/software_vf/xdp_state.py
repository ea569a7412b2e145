"""What an xdp VF and its ports tell each other."""

from __future__ import annotations

import ctypes


class SharedState(ctypes.Structure):
    """struct rk_xdp_state; either side may look at any time."""

    frame_bytes_max: int
    broken: int
    _fields_ = [("frame_bytes_max", ctypes.c_uint32), ("broken", ctypes.c_uint32)]
