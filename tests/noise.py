"""`python -m tests.noise --seeds N`: rings of noise, kernel and oracle on each (S38).

A seed is a ring of either layout and direction, its descriptors, tables and heads random bytes;
whatever they say, both see the same in it. CI takes a few, others with each run; a failure names
its seed, and `--from SEED --seeds 1` shows it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from tests.kernel.packed_driver import WRAP
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import AVAIL, DESC, RINGS, RINGS_SIZE, Rig, receive, transmit

FRAMES = [bytes(100)] * 3
_PIECE = 500  # seeds a process does in one go


def split_noise(seed: int) -> tuple[Rig, bool]:
    """Ring and tables are random bytes, some of them zero; only the indices let it start.

    Returns:
        The rig, which is the caller's to close; whether VM1 receives on the ring.
    """
    noise = np.random.default_rng(seed)
    size, write = int(noise.choice([1, 4, 16])), bool(noise.integers(2))
    rig = Rig(size, indirect=True, event_idx=bool(seed % 2), mergeable=write)
    data = noise.integers(0, 256, RINGS_SIZE, dtype=np.uint8)
    data[noise.integers(0, 100, RINGS_SIZE) < noise.integers(101)] = 0
    rig.poke(RINGS, data.tobytes())
    heads = noise.integers(0, size + (seed % 8 == 0), size, dtype="<u2")
    rig.poke(AVAIL + 4, heads.tobytes())
    rig.set_index(seed % 65536)
    rig.index += size
    rig.make_available()
    return rig, write


def packed_noise(seed: int) -> tuple[Rig, bool]:
    """Descriptors are random bytes, some of them zero; half of the flags say available.

    Returns:
        As split_noise.
    """
    noise = np.random.default_rng(seed)
    size, write = int(noise.choice([1, 4, 13])), bool(noise.integers(2))
    rig = PackedRig(size, WRAP, indirect=True, event_idx=bool(seed % 2), mergeable=write)
    data = noise.integers(0, 256, 16 * size, dtype=np.uint8)
    data[noise.integers(0, 100, 16 * size) < noise.integers(101)] = 0
    marks = noise.integers(0, 2, size) == 0
    data[14::16][marks] = (data[14::16][marks] | 0x80).astype(np.uint8)
    data[15::16][marks] &= 0x7F
    rig.poke(DESC, data.tobytes())
    return rig, write


KINDS = (split_noise, packed_noise)


def try_seeds(seeds: range) -> None:
    """Each as a split and as a packed ring.

    Raises:
        AssertionError: Kernel and oracle differ. It, or whatever else went wrong, names the seed.
    """
    for seed in seeds:
        for kind in KINDS:
            rig, write = kind(seed)
            try:
                with rig:
                    receive(rig, FRAMES) if write else transmit(rig)
            except Exception as error:
                error.add_note(f"{kind.__name__}: python -m tests.noise --from {seed} --seeds 1")
                raise


def main() -> int:
    """All of them, in several processes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.noise", description="Rings of noise, kernel and oracle on each."
    )
    parser.add_argument("--seeds", type=int, default=1_000_000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    end = arguments.first + arguments.seeds
    pieces = [
        range(begin, min(begin + _PIECE, end)) for begin in range(arguments.first, end, _PIECE)
    ]
    began = time.monotonic()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        try:
            for _ in pool.map(try_seeds, pieces):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print(f"{arguments.seeds} seeds from {arguments.first}, {time.monotonic() - began:.0f} s: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
