"""What this machine's kernel says of itself: command line, modules, limits, clock, huge pages."""

from __future__ import annotations

import enum
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from guest.modules import loaded

ROOT = Path("/")
_CAP_IPC_LOCK = 14  # linux/capability.h
_CAP_SYS_NICE = 23


class ModuleState(enum.Enum):
    """A kernel module, here and now."""

    LOADED = "loaded"
    LOADABLE = "not loaded"
    MISSING = "not there"


class Access(enum.Enum):
    """What this process may do with a device node."""

    ALLOWED = "may be opened"
    DENIED = "permission denied"
    MISSING = "not there"


@dataclass(frozen=True, slots=True)
class HugePages:
    """The huge pages of one size in bytes: all, and those that nobody uses."""

    size: int
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The kernel at the moment of asking. None, or empty, where it does not tell.

    Attributes:
        command_line: Its words.
        lockdown: none, integrity or confidentiality.
        clock_source: What CLOCK_MONOTONIC is read from.
        datagram_queue: How many datagrams wait in a Unix socket before its sender does.
        huge_pages: One entry a size, by size.
    """

    command_line: tuple[str, ...]
    lockdown: str
    clock_source: str
    datagram_queue: int | None
    huge_pages: tuple[HugePages, ...]


def read_kernel(root: Path = ROOT) -> KernelFacts:
    """The facts, below root."""
    queue = _text(root / "proc/sys/net/unix/max_dgram_qlen")
    return KernelFacts(
        command_line=tuple(_text(root / "proc/cmdline").split()),
        # All values, the one in force in brackets.
        lockdown=_text(root / "sys/kernel/security/lockdown").partition("[")[2].partition("]")[0],
        clock_source=_text(
            root / "sys/devices/system/clocksource/clocksource0/current_clocksource"
        ),
        datagram_queue=int(queue) if queue else None,
        huge_pages=_huge_pages(root / "sys/kernel/mm/hugepages"),
    )


def module_state(module: str, root: Path = ROOT) -> ModuleState:
    """Whether the running kernel has a module, or could load it."""
    if loaded(module, root / "sys"):
        return ModuleState.LOADED
    directory = root / "lib/modules" / os.uname().release
    name = module.replace("-", "_")
    for line in _text(directory / "modules.dep").splitlines():
        file = line.partition(":")[0].rpartition("/")[2]
        if file.partition(".")[0].replace("-", "_") == name:
            return ModuleState.LOADABLE
    return ModuleState.MISSING


def access(path: str, root: Path = ROOT) -> Access:
    """Whether this process may open a device node, given by its absolute path."""
    node = root / path.lstrip("/")
    if not node.exists():
        return Access.MISSING
    return Access.ALLOWED if os.access(node, os.R_OK | os.W_OK) else Access.DENIED


def lockable_bytes(root: Path = ROOT) -> int | None:
    """How much memory this process may lock; None: as much as there is."""
    if _capable(_CAP_IPC_LOCK, root):
        return None
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def may_run_in_real_time(root: Path = ROOT) -> bool:
    """Whether this process may give a thread a real-time priority, be it the lowest."""
    return _capable(_CAP_SYS_NICE, root) or resource.getrlimit(resource.RLIMIT_RTPRIO)[0] != 0


def _capable(capability: int, root: Path) -> bool:
    for line in _text(root / "proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> capability & 1)
    return False


def _huge_pages(directory: Path) -> tuple[HugePages, ...]:
    found = []
    for path in directory.glob("hugepages-*kB"):
        size = int(path.name.removeprefix("hugepages-").removesuffix("kB")) << 10
        total, free = (int(_text(path / f"{each}_hugepages") or 0) for each in ("nr", "free"))
        found.append(HugePages(size, total, free))
    return tuple(sorted(found, key=lambda each: each.size))


def _text(path: Path) -> str:
    """Empty where there is no such file, or none for us."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
