"""`Handle`: a kernel object as Python owns it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.closing import Closing
from pmd.kernel_library import library

if TYPE_CHECKING:
    from collections.abc import Sequence


class Handle(Closing):
    """Owner of one kernel object: counts its users, frees it once."""

    _free = ""

    def __init__(self, handle: int, below: Sequence[Handle] = ()) -> None:
        self._handle: int | None = handle
        self._below = tuple(below)
        self._users = 0
        for owner in below:
            owner.hold()

    @property
    def handle(self) -> int:
        """The kernel's pointer; ValueError after close."""
        if self._handle is None:
            raise ValueError(f"{type(self).__name__} is closed")
        return self._handle

    def hold(self) -> None:
        """One more user: `close` refuses until each has let go."""
        self._users += 1

    def replace_below(self, below: Sequence[Handle]) -> None:
        """It stands on others now, and no longer on those given before."""
        for owner in below:
            owner.hold()
        for owner in self._below:
            owner.let_go()
        self._below = tuple(below)

    def let_go(self) -> None:
        """One user less."""
        self._users -= 1

    def close(self) -> None:
        """Free it. Twice is fine; BufferError while something still uses it."""
        if self._handle is None:
            return
        if self._users:
            raise BufferError(f"{type(self).__name__} has {self._users} users")
        getattr(library(), self._free)(self._handle)
        self._handle = None
        for owner in self._below:
            owner.let_go()
        self._below = ()
