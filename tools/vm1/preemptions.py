"""How often this thread, or the back-end's, had to make way for another."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from guest.errors import UsageError

# Documentation/filesystems/proc.rst, table 1-2: one that sleeps of itself is not among them.
_COUNT = re.compile(r"^nonvoluntary_ctxt_switches:\s+(\d+)$", re.MULTILINE)


class Preemptions:
    """How often the scheduler took threads off their CPU: this one, and those of a process.

    Of that process the threads that are pinned to one CPU, which forward; all, where none is. One
    that sleeps and is woken made no way: how long that takes is its own doing.

    Thread rule: one thread, which is the one that is counted.

    Args:
        peer_pid: The back-end's.

    Raises:
        UsageError: There is no such process.
    """

    def __init__(self, peer_pid: int) -> None:
        threads = Path(f"/proc/{peer_pid}/task")
        try:
            ids = [int(entry.name) for entry in threads.iterdir()]
        except OSError as error:
            raise UsageError("use", f"--peer-pid {peer_pid}", "there is no such process") from error
        pinned = [number for number in ids if _cpus(number) == 1]
        own = Path("/proc/thread-self").resolve()
        self._files = [own / "status"]
        self._files += [threads / str(number) / "status" for number in pinned or ids]

    def count(self) -> int:
        """In all so far; counted as one begins. A thread that has ended has none."""
        found = 0
        for file in self._files:
            with contextlib.suppress(OSError):
                found += sum(map(int, _COUNT.findall(file.read_text())))
        return found


def _cpus(thread: int) -> int:
    """How many CPUs a thread may run on; 0 if it has ended."""
    with contextlib.suppress(OSError):
        return len(os.sched_getaffinity(thread))
    return 0
