"""The lab's cache: layers, each a directory made once from a recipe."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from guest.errors import VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_KEY_DIGITS = 16
_KEPT = 3  # of one name: this one, and what another checkout may want again
_IN_USE_S = 3600.0  # what somebody may still be using


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/vhost-pci-lab, by default below ~/.cache (XDG base directory specification).

    A relative $XDG_CACHE_HOME counts as unset, as the specification says.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path("~/.cache").expanduser()
    return home / "vhost-pci-lab"


def recipe_key(*parts: str | bytes) -> str:
    """A short name for what a layer is made from: equal parts, equal key."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:_KEY_DIGITS]


class Cache:
    """Layers below one directory. Any number of processes may use it at once.

    Args:
        directory: Made if it is not there.

    Raises:
        VhostPciError: It cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refusal("make", directory, error) from error

    def layer(self, name: str, key: str, make: Callable[[Path], None]) -> Path:
        """The directory of layer name made from what key stands for; made now if need be.

        Args:
            name: What it is, for the eye.
            key: `recipe_key` of all that goes into it.
            make: Fills the empty directory it is given; what it raises leaves no layer behind.

        Returns:
            A directory that nobody changes any more.

        Raises:
            VhostPciError: The cache is not ours to write.
        """
        path = self.directory / f"{name}-{key}"
        with self._lock(name):
            if path.is_dir():
                os.utime(path)
                return path
            part = Path(tempfile.mkdtemp(prefix=f"{name}-part-", dir=self.directory))
            try:
                make(part)
                part.rename(path)
                os.utime(path)  # unpacking a package may have set the time to the package's
            finally:
                shutil.rmtree(part, ignore_errors=True)
            self._prune(name)
            return path

    def _prune(self, name: str) -> None:
        """Remove what was not used for long, beyond a few of each name."""
        width = len(name) + 1 + _KEY_DIGITS
        layers = [p for p in self.directory.glob(f"{name}-*") if len(p.name) == width]
        layers.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in layers[_KEPT:]:
            if path.stat().st_mtime < time.time() - _IN_USE_S:
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One maker of a name at a time, on this machine."""
        try:
            file = (self.directory / f"{name}.lock").open("w")
        except OSError as error:
            raise _refusal("use", self.directory, error) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _refusal(operation: str, directory: Path, error: OSError) -> VhostPciError:
    remedy = "name a directory of yours: XDG_CACHE_HOME=DIRECTORY"
    return VhostPciError(operation, f"the cache {directory}", errno_text(error), remedy)
