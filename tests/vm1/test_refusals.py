"""What cannot be: one clear line on stderr, exit status 1 or 2, nothing left behind."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm1.backend import OFFERED, Backend
from tests.vm1.fault import Fault
from tools.vhost_user_abi import Feature
from tools.vm1 import cli

ROOT = Path(__file__).resolve().parents[2]


def refused(*arguments: str) -> tuple[int, str]:
    """Exit status, and the one line."""
    out, err = io.StringIO(), io.StringIO()
    allowed = os.sched_getaffinity(0)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr("sys.argv", ["vhost-pci-vm1", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
    finally:
        os.sched_setaffinity(0, allowed)  # --cpu pins whoever runs it
    assert out.getvalue() == ""
    assert err.getvalue().count("\n") == 1, err.getvalue()
    assert err.getvalue().startswith("vhost-pci-vm1: ")
    assert isinstance(ended.value.code, int)
    return ended.value.code, err.getvalue()


def test_the_command_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.vm1.cli", "verify"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "59"], "--size 59: it is out of range"),
        (["--size", "9217"], "--size 9217: it is out of range"),
        (["--size", "1514-60"], "--size 1514-60: it is out of range"),
        (["--size", "many"], "it is no frame size"),
        (["--queue-size", "100"], "it is no power of two"),
        (["--packed", "--queue-size", "1"], "it is not 2 to 32768"),
        (["--packed", "--queue-size", "32769"], "it is not 2 to 32768"),
        (["--queue-pairs", "65"], "--queue-pairs 65"),
        (["--chain", "0"], "--chain 0"),
        (["--memory-regions", "9"], "--memory-regions 9"),
        (["--memory", "64K"], "rings and buffers do not fit"),
        (["--memory", "lots"], "it is no size"),
        (["--bus-base", "5"], "it is no page address"),
        (["--touch", "3"], "it is not 0, 1 or 2"),
        (["--cpu", "4095"], "this process may not run there"),
        (["--count", "-1"], "it is negative"),
        (["--timeout", "nan"], "--timeout nan"),
        (["--source", "02:00"], "it is no Ethernet address"),
        (["--buffer-size", "128", "--no-mergeable", "--size", "1000"], "cannot hold 1000 bytes"),
        (["--receive-only"], "it needs --peer-stream"),
        (["--rates", "fast"], "they are no rates"),
        (["--offloads", "--legacy"], "it does not go with --legacy"),
        (["--rates", "100,0"], "--rates 0: it is not 1 to 1000000000"),
        (["--transmit-only", "--receive-only"], "--receive-only is there too"),
        (["--count", "x"], "see vhost-pci-vm1 --help"),
        (["--unknown"], "see vhost-pci-vm1 --help"),
    ],
)
def test_usage(tmp_path: Path, arguments: list[str], words: str) -> None:
    status, line = refused("verify", "--vhost-user", str(tmp_path / "socket"), *arguments)
    assert (status, words in line) == (2, True), line


@pytest.mark.parametrize(
    ("mode", "arguments", "words"),
    [
        ("verify", ["--cpu", "0", "--peer-cpu", "1"], "--peer-cpu 1: it is for replay only"),
        ("replay", ["--peer-cpu", "1"], "--peer-cpu 1: it needs --cpu"),
        ("replay", ["--cpu", "0", "--peer-cpu", "0"], "--peer-cpu 0: that is --cpu too"),
        ("replay", ["--cpu", "0", "--peer-cpu", "4095"], "this process may not run there"),
        ("replay", ["--peer-pid", "1"], "--peer-pid 1: it is for latency only"),
        ("latency", ["--peer-pid", str(1 << 30)], "there is no such process"),
    ],
)
def test_peer(tmp_path: Path, mode: str, arguments: list[str], words: str) -> None:
    status, line = refused(mode, "--vhost-user", str(tmp_path / "socket"), *arguments)
    assert (status, words in line) == (2, True), line


def test_second(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    for arguments, words in (
        (["verify", "--second", second], "it is for replay only"),
        (["replay", "--second", first], "that is --vhost-user too"),
        (["replay", "--second", second, "--reconnect"], "it does not go with --reconnect"),
        (["replay", "--offloads"], "it is for verify only"),
        (["verify", "--leave", "csum"], "--leave csum: it is for replay only"),
        (["replay", "--leave", "tso", "--size", "imix"], "it needs frames of one size"),
        (["replay", "--second", f"{second},server"], "it is not PATH or PATH,listen"),
    ):
        status, line = refused(*arguments, "--vhost-user", first)
        assert (status, words in line) == (2, True), line


def test_mode_and_socket_are_needed(tmp_path: Path) -> None:
    assert refused("verify")[0] == 2
    assert refused("--vhost-user", str(tmp_path / "socket"))[0] == 2
    assert refused("dance", "--vhost-user", str(tmp_path / "socket"))[0] == 2
    assert refused("tap", "--vhost-user", str(tmp_path / "socket"))[0] == 2
    assert refused("idle", "--vhost-user", f"{tmp_path / 'socket'},server")[0] == 2


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    arguments = ("idle", "--vhost-user", str(path), "--connect-timeout", "0")
    status, line = refused(*arguments)
    assert (status, "no such file or directory" in line) == (1, True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))
    status, line = refused(*arguments)
    assert (status, "connection refused" in line) == (1, True)


def test_paths_that_are_no_sockets(tmp_path: Path) -> None:
    regular = tmp_path / "file"
    regular.touch()
    # Nothing that time would mend, so none is spent.
    status, line = refused("idle", "--vhost-user", str(regular), "--connect-timeout", "3600")
    assert (status, "this is not a socket" in line) == (1, True)
    status, line = refused("idle", "--vhost-user", f"{regular},listen")
    assert (status, "it is a file that is no socket" in line) == (1, True)
    status, line = refused(
        "idle", "--vhost-user", f"{tmp_path}/s,listen", "--control", str(regular)
    )
    assert (status, "it is a file that is no socket" in line) == (1, True)
    assert regular.exists()
    assert refused("idle", "--vhost-user", f"{tmp_path}/none/socket,listen")[0] == 1
    status, line = refused("idle", "--vhost-user", f"{tmp_path}/{'x' * 200}")
    assert (status, "a socket's path has at most 107 bytes" in line) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        (Feature.VERSION_1, []),
        (Feature.INDIRECT_DESC, ["--indirect"]),
        (Feature.RING_PACKED, ["--packed"]),
        (Feature.NET_MQ, ["--queue-pairs", "2"]),
    ],
)
def test_feature_that_is_not_offered(
    tmp_path: Path, missing: Feature, arguments: list[str]
) -> None:
    path = tmp_path / "socket"
    with Backend(path, offered=OFFERED & ~missing):
        status, line = refused("idle", "--vhost-user", str(path), *arguments)
    assert (status, f"does not offer {missing.name}" in line) == (1, True), line


def test_too_many_queue_pairs(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Backend(path):
        status, line = refused("idle", "--vhost-user", str(path), "--queue-pairs", "9")
    assert (status, "the back-end has 8 queue pairs, not 9" in line) == (1, True), line


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.REFUSE_MEMORY, "cannot send SET_MEM_TABLE"),
        (Fault.HANG_UP, "the back-end closed the connection"),
    ],
)
def test_back_end_that_refuses(tmp_path: Path, fault: Fault, words: str) -> None:
    path = tmp_path / "socket"
    with Backend(path, fault=fault):
        status, line = refused("idle", "--vhost-user", str(path))
    assert (status, words in line) == (1, True), line
