"""Memory that child processes share, as VM1's is."""

from __future__ import annotations

import functools
import mmap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def shared(length: int) -> npt.NDArray[np.uint8]:
    """So many bytes, zero."""
    return np.frombuffer(mmap.mmap(-1, length), dtype=np.uint8)


def noisy(seed: int, length: int) -> npt.NDArray[np.uint8]:
    """So many bytes of noise, by a seed the same."""
    memory = shared(length)
    memory[:] = _noise(seed, length)
    return memory


@functools.cache
def _noise(seed: int, length: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)
