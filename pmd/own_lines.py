"""Structures in cache lines of their own: what two lcores write must not lie side by side."""

from __future__ import annotations

import ctypes
from typing import Any, TypeVar, cast

LINES_BYTES = 128  # csrc/lines.h
_Kind = TypeVar("_Kind", bound="ctypes.Structure | ctypes.Array[Any]")


def own_lines(kind: type[_Kind]) -> _Kind:
    """A zeroed structure or array that begins a pair of cache lines, and shares its last with none.

    It lives as long as it is referred to.
    """
    room = (ctypes.sizeof(kind) // LINES_BYTES + 1) * LINES_BYTES
    memory = (ctypes.c_char * (room + LINES_BYTES))()
    return cast("_Kind", kind.from_buffer(memory, -ctypes.addressof(memory) % LINES_BYTES))
