"""What the kernel does on each CPU besides running a thread that polls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.cpus import parse_cpu_list
from guest.discovery import SYSFS

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """One CPU.

    Attributes:
        cpu: Its number.
        isolated: The scheduler puts nothing on it by itself (isolcpus).
        tickless: The timer does not interrupt a single running thread (nohz_full).
        siblings: Other CPUs of the same core.
        governor: Of its frequency, empty where the kernel does not show one, as in most VMs.
    """

    cpu: int
    isolated: bool
    tickless: bool
    siblings: frozenset[int]
    governor: str


def read_cpu(cpu: int, root: Path = SYSFS) -> CpuFacts:
    """The facts of one CPU, below root where sysfs is mounted."""
    cpus = root / "devices/system/cpu"
    own = cpus / f"cpu{cpu}"
    return CpuFacts(
        cpu=cpu,
        isolated=cpu in _list(cpus / "isolated"),
        tickless=cpu in _list(cpus / "nohz_full"),
        siblings=frozenset(_list(own / "topology/thread_siblings_list") - {cpu}),
        governor=_text(own / "cpufreq/scaling_governor"),
    )


def _list(path: Path) -> set[int]:
    text = _text(path)
    # nohz_full says "(null)" where the kernel was not built or booted for it.
    return parse_cpu_list(text) if text[:1].isdigit() else set()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
