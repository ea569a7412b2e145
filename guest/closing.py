"""A context manager of whatever has a close()."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Closing:
    """What is opened by being made: a with statement gives it and closes it at the end."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Gives back all that it holds; closing twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
