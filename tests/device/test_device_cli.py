"""The command line: what it refuses and how, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from tests.device.device_process import DeviceProcess, run
from tests.device.vfio_user_raw import DYNAMIC, RawClient

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_start_and_end(tmp_path: Path, number: signal.Signals) -> None:
    with DeviceProcess(tmp_path) as device:
        sockets = (device.vhost_user, device.vfio_user, device.control)
        assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o660] * 3
        shown = device.state()
        assert shown["function"]["client"] is None
        assert shown["vhost_user"]["connected"] is False
        assert 0 < shown["cpu_s"] < 60
        device.stop(number)
    assert device.status == 0
    assert device.lines == [
        f"vhost-user: listening at {device.vhost_user}",
        f"vfio-user: listening at {device.vfio_user}",
        f"control: listening at {device.control}",
    ]
    assert not any(path.exists() for path in sockets)


def test_peers_come_and_go(tmp_path: Path) -> None:
    with DeviceProcess(tmp_path) as device, RawClient(device.vfio_user) as client:
        client.version(DYNAMIC)
        client.close()
        device.stop()
    assert device.lines[3:] == [
        f"vfio-user: client of process {os.getpid()} attached",
        f"vfio-user: client of process {os.getpid()} detached: it closed the connection",
    ]


def test_end_with_a_client_attached(tmp_path: Path) -> None:
    with DeviceProcess(tmp_path) as device, RawClient(device.vfio_user) as client:
        client.version(DYNAMIC)
        device.stop()
        client.wait_closed()
    assert device.status == 0
    assert device.lines[-1].endswith("detached: the device ends")


def test_control_client_that_does_not_read(tmp_path: Path) -> None:
    """It is not waited for, and the next one is answered."""
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with DeviceProcess(tmp_path) as device, silent:
        silent.connect(str(device.control))
        assert device.state()["function"]["generation"] >= 2


def test_stale_sockets_are_replaced(tmp_path: Path) -> None:
    for name in ("vhost-user", "vfio-user", "control"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(str(tmp_path / name))
    with DeviceProcess(tmp_path) as device:
        assert device.state()["vfio_user"]["clients"] == 0
    assert device.status == 0


def test_live_sockets_are_refused(tmp_path: Path) -> None:
    with DeviceProcess(tmp_path) as device:
        ours = tmp_path / "ours"
        for arguments in (
            ("--vhost-user", device.vhost_user, "--vfio-user", ours),
            ("--vhost-user", ours, "--vfio-user", device.vfio_user),
            ("--vhost-user", ours, "--vfio-user", tmp_path / "2", "--control", device.control),
        ):
            ended = run(*arguments)
            assert ended.returncode == 1
            last = ended.stderr.splitlines()[-1]
            assert last.startswith("vhost-pci-device: cannot listen at ")
            assert "another process listens there" in last
            assert not ours.exists()
            assert not (tmp_path / "2").exists()
        assert device.state()["function"]["client"] is None


BAD_PATHS = {
    "directory": 1,
    "file": 1,
    "missing/socket": 1,
    "x" * 200: 2,
}


@pytest.mark.parametrize("option", ["--vhost-user", "--vfio-user", "--control"])
@pytest.mark.parametrize("name", BAD_PATHS)
def test_bad_path(tmp_path: Path, option: str, name: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("precious")
    paths = {"--vhost-user": "1", "--vfio-user": "2", "--control": "3", option: name}
    ended = run(*(word for key, path in paths.items() for word in (key, tmp_path / path)))
    assert ended.returncode == BAD_PATHS[name]
    *listening, last = ended.stderr.splitlines()
    assert last.startswith("vhost-pci-device: cannot ")
    assert str(tmp_path / name) in last
    assert all("listening at" in line for line in listening)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]
    assert (tmp_path / "file").read_text() == "precious"


BAD_USAGE = {
    "nothing": (),
    "one socket": ("--vhost-user", "a"),
    "empty path": ("--vhost-user", "", "--vfio-user", "b"),
    "unknown word behind the path": ("--vhost-user", "a,server", "--vfio-user", "b"),
    "one path for two": ("--vhost-user", "a", "--vfio-user", "./a"),
    "no queue pairs": ("--vhost-user", "a", "--vfio-user", "b", "--queue-pairs", "0"),
    "too many queue pairs": ("--vhost-user", "a", "--vfio-user", "b", "--queue-pairs", "17"),
    "queue pairs in words": ("--vhost-user", "a", "--vfio-user", "b", "--queue-pairs", "two"),
    "unknown option": ("--vhost-user", "a", "--vfio-user", "b", "--poll"),
    "further word": ("--vhost-user", "a", "--vfio-user", "b", "c"),
}


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage(case: str) -> None:
    ended = run(*BAD_USAGE[case])
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("vhost-pci-device: ")


def test_help_names_every_option() -> None:
    ended = run("--help")
    assert ended.returncode == 0
    for option in ("--vhost-user", "--vfio-user", "--queue-pairs", "--control", "-v"):
        assert option in ended.stdout
