"""CPUs: the lists people type, pinning a thread to one, and keeping others off it."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from guest.discovery import SYSFS
from guest.errors import UsageError, VhostPciError, errno_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_ITEM = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)
# cpu_set_t's size (sched.h CPU_SETSIZE): more cannot be pinned to.
_CPUS_MAX = 1024


def parse_lcores(text: str, root: Path = SYSFS) -> tuple[int, ...]:
    """A list such as `1`, `1-3` or `1,3-4`, in the order typed. root is where sysfs is mounted.

    Raises:
        UsageError: Malformed, a CPU twice, not there, offline, or not this process's to use.
    """
    cpus: list[int] = []
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise _error(text, f"{item.strip()!r} is no CPU or range", "give a list like 1,3-4")
        first = int(match[1])
        last = int(match[2] or match[1])
        if last < first:
            raise _error(text, f"the range {match[0]} runs backwards", f"write {last}-{first}")
        if last >= _CPUS_MAX:
            raise _error(text, f"CPU {last} is not there")
        cpus += range(first, last + 1)
    online = _online(root)
    allowed = usable_cpus(root)
    for position, cpu in enumerate(cpus):
        if cpu in cpus[:position]:
            raise _error(text, f"CPU {cpu} is in it twice")
        if cpu not in online:
            raise _error(text, f"CPU {cpu} is not online", f"online are {_join(online)}")
        if cpu not in allowed:
            raise _error(
                text, f"CPU {cpu} is not this process's", f"it may use {_join(allowed)} (taskset)"
            )
    return tuple(cpus)


def usable_cpus(root: Path = SYSFS) -> set[int]:
    """The CPUs this process may run threads on: its affinity mask, and isolated ones.

    With isolcpus, the kernel starts every process with a mask that leaves the isolated CPUs out,
    and lets it ask for them. Only a mask that somebody has narrowed further is to be respected.
    """
    mask = os.sched_getaffinity(0)
    isolated = _isolated(root)
    return mask | isolated if mask == _online(root) - isolated else mask


def default_lcores(count: int, root: Path = SYSFS) -> tuple[int, ...]:
    """The count highest usable CPUs, ascending: isolated ones first, and the lowest are busiest.

    Raises:
        VhostPciError: The process may use fewer.
    """
    isolated = _isolated(root)
    allowed = sorted(usable_cpus(root), key=lambda cpu: (cpu in isolated, cpu))
    if count > len(allowed):
        raise VhostPciError(
            "choose",
            f"{count} lcores",
            f"this process may use {len(allowed)} CPUs",
            "ask for fewer, or widen its affinity mask (taskset)",
        )
    return tuple(sorted(allowed[len(allowed) - count :]))


def pin_current_thread(cpu: int) -> None:
    """Let the calling thread run on this CPU only.

    Raises:
        VhostPciError: The kernel refuses: the CPU went offline or out of the mask.
    """
    try:
        os.sched_setaffinity(0, {cpu})  # 0 is the calling thread, sched_setaffinity(2)
    except (OSError, ValueError, OverflowError) as error:
        cause = errno_text(error) if isinstance(error, OSError) else str(error)
        raise VhostPciError("pin a thread to", f"CPU {cpu}", cause) from error


@contextlib.contextmanager
def kept_off(cpus: Sequence[int]) -> Iterator[None]:
    """Meanwhile the calling thread, and what it starts, is not run on these CPUs.

    Where they are all that it may run on, it is as before. Thread rule: leave it on the same one.
    """
    before = os.sched_getaffinity(0)
    _run_on(before - set(cpus))
    try:
        yield
    finally:
        _run_on(before)


def _run_on(cpus: set[int]) -> None:
    """Wish for it: there may be none, and those that there were may have gone offline."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cpus)


def parse_cpu_list(text: str) -> set[int]:
    """A list as the kernel writes it, not empty: `0-3,5`."""
    cpus: set[int] = set()
    for item in text.split(","):
        first, _, last = item.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def _online(root: Path) -> set[int]:
    """The kernel's list; where sysfs is not mounted, what this process may use is online."""
    return _read_list(root, "online") or os.sched_getaffinity(0)


def _isolated(root: Path) -> set[int]:
    return _read_list(root, "isolated") & _online(root)


def _read_list(root: Path, name: str) -> set[int]:
    try:
        text = (root / "devices/system/cpu" / name).read_text(encoding="ascii").strip()
    except OSError:
        return set()
    return parse_cpu_list(text) if text else set()


def _join(cpus: set[int]) -> str:
    return ",".join(str(cpu) for cpu in sorted(cpus))


def _error(text: str, cause: str, remedy: str = "") -> UsageError:
    return UsageError("use", f"lcores {text!r}", cause, remedy)
