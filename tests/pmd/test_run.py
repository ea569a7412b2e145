"""`pmd run` with a real device and a real VM1: traffic, changes, restarts, ends."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from guest.cpus import default_lcores
from tests.pmd.processes import Device, Process, Vm1, cpu_seconds, marked, pmd, threads
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path


def serve(*devices: Device, vf: str = "loop") -> Process:
    """pmd on these devices, each with a VF of its own."""
    arguments = [word for d in devices for word in ("--device", d.name, "--vf", vf)]
    return pmd("run", "--bar", "2", "--json", *arguments)


def stopped(process: Process) -> list[dict[str, Any]]:
    """The channels of the final object of a pmd that SIGTERM ends."""
    assert process.stop() == 0
    channels = process.json()["channels"]
    assert isinstance(channels, list)
    return channels


def test_sim_forwards_both_ways() -> None:
    # VM1 starts within that as well.
    with pmd("run", "--bar", "2", "--device", "sim", "--duration", "4", "--json") as process:
        assert process.wait() == 0
        found = process.json()
        assert process.left_behind == []
        assert marked(process.mark) == []
        (channel,) = found["channels"]
        assert (channel["device"], channel["vf"]) == ("sim", "loop")
        assert channel["vm1_to_vf"]["packets"] > 10_000
        assert channel["vf_to_vm1"]["packets"] > 10_000
        assert channel["vm1_to_vf"]["bytes"] == 64 * channel["vm1_to_vf"]["packets"]
        assert channel["vf_to_vm1"]["packets"] <= channel["vm1_to_vf"]["packets"]
        assert set(channel["vm1_to_vf"]["drops"]) <= {"disabled"}
        assert channel["vf_to_vm1"]["drops"] == {}
        assert channel["cycles_per_packet"] > 0
        assert found["duration_s"] >= 4
        assert "Traceback" not in process.stderr()


def test_sim_with_parameters() -> None:
    name = "sim:size=200,queue-size=64,queue-pairs=2"
    with pmd("run", "--device", name, "--duration", "4", "--json") as process:
        assert process.wait() == 0
        (channel,) = process.json()["channels"]
        assert len(channel["queue_pairs"]) == 2
        for pair in channel["queue_pairs"]:
            assert pair["vf_to_vm1"]["packets"] > 0
            assert pair["vf_to_vm1"]["bytes"] == 200 * pair["vf_to_vm1"]["packets"]


def said(process: Process, lines: int) -> bool:
    return process.stdout().count("\n") == lines


def test_queue_pairs_are_spread_over_lcores(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))[-2:]
    lcores = ",".join(map(str, cpus))
    with (
        Device(tmp_path) as device,
        pmd("run", "--device", device.name, "--vf", "loop", "-l", lcores, "--json") as daemon,
    ):
        pairs = ("--queue-pairs", str(2 * len(cpus)))
        with Vm1("verify", device, "--count", "10000", "--timeout", "60", *pairs) as vm1:
            assert vm1.wait() == 0, vm1.stdout()
        for lines in (1, 2):
            daemon.signal(signal.SIGUSR1)
            wait_for(functools.partial(said, daemon, lines), "what was asked for")
        assert daemon.stop() == 0
        *asked, last = [json.loads(line) for line in daemon.stdout().splitlines()]
    (channel,), found = last["channels"], last["lcores"]
    for each in asked:
        assert each["channels"][0]["vf_to_vm1"]["packets"] == 10_000
    assert [lcore["cpu"] for lcore in found] == cpus
    assert all(lcore["busy_turns"] > 0 for lcore in found)
    packets = [pair["vf_to_vm1"]["packets"] for pair in channel["queue_pairs"]]
    assert len(packets) == 2 * len(cpus)
    assert min(packets) > 0
    assert sum(packets) == 10_000


def test_a_signal_during_bring_up_leaves_nothing() -> None:
    with pmd("run", "--device", "sim", "--json") as process:
        wait_for(lambda: len(marked(process.mark)) > 1, "the first child")
        process.signal(signal.SIGTERM)
        assert process.wait() in (0, 128 + signal.SIGTERM)
        assert "Traceback" not in process.stderr()
        assert process.left_behind == []
        assert marked(process.mark) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_statistics(number: signal.Signals) -> None:
    with pmd("run", "--device", "sim", "--stats-period", "0.1") as process:
        wait_for(lambda: "forwarding" in process.stdout(), "the first line of statistics")
        process.signal(signal.SIGUSR1)
        shown = "sim - loop (forwarding)\n  VM1 -> VF: "
        wait_for(lambda: shown in process.stdout(), "what was asked for")
        process.signal(number)
        assert process.wait() == 0
        assert process.stdout().count(shown) == 2
        assert "Traceback" not in process.stderr()
        assert process.left_behind == []
        assert marked(process.mark) == []


def test_sigkill_leaves_no_process_and_no_file() -> None:
    with pmd("run", "--device", "sim", "--stats-period", "0.1") as process:
        wait_for(lambda: "forwarding" in process.stdout(), "the first line of statistics")
        processes = marked(process.mark)
        assert len(processes) == 3
        allowed, lcores = os.sched_getaffinity(0), set(default_lcores(1))
        cpus = [os.sched_getaffinity(thread) for each in processes for thread in threads(each)]
        cpus.remove(lcores)  # the lcore's thread; none but it runs there, if there is another CPU
        assert all(each == (allowed - lcores or allowed) for each in cpus)
        process.kill()
        assert process.left_behind == []


def test_nobody_reads_the_statistics() -> None:
    """As in `pmd run ... | head -1`."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "pmd.cli", "run", "--device", "sim", "--stats-period", "0.1"]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert os.read(reader, 1)
        os.close(reader)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert b"Traceback" not in errors
        assert b"Exception" not in errors


def test_the_disk_is_full() -> None:
    command = [sys.executable, "-m", "pmd.cli", "run", "--device", "sim", "--stats-period", "0.1"]
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a descriptor for the child
        ended = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, timeout=30, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr.endswith(b"pmd: cannot go on: no space left on device\n")
    assert b"Traceback" not in ended.stderr


def test_two_daemons_on_one_device(tmp_path: Path) -> None:
    with Device(tmp_path) as device, serve(device) as first:
        wait_for(lambda: "waiting for VM1" in first.stderr(), "the first daemon")
        with serve(device) as second:
            assert second.wait() == 1
            assert second.stdout() == ""
            line = second.stderr()
            assert line.startswith(f"pmd: cannot attach to {device.name}: ")
            assert line.count("\n") == 1
        with Vm1("replay", device) as vm1:
            vm1.wait_for_traffic()
        assert stopped(first)[0]["vm1_to_vf"]["packets"] >= 10_000
        assert device.stop() == 0


def test_vm1_comes_back_with_another_layout(tmp_path: Path) -> None:
    layouts = [
        ("--queue-size", "256"),
        ("--queue-size", "64", "--bus-base", "8G", "--memory-regions", "3"),
        ("--queue-size", "1024", "--bus-base", "4G", "--memory", "64M", "--queue-pairs", "2"),
        ("--queue-size", "2", "--indirect", "--legacy"),
        ("--queue-size", "32768", "--buffer-size", "128"),
        ("--packed", "--queue-size", "7"),
        ("--packed", "--queue-size", "1000", "--chain", "3", "--receive-chain", "2"),
        ("--packed", "--queue-size", "32768", "--buffer-size", "128"),
        ("--packed", "--queue-pairs", "16"),
    ]
    with Device(tmp_path, "device", "--queue-pairs", "16") as device, serve(device) as daemon:
        for layout in layouts:
            with Vm1("verify", device, "--count", "20000", *layout) as vm1:
                assert vm1.wait() == 0, vm1.stdout()
                found = vm1.json()
            assert (found["received"], found["lost"], found["protocol_errors"]) == (20000, 0, 0)
        (channel,) = stopped(daemon)
        assert channel["vm1_to_vf"]["packets"] == len(layouts) * 20_000
        assert channel["vf_to_vm1"]["packets"] == len(layouts) * 20_000
        assert len(channel["queue_pairs"]) == 16
        assert channel["reconfigurations"] >= len(layouts)


@pytest.mark.parametrize("layout", [(), ("--packed",)], ids=["split", "packed"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_vm1_outlives_the_daemon(
    tmp_path: Path, number: signal.Signals, layout: tuple[str, ...]
) -> None:
    """Frames that the loop VF held go with the daemon; VM1's rings must not notice."""
    with Device(tmp_path) as device:
        arguments = ("--count", "0", "--timeout", "60", "--rate", "20000", *layout)
        with Vm1("verify", device, *arguments) as vm1:
            for _ in range(4):
                with serve(device) as daemon:
                    vm1.wait_for_traffic(1000)
                    daemon.signal(number)
                    daemon.wait()
            # At its end VM1 would wait for the frames that are gone.
            found = vm1.counters()
            vm1.kill()
        assert found["protocol_error_kinds"] == {}
        assert found["corrupt"] == 0
        assert found["received"] >= 4000


def test_one_vm1_dies_and_the_other_does_not_notice(tmp_path: Path) -> None:
    with Device(tmp_path, "a") as a, Device(tmp_path, "b") as b, serve(a, b) as daemon:
        with Vm1("verify", b, "--count", "0", "--timeout", "60") as healthy:
            for _ in range(3):
                with Vm1("replay", a) as doomed:
                    doomed.wait_for_traffic()
                    doomed.kill()
                healthy.wait_for_traffic()
            healthy.stop()
            found = healthy.json()
        assert (found["lost"], found["duplicated"], found["reordered"]) == (0, 0, 0)
        assert (found["corrupt"], found["protocol_errors"]) == (0, 0)
        first, second = stopped(daemon)
        assert (first["device"], second["device"]) == (a.name, b.name)
        assert first["vf_to_vm1"]["packets"] >= 30_000
        assert second["vf_to_vm1"]["packets"] == found["received"]


def test_the_device_server_is_killed_and_restarted(tmp_path: Path) -> None:
    with Device(tmp_path) as device, serve(device) as daemon:
        with Vm1("replay", device) as vm1:
            vm1.wait_for_traffic()
            device.kill()
            wait_for(lambda: "its device went away" in daemon.stderr(), "the loss")
        for path in tmp_path.iterdir():
            path.unlink()
        with Device(tmp_path) as successor, Vm1("replay", successor) as vm1:
            vm1.wait_for_traffic()
            assert successor.describe()["function"]["driver_pid"] == daemon.pid
        (channel,) = stopped(daemon)
        assert channel["vf_to_vm1"]["packets"] >= 20_000
        assert channel["state"] == "down"


@pytest.mark.parametrize("layout", [(), ("--packed",)], ids=["split", "packed"])
def test_the_device_server_is_restarted_under_vm1(tmp_path: Path, layout: tuple[str, ...]) -> None:
    """VM1 and pmd both find the next server, and the rings go on where they were."""
    arguments = ("--reconnect", "--count", "0", "--timeout", "60", "--rate", "20000", *layout)
    with Device(tmp_path) as device, serve(device) as daemon:
        with Vm1("verify", device, *arguments) as vm1:
            vm1.wait_for_traffic(1000)
            device.kill()
            with Device(tmp_path):
                vm1.wait_for_traffic(1000)
                found = vm1.counters()
                vm1.kill()
        assert (found["protocol_error_kinds"], found["reconnects"]) == ({}, 1)
        assert (found["duplicated"], found["reordered"], found["corrupt"]) == (0, 0, 0)
        (channel,) = stopped(daemon)
        # What VM1 had sent while its ring was started but not enabled is discarded (vhost-user).
        assert found["sent"] - found["distinct"] <= 256 + sum(
            channel["vm1_to_vf"]["drops"].values()
        )


def test_the_device_server_does_not_work_while_frames_flow(tmp_path: Path) -> None:
    with Device(tmp_path) as device, serve(device) as daemon, Vm1("replay", device) as vm1:
        vm1.wait_for_traffic()
        before = cpu_seconds(device.pid)
        vm1.wait_for_traffic(2_000_000)
        assert cpu_seconds(device.pid) - before <= 0.02
        assert device.describe()["function"]["heartbeat"] > 0
        stopped(daemon)
