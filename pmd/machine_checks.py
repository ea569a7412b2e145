"""What `pmd doctor` says of the machine: judgements on facts of guest/, one function a subject."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.kernel_facts import Access, ModuleState
from pmd.finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest.cpu_facts import CpuFacts
    from guest.iommu import IommuUnits
    from guest.kernel_facts import KernelFacts

# A VF's rings and buffers, as VFIO locks them when they are mapped for DMA.
_LOCKABLE_MIN = 64 << 20
_DATAGRAMS_MIN = 128
# Read in user space, without a system call or a trap.
_FAST_CLOCKS = {"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"}
_OFF = ("intel_iommu=off", "amd_iommu=off", "iommu=off")


def check_iommu(units: IommuUnits, kernel: KernelFacts) -> Finding:
    """Without an IOMMU the kernel gives no function to user space."""
    if units.names:
        return ok("IOMMU", f"{', '.join(units.names)}, {units.group_count} groups")
    off = [word for word in kernel.command_line if word in _OFF]
    if off:
        remedy = f"take {off[0]} off the kernel's command line"
        return problem("IOMMU", f"off, by {off[0]} on the kernel's command line", remedy)
    remedy = "in a VM give it one (-device intel-iommu,intremap=on,caching-mode=on)"
    if "intel_iommu=on" not in kernel.command_line:
        remedy += "; on Intel boot with intel_iommu=on iommu.passthrough=0"
    return problem("IOMMU", "none is on", remedy)


def check_module(module: str, state: ModuleState) -> Finding:
    """A module that VFIO needs."""
    what = f"module {module}"
    if state is ModuleState.LOADED:
        return ok(what, state.value)
    if state is ModuleState.LOADABLE:
        remedy = f"pmd bind does that, or: modprobe {module}"
        return warning(what, state.value, remedy)
    remedy = "install the kernel's full package (not its cloud flavour), or build it with VFIO_PCI"
    return problem(what, f"{state.value}: this kernel has not been built with it", remedy)


def check_node(path: str, found: Access) -> Finding:
    """A device node of VFIO."""
    if found is Access.ALLOWED:
        return ok(path, found.value)
    if found is Access.MISSING:
        return problem(path, found.value, "load VFIO: modprobe vfio-pci")
    return problem(path, found.value, f"run as root, or give it to this user: chown $USER {path}")


def check_lockable(size_bytes: int | None) -> Finding:
    """How much memory may be mapped for a VF's DMA."""
    if size_bytes is None:
        return ok("locked memory", "no limit")
    found = f"up to {size_bytes >> 10} KiB"
    if size_bytes >= _LOCKABLE_MIN:
        return ok("locked memory", found)
    remedy = "ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit"
    return warning("locked memory", f"{found}, too little for a VF's DMA", remedy)


def check_lockdown(kernel: KernelFacts) -> Finding:
    """VFIO works under lockdown, sysfs's BAR mappings do not."""
    if kernel.lockdown in ("", "none"):
        return ok("lockdown", "none")
    remedy = "--window-map wc needs it off (secure boot); vfio works"
    return warning("lockdown", kernel.lockdown, remedy)


def check_clock(kernel: KernelFacts) -> Finding:
    """Asked for the time, a slow clock costs a trap."""
    clock = kernel.clock_source or "unknown"
    if clock in _FAST_CLOCKS:
        return ok("clock source", clock)
    remedy = "boot with tsc=reliable, or give the VM an invariant TSC (-cpu host,+invtsc)"
    return warning("clock source", f"{clock}, which is slow to read", remedy)


def check_huge_pages(kernel: KernelFacts) -> Finding:
    """Never a fault here: VM1's memory is the host's business."""
    pages = [f"{p.free} of {p.total} of {p.size >> 20} MiB" for p in kernel.huge_pages if p.total]
    return ok("huge pages", ", ".join(pages) or "none, and none needed here")


def check_datagrams(kernel: KernelFacts) -> Finding:
    """Of interest to VF dgram: only."""
    queue = kernel.datagram_queue
    if queue is None or queue >= _DATAGRAMS_MIN:
        return ok("datagram queue", "unknown" if queue is None else f"{queue} datagrams")
    remedy = "for --vf dgram: sysctl -w net.unix.max_dgram_qlen=512"
    return warning("datagram queue", f"{queue} datagrams, less than a burst or two", remedy)


def check_cpu_count(count: int) -> Finding:
    """An lcore polls all the time; what else runs needs a CPU too."""
    if count > 1:
        return ok("CPUs", f"{count} for this process")
    remedy = "give the VM another, or widen the affinity mask (taskset)"
    return warning("CPUs", "one: polling and everything else share it", remedy)


def check_lcores(cpus: Sequence[CpuFacts]) -> list[Finding]:
    """Whether the lcores have their CPUs for themselves."""
    return [_check_lcore(cpu) for cpu in cpus]


def _check_lcore(cpu: CpuFacts) -> Finding:
    what = f"lcore {cpu.cpu}"
    facts = []
    remedies = []
    if not cpu.isolated:
        facts.append("other threads run on it too")
        remedies.append(f"isolcpus={cpu.cpu}")
    if not cpu.tickless:
        facts.append("the timer interrupts it")
        remedies.append(f"nohz_full={cpu.cpu} rcu_nocbs={cpu.cpu}")
    remedy = f"boot with {' '.join(remedies)}" if remedies else ""
    if cpu.siblings:
        siblings = ",".join(str(each) for each in sorted(cpu.siblings))
        facts.append(f"CPU {siblings} shares its core")
        remedy += f"{', ' if remedy else ''}keep CPU {siblings} idle"
    if cpu.governor not in ("", "performance"):
        facts.append(f"its frequency governor is {cpu.governor}")
        remedy += f"{', ' if remedy else ''}cpupower frequency-set -g performance"
    return warning(what, "; ".join(facts), remedy) if facts else ok(what, "isolated, tickless")
