"""What a back-end can do wrong."""

from __future__ import annotations

import enum


class Fault(enum.Enum):
    """What the back-end does wrong."""

    DUPLICATE_ID = enum.auto()
    STALE_ID = enum.auto()
    BAD_ID = enum.auto()
    LONG_LENGTH = enum.auto()
    SHORT_LENGTH = enum.auto()
    TRANSMIT_LENGTH = enum.auto()
    WRITE_BEHIND = enum.auto()
    WRITE_BEFORE = enum.auto()
    WRITE_IN_BUFFER = enum.auto()
    CORRUPT = enum.auto()
    TRUNCATE = enum.auto()
    LOSE = enum.auto()
    REPEAT = enum.auto()
    SWAP = enum.auto()
    FOREIGN = enum.auto()
    INDEX_JUMP = enum.auto()
    OUT_OF_ORDER = enum.auto()
    HEADER_FLAGS = enum.auto()
    NO_BUFFERS = enum.auto()
    MISSING_BUFFER = enum.auto()
    WRITE_READABLE = enum.auto()
    WRITE_DESC = enum.auto()
    WRONG_BASE = enum.auto()
    SIGNAL_ERROR = enum.auto()
    REFUSE_MEMORY = enum.auto()
    HANG_UP = enum.auto()
    LOSE_CALL = enum.auto()
    LOSE_TRANSMIT_CALL = enum.auto()
