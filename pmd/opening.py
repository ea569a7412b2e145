"""A function that is opened again, which may take as long as a server does not answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest.function import Function
    from pmd.source import Source


class Opening(Closing):
    """Opens a source's function on a thread of its own; nobody else uses the source meanwhile.

    Thread rule: the main thread.

    Args:
        source: Whose function.
        done: Called on that thread at its end.
    """

    def __init__(self, source: Source, done: Callable[[], None]) -> None:
        self._source = source
        self._done = done
        self._function: Function | None = None
        self._error: Exception | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._open, name="opening", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            self._function = self._source.open()
        except (VhostPciError, OSError) as error:
            self._error = error
        finally:
            self._ended = True
            self._done()

    @property
    def ended(self) -> bool:
        """Whether `take` is due, and waits for nothing."""
        return self._ended

    def take(self) -> Function:
        """The function, the caller's from now on. Once.

        Raises:
            VhostPciError: It cannot be opened.
        """
        self._thread.join()
        function, self._function = self._function, None
        if function is None:
            raise self._error or VhostPciError("open", self._source.name, "its opening failed")
        return function

    def close(self) -> None:
        """Wait for it to end, and let go of a function that nobody took. Twice is fine."""
        self._thread.join()
        if self._function is not None:
            self._function.close()
            self._function = None
