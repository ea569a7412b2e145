"""VM1's traffic through `pmd` in VM2: its amount and sizes, what dies, what takes its place."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.pmd.processes import cpu_seconds
from tests.vm.conftest import serve
from tests.vm.killed import outlives_its_device
from tools.lab import own
from tools.lab.check import NEXT_MEMORY_MIB
from tools.lab.picture import OUTSIDE_ADDRESS, STEP_TIMEOUT_S, VM1_MEMORY_MIB
from tools.lab.prepare import KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.conftest import Ingredients, Stage
    from tools.lab.picture import Picture
    from tools.lab.template import Templates
    from tools.lab.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

MIB = 1 << 20
LARGE_BYTES = 50_000_000
IP_AND_ICMP_BYTES = 28
ORDINARY_MTU = 1500
# The least that IPv4 hosts take, IPv6's, Ethernet's, and jumbo frames.
MTUS = (576, 1280, ORDINARY_MTU, 9000)
REPLACEMENTS = 10
SUCCEEDED_WITHIN_S = 2.0
RESTORED_WITHIN_S = 1.0
TRIES = 5
MORE_ANSWERS = 10


def restoring(templates: Templates, kind: tuple[int, bool], directory: Path) -> float:
    """What a machine's restoring computes until its agent answers, ours and QEMU's, in s."""
    memory_mib, iommu = kind
    used_s = time.process_time()
    with templates.restore("restored", memory_mib, directory, iommu=iommu) as vm:
        print(f"{memory_mib} MiB, IOMMU {iommu}: restored in {vm.restored_in_s:.2f} s")
        return time.process_time() - used_s + cpu_seconds(vm.process.pid)


@pytest.mark.parametrize("kind", KINDS)
def test_restored_in_a_second(
    ingredients: Ingredients, kind: tuple[int, bool], tmp_path: Path
) -> None:
    """Not counting when others had the processors, and that they share its caches now and then."""
    tries = (restoring(ingredients.templates, kind, tmp_path) for _ in range(TRIES))
    assert any(used_s <= RESTORED_WITHIN_S for used_s in tries)


def both_ways(picture: Picture, size_bytes: int) -> None:
    """TCP from VM1 to outside and back; `transfer` compares the checksums of both ends.

    First either asks for the other's address until it has it: TCP gives up after three seconds, and
    at once if that was asked for in vain shortly before.
    """
    picture.ping(1, 100)
    picture.transfer(picture.vm1, picture.outside, size_bytes)
    picture.transfer(picture.outside, picture.vm1, size_bytes)


def test_fifty_megabytes_each_way(served: Picture) -> None:
    both_ways(served, LARGE_BYTES)


def set_mtu(vm: Vm, mtu: int) -> None:
    vm.agent.shell(f"ip link set eth0 mtu {mtu}")


def test_four_mtus(served: Picture) -> None:
    set_mtu(served.vm2, max(MTUS))
    for mtu in MTUS:
        for vm in (served.vm1, served.outside):
            set_mtu(vm, mtu)
        served.ping(2, mtu - IP_AND_ICMP_BYTES)
        both_ways(served, MIB)
    for vm in (served.vm1, served.vm2, served.outside):
        set_mtu(vm, ORDINARY_MTU)
    served.ping()


def succeed(picture: Picture) -> float:
    """Kill `pmd`, start the next one; what VM2 computes from its start until it serves, in s."""
    device = picture.device
    picture.pmd.signal(signal.SIGKILL)
    assert picture.pmd.wait(STEP_TIMEOUT_S) == 128 + signal.SIGKILL
    device.wait_until(lambda: not device.is_served(), STEP_TIMEOUT_S, "see pmd go")
    machine = picture.vm2.process.pid
    began, used_s = time.monotonic(), cpu_seconds(machine)
    words = ("run", "--bar", "2", "--vf", "packet:eth0", "--poll", "adaptive")
    picture.pmd = picture.vm2.agent.start(own.COMMAND, *words)  # from nothing: not a fork
    picture.wait_until_served()
    used_s = cpu_seconds(machine) - used_s
    wall_s = time.monotonic() - began
    print(f"from its start until it served: {wall_s:.2f} s, {used_s:.2f} s of them VM2 computed")
    return used_s


def test_a_killed_pmd_is_succeeded(served: Picture) -> None:
    """Within two seconds, emulated; not counting when others had the processors, as above."""
    served.ping(2)
    assert any(succeed(served) <= SUCCEEDED_WITHIN_S for _ in range(TRIES))
    served.ping(2)
    both_ways(served, MIB)


def test_a_migration_that_is_given_up(served: Picture) -> None:
    """VM1's memory goes slowly to nowhere while frames come; `pmd` marks what it writes in VM2."""
    vm1, device = served.vm1, served.device
    capability = {"capability": "x-ignore-shared", "state": False}  # its template's
    vm1.qmp.execute("migrate-set-capabilities", capabilities=[capability])
    vm1.qmp.execute("migrate-set-parameters", max_bandwidth=MIB)
    vm1.qmp.execute("migrate", uri="exec:cat > /dev/null")

    def dirty() -> dict[str, int]:
        return dict(device.state()["function"]["dirty"])

    device.wait_until(lambda: dirty()["shift"] > 0, STEP_TIMEOUT_S, "be asked for a log")
    device.wait_until(device.is_served, STEP_TIMEOUT_S, "see pmd follow")
    served.transfer(served.outside, vm1, MIB)
    device.wait_until(lambda: dirty()["marks_taken"] > 0, STEP_TIMEOUT_S, "see marks")
    vm1.qmp.execute("migrate_cancel")
    device.wait_until(lambda: dirty()["shift"] == 0, STEP_TIMEOUT_S, "hear of the end")
    assert dirty()["times_all"] == 0
    both_ways(served, MIB)


def test_ten_vm1s_one_pmd(served: Picture) -> None:
    pmd = served.pmd
    for number in range(REPLACEMENTS):
        ends = [served.unplug, served.stop_vm1]
        for end in ends if number % 2 else reversed(ends):  # each other one dies while it is served
            end()
        served.start_vm1(VM1_MEMORY_MIB if number % 2 else NEXT_MEMORY_MIB)
        served.plug()
        served.wait_until_served()
        served.ping(2)
    both_ways(served, MIB)
    assert served.pmd is pmd
    assert pmd.status is None


def loses_its_device(picture: Picture) -> bool:
    """False where VM2 went with it."""
    return outlives_its_device(picture.device, picture.pmd, picture.vm2, picture.unplug)


def test_a_killed_device_server_is_succeeded(served: Picture, stage: Stage) -> None:
    """Both machines stay up; VM1's hypervisor connects again by itself."""
    if not loses_its_device(served):
        stage.clear()
        served = stage.picture(serve)
        assert loses_its_device(served)
    vm1, vm2, pmd = served.vm1, served.vm2, served.pmd
    served.start_device()
    device = served.device
    device.wait_until(device.vm1_is_up, STEP_TIMEOUT_S, "see VM1's rings")
    served.plug()
    served.wait_until_served()
    both_ways(served, MIB)
    assert vm1.process.running
    assert vm2.process.running
    assert pmd.status is None


def test_a_neighbour_comes_and_goes(served: Picture, stage: Stage) -> None:
    """The last one: VM2 has a second VM1, with an outside of its own."""
    served.ping(2)
    served.stop_pmd()
    second = stage.another(number=1)
    second.start_device()
    second.start_vm1(NEXT_MEMORY_MIB)
    second.join(served.vm2)
    second.plug()
    second.pmd = served.run_pmd("--vf", "packet:eth{n}", "--poll", "adaptive")
    second.wait_until_served()
    served.ping(2)
    second.ping(2)

    pings = second.vm1.agent.start("ping", "-i", "0.1", OUTSIDE_ADDRESS)

    def answered() -> list[int]:
        return [int(each) for each in re.findall(r"bytes from .* icmp_seq=(\d+)", pings.text)]

    pings.wait_until(lambda: bool(answered()), STEP_TIMEOUT_S, "is not answered")
    served.unplug()
    served.stop_vm1()
    enough = len(answered()) + MORE_ANSWERS
    pings.wait_until(lambda: len(answered()) >= enough, STEP_TIMEOUT_S, "is not answered any more")
    pings.signal(signal.SIGINT)
    assert pings.wait(STEP_TIMEOUT_S) == 0, pings.text
    assert answered() == list(range(1, len(answered()) + 1))  # none is missing between two
    both_ways(second, MIB)
    served.start_vm1()
    served.plug()
    served.wait_until_served()
    both_ways(served, MIB)
    served.stop_pmd()
