"""`pmd doctor`: its judgement of every fact, on trees; and of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest.cpu_facts import CpuFacts
from guest.errors import VhostPciError
from guest.kernel_facts import Access
from pmd import machine_checks as machine
from pmd.doctor import examine_machine, examine_vfio
from pmd.finding import Finding, Level, has_problem, json_object, lines, ok, problem, warning
from pmd.function_checks import check_function
from pmd.window_checks import judge_windows
from pmd.window_probe import WindowSpeed
from tests.guest.tree import (
    ADDRESS,
    CLOCK,
    CPU,
    GOOD,
    MODULES,
    config_space,
    join_group,
    write_function,
    write_tree,
)
from tests.pmd.processes import Device, Vm1, marked, pmd

if TYPE_CHECKING:
    from guest.discovery import PciFunction

CACHED = WindowSpeed(2.0, 3.0)
UNCACHED = WindowSpeed(120.0, 480.0)
COMBINED = WindowSpeed(120.0, 40.0)


def bad(findings: list[Finding]) -> list[tuple[str, str, str]]:
    """Level, what and remedy of those that are not ok; each has a remedy, the others none."""
    for each in findings:
        assert bool(each.remedy) == (each.level is not Level.OK), each
        assert each.found
    return [(f.level.value, f.what, f.remedy) for f in findings if f.level is not Level.OK]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path, GOOD)


@pytest.fixture
def function(tree: Path) -> PciFunction:
    pci = write_function(tree)
    join_group(tree, Path(pci.sys_path), "vfio-pci")
    return pci


def test_a_good_machine(tree: Path, function: PciFunction) -> None:
    findings = [
        # How many CPUs there are is this process's affinity, whatever the tree says.
        *(each for each in examine_machine([1], tree) if each.what != "CPUs"),
        *examine_vfio([function], tree),
        *check_function(function),
    ]
    assert bad(findings) == []
    assert {each.what: each.found for each in findings} == {
        "lcore 1": "isolated, tickless",
        "clock source": "tsc",
        "huge pages": "5 of 8 of 2 MiB",
        "datagram queue": "512 datagrams",
        "IOMMU": "dmar0, 1 groups",
        "module vfio-pci": "loaded",
        "module vfio_iommu_type1": "loaded",
        "/dev/vfio/vfio": "may be opened",
        "/dev/vfio/4": "may be opened",
        "locked memory": "no limit",
        "lockdown": "none",
        f"{ADDRESS} driver": "vfio-pci",
        f"{ADDRESS} IOMMU group": f"4: {ADDRESS} (vfio-pci)",
        f"{ADDRESS} BAR 0": "1 MiB, not prefetchable",
        f"{ADDRESS} BAR 2": "512 MiB, prefetchable",
        f"{ADDRESS} MSI": "there",
        f"{ADDRESS} memory decode": "on",
    }


def test_a_machine_without_anything(tmp_path: Path) -> None:
    write_tree(tmp_path, {"proc/self/status": GOOD["proc/self/status"]})
    found = bad(examine_vfio([], tmp_path))
    assert [(level, what) for level, what, _ in found] == [
        ("problem", "IOMMU"),
        ("problem", "module vfio-pci"),
        ("problem", "module vfio_iommu_type1"),
    ]
    assert "intel_iommu=on" in found[0][2]
    assert "-device intel-iommu,intremap=on,caching-mode=on" in found[0][2]


@pytest.mark.parametrize("word", ["intel_iommu=off", "amd_iommu=off", "iommu=off"])
def test_an_iommu_turned_off(tmp_path: Path, word: str) -> None:
    write_tree(tmp_path, {"proc/cmdline": f"ro {word} quiet\n"})
    remedy = f"take {word} off the kernel's command line"
    assert ("problem", "IOMMU", remedy) in bad(examine_vfio([], tmp_path))


def test_an_iommu_asked_for_in_vain(tmp_path: Path) -> None:
    write_tree(tmp_path, {"proc/cmdline": "intel_iommu=on\n"})
    remedy = "in a VM give it one (-device intel-iommu,intremap=on,caching-mode=on)"
    assert ("problem", "IOMMU", remedy) in bad(examine_vfio([], tmp_path))


def test_modules_to_be_loaded(tmp_path: Path) -> None:
    write_tree(tmp_path, {MODULES: "a/vfio-pci.ko.xz:\nb/vfio_iommu_type1.ko.xz:\n"})
    assert [each for each in bad(examine_vfio([], tmp_path)) if each[1].startswith("mod")] == [
        ("warning", f"module {name}", f"pmd bind does that, or: modprobe {name}")
        for name in ("vfio-pci", "vfio_iommu_type1")
    ]


def test_nodes(tree: Path, function: PciFunction) -> None:
    (tree / "dev/vfio/4").unlink()
    remedy = "load VFIO: modprobe vfio-pci"
    assert bad(examine_vfio([function], tree)) == [("problem", "/dev/vfio/4", remedy)]
    denied = machine.check_node("/dev/vfio/4", Access.DENIED)
    assert (denied.level, denied.found) == (Level.PROBLEM, "permission denied")
    assert denied.remedy == "run as root, or give it to this user: chown $USER /dev/vfio/4"


def test_lockable_memory() -> None:
    assert machine.check_lockable(64 << 20) == ok("locked memory", "up to 65536 KiB")
    found = machine.check_lockable(8 << 20)
    assert (found.level, found.found) == (
        Level.WARNING,
        "up to 8192 KiB, too little for a VF's DMA",
    )
    assert "LimitMEMLOCK=infinity" in found.remedy


@pytest.mark.parametrize(
    ("file", "text", "what", "remedy"),
    [
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality", "lockdown", "vfio wo"),
        (CLOCK, "hpet\n", "clock source", "boot with tsc=reliable"),
        ("proc/sys/net/unix/max_dgram_qlen", "10\n", "datagram queue", "net.unix.max_dgram_qlen="),
        (f"{CPU}/isolated", "2\n", "lcore 1", "boot with isolcpus=1"),
        (f"{CPU}/nohz_full", "(null)\n", "lcore 1", "boot with nohz_full=1 rcu_nocbs=1"),
        (f"{CPU}/cpu1/topology/thread_siblings_list", "0-1\n", "lcore 1", "keep CPU 0 idle"),
        (f"{CPU}/cpu1/cpufreq/scaling_governor", "powersave\n", "lcore 1", "cpupower frequency-se"),
    ],
)
def test_what_makes_it_slow(tree: Path, file: str, text: str, what: str, remedy: str) -> None:
    write_tree(tree, {file: text})
    findings = [*examine_machine([1], tree), *examine_vfio([], tree)]
    found = [each for each in bad(findings) if each[1] != "CPUs"]
    assert [each[:2] for each in found] == [("warning", what)]
    assert remedy in found[0][2]


def test_an_lcore_with_everything_wrong() -> None:
    (found,) = machine.check_lcores([CpuFacts(2, False, False, frozenset({5, 6}), "ondemand")])
    assert found == warning(
        "lcore 2",
        "other threads run on it too; the timer interrupts it; CPU 5,6 shares its core; "
        "its frequency governor is ondemand",
        "boot with isolcpus=2 nohz_full=2 rcu_nocbs=2, keep CPU 5,6 idle, "
        "cpupower frequency-set -g performance",
    )


@pytest.mark.parametrize("driver", [None, "virtio-pci"])
def test_a_function_that_is_not_bound(tree: Path, driver: str | None) -> None:
    pci = write_function(tree, driver=driver)
    join_group(tree, Path(pci.sys_path), driver)
    remedy = f"pmd run binds it; to have its window measured here: pmd bind {ADDRESS}"
    assert bad(check_function(pci)) == [("warning", f"{ADDRESS} driver", remedy)]
    # Its group's node comes with the binding.
    assert bad(examine_vfio([pci], tree)) == []


def test_a_group_with_a_stranger(tree: Path, function: PciFunction) -> None:
    other = tree / "sys/devices/pci0000:00/0000:02:00.1"
    files = {"vendor": "0x8086\n", "device": "0x10c9\n", "class": "0x020000\n"}
    write_tree(other, files)
    join_group(tree, other, "igb")
    (found,) = bad(check_function(function))
    assert found == (
        "problem",
        f"{ADDRESS} IOMMU group",
        "pmd bind 0000:02:00.1, or give it a root port alone",
    )


def test_a_window_without_addresses(tree: Path, function: PciFunction) -> None:
    write_function(tree, bars={0: (0xFE000000, 1 << 18, 0x140204)})
    (found,) = bad(check_function(function))
    assert found[:2] == ("problem", f"{ADDRESS} BAR 2")
    assert "pref64-reserve=64G" in found[2]


def test_a_window_that_is_not_there(tree: Path, function: PciFunction) -> None:
    write_function(tree, config_space((4, 0, 0, 0, 0, 0)), {0: (0xFE000000, 1 << 18, 0x140204)})
    remedy = "plug the function once VM1's driver has started (device_add)"
    assert bad(check_function(function)) == [("warning", f"{ADDRESS} BAR 2", remedy)]


def test_a_function_without_msi(tree: Path, function: PciFunction) -> None:
    write_function(tree, config_space((4, 0, 12, 0, 0, 0), msi=False))
    assert [each[:2] for each in bad(check_function(function))] == [("warning", f"{ADDRESS} MSI")]


def test_a_function_that_is_gone(tree: Path, function: PciFunction) -> None:
    write_function(tree, b"\xff" * 256)
    assert [each[:2] for each in bad(check_function(function))] == [("problem", ADDRESS)]


@pytest.mark.parametrize(
    ("by_vfio", "by_wc", "levels", "remedy"),
    [
        (CACHED, None, ["ok", "ok"], ""),
        (CACHED, CACHED, ["ok", "ok"], ""),
        (CACHED, VhostPciError("map", "BAR 2", "locked down", "x"), ["ok", "ok"], ""),
        (UNCACHED, COMBINED, ["warning", "ok"], "run with --window-map wc, or auto"),
        (UNCACHED, UNCACHED, ["warning", "warning"], "only the host can make it cached"),
        (UNCACHED, None, ["warning", "ok"], "only the host can make it cached"),
        (UNCACHED, VhostPciError("map", "BAR 2", "no", "x"), ["warning", "warning"], "only the h"),
    ],
)
def test_windows(
    by_vfio: WindowSpeed,
    by_wc: WindowSpeed | VhostPciError | None,
    levels: list[str],
    remedy: str,
) -> None:
    found = judge_windows(ADDRESS, by_vfio, by_wc)
    bad(found)
    assert [each.level.value for each in found] == levels
    assert [each.what for each in found] == [f"{ADDRESS} window by {way}" for way in ("vfio", "wc")]
    assert found[0].found == str(by_vfio)
    assert found[0].remedy.startswith(remedy)


def test_lines_and_json() -> None:
    findings = [ok("clock", "tsc"), warning("lcore 1", "shared", "isolcpus=1")]
    assert lines(findings) == (
        "ok       clock    tsc\nwarning  lcore 1  shared; remedy: isolcpus=1"
    )
    assert not has_problem(findings)
    findings.append(problem("IOMMU", "none", "add one"))
    assert has_problem(findings)
    assert json_object(findings)["ok"] is False
    assert json_object(findings)["findings"][2] == {
        "level": "problem",
        "what": "IOMMU",
        "found": "none",
        "remedy": "add one",
    }


def test_the_simulation_is_well() -> None:
    with pmd("doctor", "--device", "sim", "--json") as process:
        assert process.wait() == 0
        assert process.stderr() == ""
        found = json.loads(process.stdout())
        assert marked(process.mark) == []
    assert found["ok"] is True
    window = found["findings"][-1]
    assert (window["level"], window["what"]) == ("ok", "sim window")
    assert window["found"].startswith("cached: ")


def test_a_device_server_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pmd("doctor", "--device", f"vfio-user:{path}") as process:
        assert process.wait() == 1
        last = process.stdout().splitlines()[-1]
    assert last.startswith(f"problem  vfio-user:{path} window  cannot attach to vfio-user:{path}: ")
    assert "; remedy: " in last


def test_a_device_server_without_vm1(tmp_path: Path) -> None:
    with Device(tmp_path) as device, pmd("doctor", "--device", device.name) as process:
        assert process.wait() == 0
        last = process.stdout().splitlines()[-1]
    text = "VM1's memory is not there to be measured; remedy: start VM1 and its driver"
    assert last == f"warning  {device.name} window  {text}"


def test_a_device_in_use_is_left_alone(tmp_path: Path) -> None:
    with (
        Device(tmp_path) as device,
        Vm1("replay", device) as vm1,
        pmd("run", "--device", device.name, "--vf", "loop", "--duration", "60") as daemon,
    ):
        vm1.wait_for_traffic()
        with pmd("doctor", "--device", device.name) as process:
            assert process.wait() == 1
            last = process.stdout().splitlines()[-1]
        assert last.startswith(f"problem  {device.name} window  ")
        assert "in use by another process; remedy: " in last
        vm1.wait_for_traffic()
        assert daemon.stop() == 0


def test_no_function_on_this_machine() -> None:
    with pmd("doctor") as process:
        assert process.wait() == 1
        assert process.stderr() == ""
        found = process.stdout().splitlines()
    assert all(line.split()[0] in ("ok", "warning", "problem") for line in found)
    assert found[-1].startswith("problem  vhost-pci function")


def test_usage() -> None:
    with pmd("doctor", "--device", "frob:x") as process:
        assert process.wait() == 2
        assert process.stdout() == ""
        assert process.stderr().startswith("pmd: cannot use --device frob:x: there is no such kind")
