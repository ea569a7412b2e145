"""The embedded VM1 with DPDK's vhost as its back-end: somebody else's device side."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.network import inside, ip, namespace
from tests.system.testpmd import Testpmd
from tests.vm1.test_modes import DEADLINE_S, finish, vm1

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    "arguments",
    [
        ["--count", "150000"],
        ["--count", "40000", "--size", "imix", "--no-in-order"],
        ["--count", "40000", "--size", "60-1514", "--no-event-idx", "--no-mergeable"],
        ["--count", "40000", "--size", "60-1514", "--indirect", "--chain", "3"],
        ["--count", "40000", "--size", "60-1514", "--chain", "2", "--memory-regions", "4"],
        ["--count", "30000", "--size", "200-1514", "--buffer-size", "256"],
        ["--count", "100000", "--packed"],
        ["--count", "30000", "--packed", "--size", "imix", "--no-in-order", "--no-event-idx"],
        ["--count", "30000", "--packed", "--size", "60-1514", "--indirect", "--chain", "3"],
        ["--count", "30000", "--packed", "--no-mergeable", "--chain", "3", "--queue-size", "130"],
        ["--count", "20000", "--packed", "--size", "200-1514", "--buffer-size", "256"],
    ],
    ids=" ".join,
)
def test_nothing_is_lost_in_a_loop(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "socket"
    with Testpmd([f"net_vhost0,iface={path},queues=1"]) as testpmd:
        testpmd.start("io")
        with vm1("verify", "--vhost-user", str(path), "--timeout", "30", *arguments) as process:
            status, found, err = finish(process)
        forwarded = testpmd.stop_forwarding()
    count = int(arguments[1])
    assert (found["sent"], found["received"], found["lost"]) == (count, count, 0)
    assert found["protocol_error_kinds"] == {}
    assert (status, err) == (0, "")
    assert forwarded.rx_packets == forwarded.tx_packets == count


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces, removed at the end."""
    with namespace("vm1a") as first, namespace("vm1b") as second:
        yield first, second


def _until_there(where: str) -> None:
    """Until the TAP device exists; then give it an address and bring it up."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            ip("link", "show", "vm1tap", namespace=where)
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


@pytest.mark.parametrize("layout", [[], ["--packed"], ["--packed", "--no-event-idx"]], ids=" ".join)
def test_two_network_stacks_talk(
    tmp_path: Path, namespaces: tuple[str, str], layout: list[str]
) -> None:
    """TAP in one namespace - VM1 - testpmd - VM1 - TAP in the other; ping goes both ways."""
    paths = [tmp_path / "a", tmp_path / "b"]
    devices = [f"net_vhost{i},iface={path},queues=1" for i, path in enumerate(paths)]
    with Testpmd(devices) as testpmd:
        testpmd.start("io")
        with (
            vm1("tap", "--tap", "vm1tap", "--vhost-user", str(paths[0]), *layout,
                namespace=namespaces[0]) as first,
            vm1("tap", "--tap", "vm1tap", "--vhost-user", str(paths[1]), *layout,
                namespace=namespaces[1]) as second,
        ):  # fmt: skip
            for number, where in enumerate(namespaces, 1):
                _until_there(where)
                ip("addr", "add", f"192.0.2.{number}/24", "dev", "vm1tap", namespace=where)
                ip("link", "set", "vm1tap", "up", namespace=where)
            command = inside(namespaces[0])
            command += ["ping", "-c", "20", "-i", "0.02", "-w", "30", "-s", "1400", "192.0.2.2"]
            ping = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            first.terminate()
            second.terminate()
            results = [finish(first), finish(second)]
    assert ping.returncode == 0, ping.stdout
    for status, found, err in results:
        assert (status, err) == (0, "")
        assert found["sent"] >= 20
        assert found["received"] >= 20
        # It slept between frames, and was called.
        assert found["calls"] > 0
