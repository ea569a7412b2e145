"""What guest/ reads of the kernel, IOMMUs, CPUs and PCI functions, on trees and on this machine."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from guest.cpu_facts import CpuFacts, read_cpu
from guest.iommu import IommuUnits, read_iommu
from guest.kernel_facts import (
    Access,
    HugePages,
    KernelFacts,
    ModuleState,
    access,
    lockable_bytes,
    module_state,
    read_kernel,
)
from guest.pci_facts import Bar, PciFacts, read_pci
from tests.guest.tree import CPU, GOOD, MODULES, config_space, write_function, write_tree

ABSENT = Bar(0, prefetchable=False, implemented=False)


def test_kernel(tmp_path: Path) -> None:
    assert read_kernel(write_tree(tmp_path, GOOD)) == KernelFacts(
        command_line=("ro", "quiet", "intel_iommu=on", "isolcpus=1", "nohz_full=1"),
        lockdown="none",
        clock_source="tsc",
        datagram_queue=512,
        huge_pages=(HugePages(2 << 20, 8, 5), HugePages(1 << 30, 0, 0)),
    )


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    assert read_kernel(tmp_path) == KernelFacts((), "", "", None, ())
    assert read_iommu(tmp_path) == IommuUnits((), 0)


def test_this_kernel() -> None:
    facts = read_kernel()
    assert facts.command_line == tuple(Path("/proc/cmdline").read_text().split())
    assert facts.datagram_queue == int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())


@pytest.mark.parametrize("mode", ["integrity", "confidentiality"])
def test_lockdown(tmp_path: Path, mode: str) -> None:
    text = "none integrity confidentiality\n".replace(mode, f"[{mode}]")
    write_tree(tmp_path, {"sys/kernel/security/lockdown": text})
    assert read_kernel(tmp_path).lockdown == mode


def test_modules(tmp_path: Path) -> None:
    line = "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/pci/vfio-pci-core.ko.xz\n"
    write_tree(tmp_path, {MODULES: line})
    assert module_state("vfio-pci", tmp_path) is ModuleState.LOADABLE
    assert module_state("vfio_pci", tmp_path) is ModuleState.LOADABLE
    assert module_state("vfio-pci-core", tmp_path) is ModuleState.MISSING
    assert module_state("vfio_iommu_type1", tmp_path) is ModuleState.MISSING
    write_tree(tmp_path, {"sys/module/vfio_pci/refcnt": "0\n"})
    assert module_state("vfio-pci", tmp_path) is ModuleState.LOADED


def test_nodes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"dev/vfio/vfio": ""})
    assert access("/dev/vfio/vfio", tmp_path) is Access.ALLOWED
    assert access("/dev/vfio/4", tmp_path) is Access.MISSING


def test_lockable_memory(tmp_path: Path) -> None:
    write_tree(tmp_path, {"proc/self/status": "Name:\tpmd\nCapEff:\t0000000000004000\n"})
    assert lockable_bytes(tmp_path) is None
    write_tree(tmp_path, {"proc/self/status": "Name:\tpmd\nCapEff:\t00000000ffffbfff\n"})
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, hard))
        assert lockable_bytes(tmp_path) == 65536
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


def test_iommu(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"class/iommu/{name}/x": "" for name in ("dmar1", "dmar0")})
    write_tree(tmp_path, {f"kernel/iommu_groups/{group}/type": "" for group in range(3)})
    assert read_iommu(tmp_path) == IommuUnits(("dmar0", "dmar1"), 3)


def test_cpus(tmp_path: Path) -> None:
    write_tree(tmp_path, GOOD)
    write_tree(
        tmp_path,
        {
            f"{CPU}/cpu3/topology/thread_siblings_list": "3,7-8\n",
            f"{CPU}/cpu3/cpufreq/scaling_governor": "powersave\n",
        },
    )
    sys = tmp_path / "sys"
    assert read_cpu(1, sys) == CpuFacts(1, True, True, frozenset(), "")
    assert read_cpu(2, sys) == CpuFacts(2, False, False, frozenset(), "")
    assert read_cpu(3, sys) == CpuFacts(3, True, False, frozenset({7, 8}), "powersave")


@pytest.mark.parametrize("nohz_full", ["(null)\n", "\n"])
def test_no_cpu_is_tickless(tmp_path: Path, nohz_full: str) -> None:
    write_tree(tmp_path, {f"{CPU}/nohz_full": nohz_full, f"{CPU}/isolated": "\n"})
    assert read_cpu(0, tmp_path / "sys") == CpuFacts(0, False, False, frozenset(), "")


def test_a_function(tmp_path: Path) -> None:
    assert read_pci(write_function(tmp_path)) == PciFacts(
        present=True,
        memory_enabled=True,
        msi=True,
        bars=(
            Bar(1 << 20, prefetchable=False, implemented=True),
            ABSENT,
            Bar(512 << 20, prefetchable=True, implemented=True),
            Bar(0, prefetchable=False, implemented=True),  # the upper half of BAR 2's address
            ABSENT,
            ABSENT,
        ),
    )


@pytest.mark.parametrize("bar", [(0, 0, 0), (0, 512 << 20, 0x2014220C)])
def test_a_bar_without_addresses(tmp_path: Path, bar: tuple[int, int, int]) -> None:
    """Kernels differ: cleared altogether, or kept and marked IORESOURCE_UNSET."""
    facts = read_pci(write_function(tmp_path, bars={2: bar}))
    assert facts is not None
    assert (facts.bars[2].size, facts.bars[2].implemented) == (0, True)


def test_no_msi_and_no_decode(tmp_path: Path) -> None:
    facts = read_pci(
        write_function(tmp_path, config_space((4, 0, 12, 0, 0, 0), command=0, msi=False))
    )
    assert facts is not None
    assert (facts.present, facts.memory_enabled, facts.msi) == (True, False, False)


def test_capabilities_in_a_ring_end(tmp_path: Path) -> None:
    config = bytearray(config_space((4, 0, 12, 0, 0, 0), msi=False))
    config[0x41] = 0x40
    facts = read_pci(write_function(tmp_path, bytes(config)))
    assert facts is not None
    assert facts.msi is False


def test_what_only_root_sees(tmp_path: Path) -> None:
    facts = read_pci(write_function(tmp_path, config_space((4, 0, 12, 0, 0, 0))[:64]))
    assert facts is not None
    assert facts.msi is None


def test_a_function_that_is_gone(tmp_path: Path) -> None:
    facts = read_pci(write_function(tmp_path, b"\xff" * 256))
    assert facts is not None
    assert not facts.present


def test_a_function_that_went_away_meanwhile(tmp_path: Path) -> None:
    pci = write_function(tmp_path)
    (Path(pci.sys_path) / "config").unlink()
    assert read_pci(pci) is None
