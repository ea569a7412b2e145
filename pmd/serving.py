"""How channels serve their functions: the same for all of a run."""

from __future__ import annotations

from guest.named_tuple import NamedTuple
from pmd.ports import Copy


class Serving(NamedTuple):
    """What a user chose.

    Attributes:
        bar: The window's BAR.
        sleeps: Loops sleep, so VM1's kicks are wanted.
        copy: Which frames are copied.
    """

    bar: int = 2
    sleeps: bool = False
    copy: Copy = Copy.AUTO
