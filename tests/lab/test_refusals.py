"""What a user gets wrong, and what a machine lacks: one line each."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from guest.errors import VhostPciError
from tools.lab import commands, debian

if TYPE_CHECKING:
    from pathlib import Path


def _lab(*words: str, **environment: str) -> tuple[int, str]:
    """Exit status and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.lab.cli", *words],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


def _as_nobody() -> list[str]:
    """The words before a command that take root's rights away, but for reading what it runs."""
    if os.geteuid() != 0:
        return []
    kept = "dac_read_search"
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return [*words, f"--inh-caps=-all,+{kept}", f"--ambient-caps=+{kept}"]


@pytest.mark.parametrize("made", [True, False])
def test_a_cache_of_another_user(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "vhost-pci-lab").mkdir(0o555)
    tmp_path.chmod(0o555)
    done = subprocess.run(
        [*_as_nobody(), sys.executable, "-m", "tools.lab.cli", "check"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"vhost-pci-lab: cannot {'use' if made else 'make'} the cache {tmp_path}/vhost-pci-lab: "
        "permission denied; name a directory of yours: XDG_CACHE_HOME=DIRECTORY\n"
    )


def _program(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("says", "cause"),
    [
        ("QEMU emulator version 7.2.13 (Debian)", "it is version 7.2.13, and vfio-user came with"),
        ("QEMU emulator version 10.0.2", "it is version 10.0.2, and vfio-user came with 10.1"),
        ("hello", "it does not say that it is QEMU"),
    ],
)
def test_a_qemu_that_will_not_do(tmp_path: Path, says: str, cause: str) -> None:
    program = _program(tmp_path / "qemu", says)
    status, errors = _lab("check", "--qemu", str(program), XDG_CACHE_HOME=str(tmp_path))
    assert status == 2
    assert f"vhost-pci-lab: cannot use {program}: {cause}" in errors
    assert errors.endswith("without --qemu the lab fetches one from Debian's trixie-backports\n")
    assert len(errors.splitlines()) == 1


def test_a_qemu_that_is_not_there(tmp_path: Path) -> None:
    status, errors = _lab("check", "--qemu", "/nowhere", XDG_CACHE_HOME=str(tmp_path))
    assert status == 2
    assert "cannot use --qemu /nowhere: there is no such program" in errors


def test_a_kernel_that_is_none() -> None:
    status, errors = _lab("check", "--kernel", "6.12")
    assert status == 2
    assert "--kernel" in errors
    assert len(errors.splitlines()) == 1


def test_a_vf_that_is_none() -> None:
    status, errors = _lab("check", "--vf", "wormhole")
    assert status == 2
    assert "cannot use --vf wormhole: there is no such kind; use packet, tap" in errors


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("packed", "'packed' is not NAME=on, NAME=off or NAME=NUMBER"),
        ("packed=yes", "'packed=yes' is not NAME=on, NAME=off or NAME=NUMBER"),
        ("packed=on,queues=9", "there may be 1 to 8 queues"),
        ("queues=on", "there may be 1 to 8 queues"),
    ],
)
@pytest.mark.parametrize("command", ["check", "up"])
def test_a_network_card_that_is_none(command: str, words: str, cause: str) -> None:
    status, errors = _lab(command, "--nic", words)
    assert status == 2
    remedy = "say it as to QEMU: packed=on,mrg_rxbuf=off"
    assert errors == f"vhost-pci-lab: cannot use --nic {words}: {cause}; {remedy}\n"


@pytest.mark.parametrize("words", [("down",), ("status",), ("exec", "vm1", "pmd", "--help")])
def test_no_lab_is_up(tmp_path: Path, words: tuple[str, ...]) -> None:
    status, errors = _lab(*words, XDG_RUNTIME_DIR=str(tmp_path))
    assert status == 1
    expected = "cannot reach the lab: none is up; vhost-pci-lab up starts one"
    assert errors == f"vhost-pci-lab: {expected}\n"


def test_a_machine_without_debians_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = "no apt-get, dpkg-deb; install apt dpkg "
    with pytest.raises(VhostPciError, match=expected):
        debian.Packages().unpack(["nothing"], tmp_path)


def test_a_command_that_fails_is_told_by_its_own_words(tmp_path: Path) -> None:
    script = tmp_path / "fails"
    script.write_text("#!/bin/sh\necho 'E: the disk is full' >&2; echo more >&2; exit 3\n")
    script.chmod(0o755)
    with pytest.raises(VhostPciError, match=r"cannot fetch it: .*: E: the disk is full$"):
        commands.run("fetch", "it", [str(script)], os.environ)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("sources.list", "deb http://de.mirror.example/debian/ bookworm main", "de.mirror"),
        ("sources.list.d/a.sources", "URIs: https://x.example/debian\nSuites: trixie", "x"),
        ("sources.list.d/a.list", "# deb http://no.example/debian x main", ""),
        ("sources.list.d/a.list", "deb [arch=amd64] http://y.example/debian x main", "y"),
        ("sources.list.d/s.list", "deb http://z.example/debian-security x main", ""),
    ],
)
def test_the_machines_mirror_is_used(tmp_path: Path, file: str, text: str, expected: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / file).write_text(text + "\n")
    found = debian.mirror(tmp_path)
    if not expected:
        assert found == "http://deb.debian.org/debian"
    else:
        assert found.endswith(f"{expected}.example/debian")
