"""`python -m tests.noise --seeds N`: rings of noise, kernel and oracle on each (S38).

A seed is a ring of either layout and direction, its descriptors, tables and heads random bytes;
whatever they say, both see the same in it. Of half of them the addresses are of VM1's memory, where
frames lie whose virtio-net headers are noise of the same kind: what was negotiated is done, or not.
CI takes a few, others with each run; a failure names its seed, and `--from SEED --seeds 1` shows it
again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from driver.offloads import Offloads
from tests.kernel.offload_frames import asking, packet
from tests.kernel.packed_driver import WRAP
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import (
    ALL_OFFLOADS,
    AVAIL,
    DATA,
    DESC,
    RINGS,
    RINGS_SIZE,
    Rig,
    receive,
    transmit,
)

if TYPE_CHECKING:
    import numpy.typing as npt

FRAMES = [bytes(100)] * 3
_PLACES = 8  # of frames that VM1 may send, each with all that is behind it
_PLACE_BYTES = 0x400
_SENT = [
    asking(packet(bytes(700), udp=udp, ipv6=ipv6, tags=tags), 256, fragments=fragments)
    for udp, fragments in ((False, False), (True, False), (True, True))
    for ipv6 in (False, True)
    for tags in (0, 1)
]
_PIECE = 500  # seeds a process does in one go


def _near(noise: np.random.Generator, rig: Rig, data: npt.NDArray[np.uint8]) -> None:
    """Descriptors lead to frames, or close to one, and claim no more than a place or two.

    What a frame's header asks for is right or noise, and taken by the port or done in software.
    """
    descs = data[: len(data) // 16 * 16].reshape(-1, 16)
    addresses, lengths = descs[:, :8].view("<u8")[:, 0], descs[:, 8:12].view("<u4")[:, 0]
    where = DATA + _PLACE_BYTES * noise.integers(0, _PLACES, len(descs), dtype=np.uint64)
    begins = noise.integers(0, 4, len(descs)) > 0
    addresses[:] = where + np.where(begins, np.uint64(0), addresses % _PLACE_BYTES)
    lengths %= 2 * _PLACE_BYTES
    for place in range(_PLACES):
        frame, offload = _SENT[int(noise.integers(len(_SENT)))]
        header = np.frombuffer(offload.pack(), np.uint8).copy()
        wrong = noise.integers(0, 100, len(header)) < noise.choice([0, 0, 10, 50])
        header[wrong] = noise.integers(0, 256, int(wrong.sum()), dtype=np.uint8)
        rig.poke(DATA + _PLACE_BYTES * place, header.tobytes() + bytes(2) + frame)
    rig.takes = Offloads(int(noise.choice([0, int(ALL_OFFLOADS), int(noise.integers(64)) << 8])))


def _features(noise: np.random.Generator, seed: int) -> tuple[bool, dict[str, Any]]:
    """Whether descriptors are near frames; and what was negotiated."""
    near = bool(noise.integers(2))
    offloads = Offloads(int(noise.choice([int(ALL_OFFLOADS), int(noise.integers(64)) << 8])))
    return near, {"event_idx": bool(seed % 2), "offloads": offloads}


def split_noise(seed: int) -> tuple[Rig, bool]:
    """Ring and tables are random bytes, some of them zero; only the indices let it start.

    Returns:
        The rig, which is the caller's to close; whether VM1 receives on the ring.
    """
    noise = np.random.default_rng(seed)
    size, write = int(noise.choice([1, 4, 16])), bool(noise.integers(2))
    near, features = _features(noise, seed)
    rig = Rig(size, indirect=True, mergeable=write, **features)
    data = noise.integers(0, 256, RINGS_SIZE, dtype=np.uint8)
    data[noise.integers(0, 100, RINGS_SIZE) < noise.integers(101)] = 0
    if near:
        _near(noise, rig, data)
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
    near, features = _features(noise, seed)
    rig = PackedRig(size, WRAP, indirect=True, mergeable=write, **features)
    data = noise.integers(0, 256, 16 * size, dtype=np.uint8)
    data[noise.integers(0, 100, 16 * size) < noise.integers(101)] = 0
    if near:
        _near(noise, rig, data)
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
