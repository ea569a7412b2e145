"""Words of memory that somebody else reads and writes at the same time."""

from __future__ import annotations


def store_word(target: memoryview, value: int) -> None:
    """Write 16 bits, in the machine's order, by one store; target is two writable bytes, aligned.

    Bytes assigned to a slice go by memcpy, which stores two of them twice: the second time over
    what the other side has made of the first.
    """
    with target.cast("H") as word:
        word[0] = value
