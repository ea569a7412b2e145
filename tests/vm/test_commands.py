"""`pmd` in VM2, with everything that goes wrong there: one line, its remedy, the exit status.

What DPDK's own tool makes of the function is here too.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.vm import far_vm1
from tests.vm.second_card import Receive
from tools.lab import own
from tools.lab.inside import transfer
from tools.lab.picture import (
    OUTSIDE_ADDRESS,
    STEP_TIMEOUT_S,
    TRANSFER,
    VF_KINDS,
    VM2_MEMORY_MIB,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.conftest import Ingredients, Stage
    from tools.lab.agent import Job
    from tools.lab.picture import Picture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

VM1_MAC = "52:54:00:77:00:01"
PORT = "5003"
FORWARD = ("--vf", "null", "--duration", "0.1", "--json")
# Root without CAP_IPC_LOCK (linux/prctl.h PR_CAPBSET_DROP): the limit counts, as it does for users.
LITTLE_MEMORY = """\
import ctypes, os, resource, sys
assert ctypes.CDLL(None).prctl(24, 14, 0, 0, 0) == 0
resource.setrlimit(resource.RLIMIT_MEMLOCK, 2 * (int(sys.argv[1]),))
os.execvp(sys.argv[2], sys.argv[2:])
"""
NONE_BYTES = 1 << 16
OWN_BYTES = NONE_BYTES + (2 << 20)  # a huge page is what a VF's own rings and buffers take
FAR_BYTES = 1_000_000
FAR_ADDRESS = "10.77.0.5"


def start_limited(picture: Picture, memory_bytes: int, *words: str) -> Job:
    """A command in VM2 that may lock so much memory."""
    return picture.vm2.agent.start("python3", "-c", LITTLE_MEMORY, str(memory_bytes), *words)


def said(job: Job) -> str:
    """What a command that ended well printed."""
    assert job.wait(STEP_TIMEOUT_S) == 0, job.text
    return job.output.decode()


def refusal(job: Job, status: int = 1) -> str:
    """The one error line of a command, without its name; any others only report progress."""
    assert job.wait(STEP_TIMEOUT_S) == status, job.text
    lines = job.errors.decode().splitlines()
    assert "Traceback" not in job.text
    assert [line for line in lines if line.startswith("pmd: cannot ")] == lines[-1:], job.text
    return lines[-1].removeprefix("pmd: ")


def findings(job: Job, status: int = 0) -> dict[str, tuple[str, str, str]]:
    """What `pmd doctor --json` found: level, what was found, remedy."""
    assert job.wait(STEP_TIMEOUT_S) == status, job.text
    report = json.loads(job.output)
    assert report["ok"] == (status == 0)
    assert all(f["remedy"] for f in report["findings"] if f["level"] != "ok")
    return {f["what"]: (f["level"], f["found"], f["remedy"]) for f in report["findings"]}


def listed(job: Job) -> dict[str, Any]:
    """The one function that `pmd list --json` shows."""
    (function,) = json.loads(said(job))
    assert isinstance(function, dict)
    return function


def address_of(picture: Picture) -> str:
    return picture.vm2.agent.run("lspci", "-Dnd", "1af4:10f0").split()[0]


def _bare(picture: Picture) -> None:
    picture.start_device()
    picture.start_vm2(kind="igb")
    picture.plug()


def _plugged(picture: Picture) -> None:
    picture.start_device()
    picture.start_vm2(kind="igb")
    picture.start_vm1()
    picture.plug()


@pytest.fixture
def plugged(stage: Stage, cleared: None) -> Picture:  # noqa: ARG001 - what it does comes after
    """A function in VM2, of a VM1 that runs; nobody serves it."""
    return stage.picture(_plugged)


@pytest.mark.usefixtures("cleared")
def test_before_vm1_is_there(stage: Stage) -> None:
    picture = stage.picture(_bare)
    agent = picture.vm2.agent
    address = address_of(picture)
    listing = agent.start("pmd", "list", "--json")
    doctor = agent.start("pmd", "doctor", "--json")
    assert listed(listing) == {
        "address": address,
        "driver": None,
        "iommu_group": listed(listing)["iommu_group"],
        "members": [{"address": address, "driver": None}],
        "numa_node": None,
        "obstacle": f"not bound: pmd run binds it, or: pmd bind {address}",
    }
    found = findings(doctor)
    assert found["IOMMU"][0] == "ok"
    assert found["module vfio-pci"][:2] == ("warning", "not loaded")
    assert found[f"{address} BAR 2"][:2] == (
        "warning",
        "absent: VM1 was not there when it was plugged",
    )
    # A kernel without VFIO.
    agent.shell("mv /lib/modules/$(uname -r) /lib/modules/away")
    jobs = [agent.start("pmd", *words) for words in (("bind", address), ("run", *FORWARD))]
    lines = [refusal(job) for job in jobs]
    agent.shell("mv /lib/modules/away /lib/modules/$(uname -r)")
    for line in lines:
        assert line.startswith("cannot load the kernel module vfio-pci: modprobe: FATAL: ")
        assert line.endswith("; try as root: modprobe vfio-pci; a kernel without it has no VFIO")

    picture.unplug()
    picture.start_vm1()
    picture.plug()


def test_dpdk_devbind_lists_and_binds(plugged: Picture) -> None:
    program = shutil.which("dpdk-devbind.py")
    assert program is not None  # tools/environment.sh installs Debian's package dpdk
    agent, address = plugged.vm2.agent, address_of(plugged)
    agent.run("sh", "-c", "cat > /tmp/devbind.py", data=Path(program).read_bytes())
    agent.shell(
        f"modprobe vfio-pci; python3 /tmp/devbind.py -b vfio-pci {address}",
        timeout_s=STEP_TIMEOUT_S,
    )
    status = agent.start("python3", "/tmp/devbind.py", "--status")
    taken = said(status).partition("Network devices using DPDK-compatible driver")[2]
    assert re.search(rf"{address} .*10f0.* drv=vfio-pci", taken.partition("Network devices")[0])
    agent.run("pmd", "unbind", address, timeout_s=STEP_TIMEOUT_S)


def test_bind_list_doctor_unbind(plugged: Picture) -> None:
    agent, address = plugged.vm2.agent, address_of(plugged)
    dry = said(agent.start("pmd", "bind", "--dry-run", address)).splitlines()
    assert dry[-1] == f"echo {address} > /sys/bus/pci/drivers_probe"
    bound = said(agent.start("pmd", "bind", address)).splitlines()
    assert bound[1] == f"  {address} 1af4:10f0 no driver"
    assert bound[2] == f"{address}: vfio-pci has it now, before: none"
    listing = agent.start("pmd", "list", "--json")
    doctor = agent.start("pmd", "doctor", "--json")
    assert (listed(listing)["driver"], listed(listing)["obstacle"]) == ("vfio-pci", "")
    found = findings(doctor)
    for what, text in {
        "module vfio_iommu_type1": "loaded",
        "/dev/vfio/vfio": "may be opened",
        f"{address} driver": "vfio-pci",
        f"{address} BAR 2": "512 MiB, prefetchable",
        f"{address} MSI": "there",
    }.items():
        assert found[what] == ("ok", text, "")
    for way in ("vfio", "wc"):  # emulated, both are the processor's own memory
        level, text, _ = found[f"{address} window by {way}"]
        assert level == "ok"
        assert re.fullmatch(r"cached: [\d.]+ ns a load, [\d.]+ GB/s", text)
    released = said(agent.start("pmd", "unbind", address)).splitlines()
    assert released[2] == f"{address}: no driver has it now, before: vfio-pci"


def test_run_by_either_mapping_and_by_the_wrong_bar(plugged: Picture) -> None:
    agent, address = plugged.vm2.agent, address_of(plugged)
    for way in ("vfio", "wc"):
        run = agent.start("pmd", "run", "--bar", "2", "--window-map", way, *FORWARD)
        (channel,) = json.loads(said(run))["channels"]
        assert (channel["device"], channel["state"]) == (address, "forwarding")
    line = refusal(agent.start("pmd", "run", "--bar", "0", *FORWARD))
    assert line == (
        "cannot use --bar 0: BAR 0 is not the window: it holds registers and the state area; "
        "VM1's memory is BAR 2"
    )


@pytest.fixture
def vf(plugged: Picture) -> Iterator[str]:
    """The address of a VF of VM2's card, bound to vfio-pci."""
    script = VF_KINDS["igb"].prepare
    yield plugged.vm2.agent.shell(script, timeout_s=STEP_TIMEOUT_S).strip()
    plugged.vm2.agent.shell("echo 0 > /sys/class/net/eth0/device/sriov_numvfs")


def test_what_is_in_use_and_what_may_not_be_locked(plugged: Picture, vf: str) -> None:
    agent, address = plugged.vm2.agent, address_of(plugged)
    options = ("pmd", "run", "--bar", "2", "--vf", f"igbvf:{vf},{VM1_MAC}")
    line = refusal(start_limited(plugged, NONE_BYTES, *options))
    assert line.startswith("cannot map for DMA ")
    assert line.endswith(
        ": the process may not lock that much memory; raise the limit: ulimit -l unlimited, "
        "or LimitMEMLOCK=infinity in a unit"
    )
    doctor = start_limited(plugged, NONE_BYTES, "pmd", "doctor", "--json")
    level, _, remedy = findings(doctor)["locked memory"]
    assert (level, remedy) == (
        "warning",
        "ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit",
    )
    # A window is a device's, not memory that would have to be locked.
    never = ("--poll", "adaptive", "--copy", "never")
    pmd = plugged.pmd = start_limited(plugged, OWN_BYTES, *options, *never)
    plugged.wait_until_served()
    for name, words in (
        ("function", ("--device", address, *FORWARD)),
        ("VF", ("--device", "sim", "--vf", f"igbvf:{vf},{VM1_MAC}")),
    ):
        line = refusal(agent.start("pmd", "run", *words))
        assert re.fullmatch(
            r"cannot open IOMMU group \d+: in use by another process; stop that one first", line
        ), name
    line = refusal(agent.start("pmd", "unbind", address))
    assert re.search("it is in use: another process holds its IOMMU group", line)
    pmd.signal()
    assert pmd.wait(STEP_TIMEOUT_S) == 0
    agent.run("pmd", "unbind", address, timeout_s=STEP_TIMEOUT_S)


def test_a_window_larger_than_the_iommu_translates(plugged: Picture, vf: str) -> None:
    """QEMU's has addresses of 39 bits here, and its interrupts' are among these."""
    outside, size_bytes = plugged.outside, far_vm1.SIZE_BYTES
    most = size_bytes - (0xFEF << 20)
    why = f"{size_bytes} bytes: the IOMMU translates at most {most} in one piece"
    remedy = "give it more address bits: in a VM, intel-iommu,aw-bits=48"
    spec = f"igbvf:{vf},{VM1_MAC}"
    with far_vm1.far_vm1(plugged, VM1_MAC, FAR_ADDRESS) as address:
        # To map so much write-combining, sysfs would make more page tables than VM2 has memory.
        by_pages = ("--window-map", "vfio")
        options = ("pmd", "run", "--device", address, "--vf", spec, "--json", *by_pages)
        never = plugged.vm2.agent.start(*options, "--copy", "never", "--duration", "0.1")
        (channel,) = json.loads(said(never))["channels"]
        assert channel["state"] == "waiting"
        assert (
            f"cannot run without copying: VF {spec} does not reach all of VM1's memory ({why}); "
            f"{remedy}; or use --copy auto; waiting for its next state"
        ) in never.text

        auto = plugged.pmd = plugged.vm2.agent.start(*options, "--poll", "adaptive")
        auto.wait_for("serving 2 of 2 rings", STEP_TIMEOUT_S)
        receive = outside.agent.start(*TRANSFER, "receive", OUTSIDE_ADDRESS, PORT)
        receive.wait_for("ready", STEP_TIMEOUT_S)
        sent = transfer.send(OUTSIDE_ADDRESS, int(PORT), FAR_BYTES)
        assert said(receive).split()[-2] == sent
        with Receive(FAR_ADDRESS, int(PORT)) as back:
            words = (*TRANSFER, "send", FAR_ADDRESS, PORT, str(FAR_BYTES))
            sent = outside.agent.run(*words, timeout_s=STEP_TIMEOUT_S).strip()
            assert back.digest() == sent
        (channel,) = plugged.stop_pmd()["channels"]
    assert auto.text.count(f"cannot map for DMA {why}; {remedy}; frames there are copied") == 1
    assert channel["tx_zero_copy"] == channel["rx_zero_copy"] == 0
    for direction in ("vm1_to_vf", "vf_to_vm1"):
        assert channel[direction]["bytes"] > FAR_BYTES


def _share_slot(picture: Picture, port: str, neighbours: list[dict[str, object]]) -> str:
    """Plug the function as one of several of a slot, whose group and addresses they share."""
    vm2 = picture.vm2
    slot = {"bus": port, "multifunction": True}
    for number, neighbour in enumerate(neighbours, 1):
        vm2.qmp.execute("device_add", addr=f"0.{number}", **slot, **neighbour)
    function = {**slot, **picture.function_properties(), "driver": "vfio-user-pci"}
    vm2.qmp.execute("device_add", id="shared", addr="0.0", **function)
    vm2.agent.shell("until lspci -nd 1af4:10f0 | grep .; do sleep 0.2; done")
    return address_of(picture)


def _leave_slot(picture: Picture) -> None:
    """Unplug the function, and with it the whole slot."""
    picture.vm2.qmp.execute("device_del", id="shared")
    picture.vm2.qmp.wait_event("DEVICE_DELETED", STEP_TIMEOUT_S, device="shared")


def test_a_group_in_other_hands(plugged: Picture) -> None:
    qmp, agent = plugged.vm2.qmp, plugged.vm2.agent
    plugged.unplug()
    qmp.execute("netdev_add", type="hubport", id="neighbour", hubid=0)
    address = _share_slot(plugged, "port5", [{"driver": "e1000e", "netdev": "neighbour"}])
    neighbour = address.replace(".0", ".1")
    agent.shell("modprobe e1000e")
    run = agent.start("pmd", "run", "--device", address, *FORWARD)
    assert re.fullmatch(
        r"cannot use IOMMU group (\d+): it is not viable: another driver holds one of its "
        r"functions; bind all of /sys/kernel/iommu_groups/\1/devices to vfio-pci",
        refusal(run),
    )
    found = findings(agent.start("pmd", "doctor", "--json"), status=1)
    level, text, remedy = found[f"{address} IOMMU group"]
    assert level == "problem"
    assert f"is not viable: {address} (vfio-pci), {neighbour} (e1000e)" in text
    assert remedy == f"pmd bind {neighbour}, or give it a root port alone"
    _leave_slot(plugged)
    plugged.plug()


def test_a_window_without_room(plugged: Picture) -> None:
    """What a root port reserves is taken by others."""
    qmp, agent = plugged.vm2.qmp, plugged.vm2.agent
    plugged.unplug()
    neighbours: list[dict[str, object]] = []
    for size_gib in (8, 4, 2, 2):
        memory = f"memory{len(neighbours)}"
        facts: dict[str, object] = {"qom-type": "memory-backend-memfd", "id": memory}
        qmp.execute_named("object-add", {**facts, "size": size_gib << 30, "share": True})
        neighbours.append({"driver": "ivshmem-plain", "memdev": memory})
    address = _share_slot(plugged, "port6", neighbours)
    run = agent.start("pmd", "run", "--device", address, *FORWARD)
    doctor = agent.start("pmd", "doctor", "--json")
    no_room = "no addresses were left for it when it was plugged"
    remedy = "give the root port room: pcie-root-port,pref64-reserve=64G (more than VM1's memory)"
    assert refusal(run) == f"cannot map BAR 2 of {address}: {no_room}; {remedy}"
    assert findings(doctor, status=1)[f"{address} BAR 2"] == ("problem", no_room, remedy)
    _leave_slot(plugged)
    plugged.plug()


def test_under_lockdown_vfio_goes_on(plugged: Picture) -> None:
    """The last one: nothing takes lockdown back."""
    agent = plugged.vm2.agent
    agent.shell(
        "mkdir -p /sys/kernel/security; mount -t securityfs none /sys/kernel/security;"
        "echo integrity > /sys/kernel/security/lockdown"
    )
    line = refusal(agent.start("pmd", "run", "--window-map", "wc", *FORWARD))
    assert line == (
        f"cannot map BAR 2 of {address_of(plugged)} write-combining: the kernel is locked down; "
        "turn secure boot's lockdown off, or use the mapping by VFIO"
    )
    (channel,) = json.loads(said(agent.start("pmd", "run", *FORWARD)))["channels"]
    assert channel["state"] == "forwarding"
    found = findings(agent.start("pmd", "doctor", "--json"))
    assert found["lockdown"][:2] == ("warning", "integrity")


def test_without_an_iommu(ingredients: Ingredients, stage: Stage) -> None:
    stage.clear()
    picture = stage.another()
    picture.start_device()
    vm2 = stage.enter(
        ingredients.templates.restore("vm2", VM2_MEMORY_MIB, picture.directory, iommu=False)
    )
    own.install(vm2, ingredients.package)
    picture.vm2 = vm2
    address = picture.plug()
    agent = vm2.agent
    doctor = agent.start("pmd", "doctor", "--json")
    run = agent.start("pmd", "run", *FORWARD)
    bind = agent.start("pmd", "bind", address)
    remedy = "enable one: intel_iommu=on or the like; in a VM, give it a virtual one"
    for job in (run, bind):
        assert refusal(job) == f"cannot bind {address}: no IOMMU holds it; {remedy}"
    found = findings(doctor, status=1)
    assert found["IOMMU"][:2] == ("problem", "none is on")
    assert found[f"{address} IOMMU group"][:2] == ("problem", "none")
