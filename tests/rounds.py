"""Rounds of something random until a time is over: what the commands for hours have in common."""

from __future__ import annotations

import argparse
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def rounds(name: str, what: str, *, minutes: float) -> Iterator[random.Random]:
    """The chance of each round, at least one; the seed is printed, and may be given again.

    Args:
        name: Of the module that is run.
        what: It does, a sentence.
        minutes: For how long, unless the command line says.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=what)
    said = f"for how long (default: {minutes:g})"
    parser.add_argument("--minutes", type=float, default=minutes, help=said)
    parser.add_argument("--seed", type=int, default=None, help="of what is random (default: any)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    deadline = time.monotonic() + 60 * arguments.minutes
    yield chance
    while time.monotonic() < deadline:
        yield chance
