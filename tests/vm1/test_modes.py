"""The other modes, and what happens around a run: control socket, signals, restarts."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.system.network import inside
from tests.vm1.backend import OFFERED, Backend
from tests.vm1.fault import Fault
from tests.vm1.inflight import InflightRegion
from tools.vhost_user_abi import Feature
from tools.vm1.options import (
    Direction,
    MemoryOptions,
    Mode,
    Options,
    RingOptions,
    Socket,
    TrafficOptions,
)
from tools.vm1.report import Ended, Result
from tools.vm1.session import Session

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0


def vm1(*arguments: str, namespace: str = "") -> subprocess.Popen[str]:
    """The command as a child process, in a network namespace or here; it gives one JSON object."""
    return subprocess.Popen(
        [*inside(namespace), sys.executable, "-m", "tools.vm1.cli", *arguments, "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Its exit status, its JSON object, its words on stderr; killed if it does not end."""
    try:
        out, err = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, json.loads(out) if out else {}, err


def ask(control: Path) -> dict[str, Any]:
    """The counters by the control socket, once it is there."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            try:
                peer.connect(str(control))
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline
                time.sleep(0.01)
                continue
            with peer.makefile() as lines:
                return dict(json.loads(lines.readline()))


def wait_for(control: Path, key: str, least: int) -> dict[str, Any]:
    """The counters once one has reached least."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := ask(control))[key] < least:
        assert time.monotonic() < deadline, f"{key} stays at {found[key]}"
        time.sleep(0.01)
    return found


def options(path: Path, mode: Mode, traffic: TrafficOptions, *, packed: bool = False) -> Options:
    where = Socket(path, listen=False)
    rings = RingOptions(packed=packed)
    return Options(mode, where, MemoryOptions(), rings, traffic, seconds=0.3)


def replay(path: Path, traffic: TrafficOptions, *, packed: bool = False) -> Result:
    """Replays until each ring in use has carried more than one ring's worth of frames."""
    wanted = replace(options(path, Mode.REPLAY, traffic, packed=packed), seconds=DEADLINE_S)
    names = [name for name, bit in (("sent", 1), ("received", 2)) if traffic.direction & bit]

    def enough() -> bool:
        found = session.snapshot()
        return all(found[name] > 300 for name in names)

    session = Session(wanted, enough)
    result = session.run()
    assert (result.ended, result.exit_status) == (Ended.SIGNAL, 0)
    return result


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("touch", [0, 1, 2])
def test_replay_keeps_the_rings_busy(tmp_path: Path, touch: int, packed: bool) -> None:
    path = tmp_path / "socket"
    with Backend(path, offered=OFFERED | Feature.RING_PACKED) as backend:
        found = replay(path, TrafficOptions(touch=touch), packed=packed).json_object()
    assert found["sent"] <= backend.received
    assert found["received"] <= backend.delivered
    assert found["tx_mpps_best"] >= found["tx_mpps_median"]


@pytest.mark.parametrize("packed", [False, True])
def test_replay_takes_batches(tmp_path: Path, packed: bool) -> None:
    """2.7.9, 2.8.9: what one used element stands for is given again, all of it."""
    path = tmp_path / "socket"
    offered = OFFERED | Feature.RING_PACKED | Feature.IN_ORDER
    with Backend(path, offered=offered, batch=True) as backend:
        found = replay(path, TrafficOptions(), packed=packed).json_object()
    assert found["protocol_errors"] == 0
    assert found["sent"] <= backend.received
    assert found["sent_bytes"] == 64 * found["sent"]


def test_replay_in_one_direction(tmp_path: Path) -> None:
    with Backend(tmp_path / "socket") as backend:
        traffic = TrafficOptions(direction=Direction.TX)
        found = replay(tmp_path / "socket", traffic).json_object()
    assert (found["received"], backend.delivered) == (0, 0)


def test_idle_stocks_and_waits(tmp_path: Path) -> None:
    with Backend(tmp_path / "socket") as backend:
        result = Session(
            options(tmp_path / "socket", Mode.IDLE, TrafficOptions()), lambda: False
        ).run()
    assert (result.ended, result.exit_status) == (Ended.SECONDS, 0)
    assert backend.received == 0


def test_signal_ends_with_a_result(tmp_path: Path) -> None:
    """An endless verify run takes in what is in flight, then reports."""
    control = tmp_path / "control"
    arguments = ["--vhost-user", str(tmp_path / "socket"), "--control", str(control)]
    with Backend(tmp_path / "socket"), vm1("verify", "--count", "0", *arguments) as process:
        wait_for(control, "received", 500)
        process.send_signal(signal.SIGTERM)
        status, found, err = finish(process)
    assert (status, err) == (0, "")
    assert found["ended"] == "signal"
    assert found["sent"] == found["received"] >= 500
    assert found["lost"] == 0
    assert not control.exists()


def test_listening_front_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with vm1("verify", "--count", "500", "--vhost-user", f"{path},listen") as process:
        deadline = time.monotonic() + DEADLINE_S
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with Backend(path, connect=True):
            status, found, err = finish(process)
    assert (status, found["received"], err) == (0, 500, "")
    assert not path.exists()


def test_back_end_that_leaves_ends_the_run(tmp_path: Path) -> None:
    control = tmp_path / "control"
    arguments = ["--vhost-user", str(tmp_path / "socket"), "--control", str(control)]
    with vm1("verify", "--count", "0", *arguments) as process:
        with Backend(tmp_path / "socket"):
            wait_for(control, "received", 100)
        status, found, err = finish(process)
    assert status == 1
    assert found["ended"] == "disconnected"
    assert err.count("\n") == 1
    assert "the back-end closed the connection" in err


@pytest.mark.parametrize("layout", [[], ["--packed", "--queue-size", "100"]], ids=" ".join)
def test_restarted_back_end_goes_on(tmp_path: Path, layout: list[str]) -> None:
    """The next back-end starts behind what is used, so what the last held unused comes again."""
    path, control = tmp_path / "socket", tmp_path / "control"
    arguments = ["--vhost-user", str(path), "--control", str(control), "--reconnect", *layout]
    offered = OFFERED | Feature.RING_PACKED
    with vm1("verify", "--count", "0", "--timeout", "2", *arguments) as process:
        with Backend(path, offered=offered):
            wait_for(control, "received", 300)
        before = ask(control)["received"]
        path.unlink()
        with Backend(path, offered=offered) as second:
            after = wait_for(control, "received", before + 600)
            process.send_signal(signal.SIGINT)
            _, found, err = finish(process)
    assert err == ""
    assert (after["reconnects"], found["reconnects"]) == (1, 1)
    assert found["protocol_errors"] == 0
    assert second.received > 0
    # Frames that the first had taken and not delivered when it was stopped are gone with it.
    assert found["lost"] <= 256
    assert found["duplicated"] == 0


def test_inflight_region_outlives_back_ends(tmp_path: Path) -> None:
    """The first is asked for one, and given it; the next is given the same, and asked for none."""
    path, control = tmp_path / "socket", tmp_path / "control"
    arguments = ["--vhost-user", str(path), "--control", str(control), "--reconnect"]
    regions = [InflightRegion(b"first"), InflightRegion(b"other")]
    with vm1("verify", "--count", "0", "--timeout", "2", *arguments) as process:
        for reconnects, region in enumerate(regions):
            with Backend(path, inflight=region):
                wait_for(control, "reconnects", reconnects)
                wait_for(control, "received", ask(control)["received"] + 100)
                if region is regions[-1]:
                    process.send_signal(signal.SIGINT)
                    _, _, err = finish(process)
            path.unlink()
    assert err == ""
    assert [region.made for region in regions] == [1, 0]
    assert [region.taken for region in regions] == [[b"first"], [b"first"]]


def test_replay_from_one_back_end_to_another(tmp_path: Path) -> None:
    """What is transmitted at the first socket is received at the second, and nothing else moves."""
    control = tmp_path / "control"
    first, second = Backend(tmp_path / "a"), Backend(tmp_path / "b")
    first.send_to(second)
    arguments = ["--vhost-user", str(tmp_path / "a"), "--second", str(tmp_path / "b")]
    with first, second, vm1("replay", *arguments, "--control", str(control)) as process:
        wait_for(control, "received", 300)
        process.send_signal(signal.SIGINT)
        status, found, err = finish(process)
    assert (status, err, found["protocol_errors"]) == (0, "", 0)
    assert 300 < found["sent"] <= first.received
    assert 300 <= found["received"] <= second.delivered <= first.received
    assert found["received_bytes"] == 64 * found["received"]
    assert (first.delivered, second.received) == (0, 0)


def test_two_vm1s_verify_each_other(tmp_path: Path) -> None:
    """Two streams that cross; window and end go by the peer's acknowledgements."""
    first, second = Backend(tmp_path / "a"), Backend(tmp_path / "b")
    first.send_to(second)
    common = ["--count", "1000", "--size", "60-1514", "--timeout", "20"]
    with first, second:
        a = vm1("verify", *common, "--stream", "1", "--peer-stream", "9",
                "--vhost-user", str(tmp_path / "a"))  # fmt: skip
        b = vm1("verify", *common, "--stream", "9", "--peer-stream", "1",
                "--vhost-user", str(tmp_path / "b"))  # fmt: skip
        with a, b:
            results = [finish(a), finish(b)]
    for status, found, err in results:
        assert (status, err) == (0, "")
        counts = [found[name] for name in ("sent", "received", "lost", "acknowledged")]
        assert counts == [1000, 1000, 0, 1000]


def test_back_end_error_signal_is_counted(tmp_path: Path) -> None:
    with Backend(tmp_path / "socket", fault=Fault.SIGNAL_ERROR):
        traffic = TrafficOptions(count=300, timeout_s=20)
        result = Session(options(tmp_path / "socket", Mode.VERIFY, traffic), lambda: False).run()
    assert result.json_object()["error_signals"] == 1
