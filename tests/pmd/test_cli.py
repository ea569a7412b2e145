"""What a user types wrong: one line on stderr, the exit status, nothing on stdout, nothing left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pmd.cli import main
from tests.pmd.processes import ROOT, marked, pmd

if TYPE_CHECKING:
    from pathlib import Path


def misused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of `pmd`, called in this process, after exit status 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pmd", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    out, line = capfd.readouterr()
    assert out == ""
    assert line.startswith("pmd: ")
    assert line.count("\n") == 1
    return line.removeprefix("pmd: ")


def refused(status: int, *arguments: str | Path) -> str:
    """pmd's one line on stderr, after it ended with status and left nothing behind."""
    with pmd(*arguments) as process:
        assert process.wait() == status
        line = process.stderr()
        assert process.stdout() == ""
        assert line.startswith("pmd: ")
        assert line.count("\n") == 1
        assert line.endswith("\n")
        assert process.left_behind == []
        assert marked(process.mark) == []
    return line.removeprefix("pmd: ").removesuffix("\n")


MISSING_CPU = (os.cpu_count() or 1) + 4000


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (("frob",), 'unknown command "frob"'),
        (("run", "--bogus"), "unknown option: --bogus"),
        (("run", "extra"), "unused Tokens: ['extra']"),
        (("run", "--bar", "x"), "invalid value for --bar"),
        (("run", "--burst", "1e9"), "invalid value for --burst"),
        (("run", "--burst", "0"), "cannot use --burst: it is 0 and must be"),
        (("run", "--burst", "257"), "cannot use --burst: it is 257 and must be"),
        (("run", "--duration", "0"), "cannot use --duration: it is 0"),
        (("run", "--duration", "nan"), "cannot use --duration: it is nan"),
        (("run", "--stats-period", "0.05"), "cannot use --stats-period: it is 0.05"),
        (("run", "--window-map", "fast"), "cannot use --window-map: it is 'fast' and must be one"),
        (
            ("run", "--device", "vfio-user:/none", "--window-map", "wc"),
            "cannot use --window-map wc: the windows of vfio-user:/none are memory files",
        ),
        (("run", "--device"), 'command "run" parameter --device requires an argument'),
        (("run", "--device", "frob:x"), "cannot use --device frob:x: there is no such kind"),
        (("run", "--device", "sim:size"), "cannot use --device sim:size: size must be from 60"),
        (("run", "--device", "sim:queue-size=3"), "cannot use --device sim:queue-size=3: queue-s"),
        (("run", "--device", "sim:frob=3"), "cannot use --device sim:frob=3: unknown key 'frob'"),
        (("run", "--device", "sim", "--vf", "frob:x"), "cannot use VF 'frob:x': there is no such"),
        (("run", "--device", "sim", "--vf", "tap:"), "cannot use VF 'tap:': nothing follows"),
        (("run", "--device", "vfio-user:/none"), "cannot run without --vf: vfio-user:/none needs"),
        (
            ("run", "--device", "vfio-user:/none", "--vf", "loop", "--vf", "loop"),
            "cannot use --vf: there are 2 for 1 devices (vfio-user:/none)",
        ),
        (
            ("run", "--device", "vfio-user:/a", "--device", "vfio-user:/a", "--vf", "loop"),
            "cannot use --device vfio-user:/a: it is given more than once",
        ),
        (("run", "--device", "vfio-user:", "--vf", "loop"), "cannot attach to vfio-user:"),
        (("run", "--device", "sim", "-l", "x"), "cannot use"),
        (("run", "--device", "sim", "-l", str(MISSING_CPU)), "cannot use"),
        (("run", "--vf", "tap:"), "cannot use VF 'tap:': nothing follows the colon"),
        (
            ("run", "--vf", "null", "--vf", "null"),
            "cannot use --vf: there are 2 for 1 devices (auto",
        ),
        (
            ("run", "--device", "vfio-user:/none", "--vf", "tap:vp{n}"),
            "cannot use --vf tap:vp{n}: {n} counts the functions of auto",
        ),
        (("bind", "frob"), "cannot find frob: this is no PCI address; give it in full"),
        (("unbind", "0000:01:20.0"), "cannot find 0000:01:20.0: this is no PCI address"),
        (("bind",), 'command "bind" parameter --address requires an argument'),
        (("run", "--config", "/none.toml"), "cannot read configuration /none.toml: no such file"),
    ],
)
def test_usage(capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], start: str) -> None:
    assert misused(capfd, *arguments).startswith(start)


def test_usage_of_the_command_itself() -> None:
    assert refused(2, "run", "--device", "frob:x").startswith("cannot use --device frob:x: ")


def test_malformed_configuration(tmp_path: Path) -> None:
    path = tmp_path / "pmd.toml"
    path.write_text("burst = = 3\n")
    line = refused(2, "run", "--config", path)
    assert line.startswith(f"cannot read configuration {path}: ")
    assert "line 1" in line


def test_no_function_on_this_machine() -> None:
    """It waits for one, and ends as it is told to."""
    with pmd("run", "--bar", "2", "--vf", "tap:vp{n}", "--duration", "0.5", "--json") as process:
        assert process.wait() == 0
        waits = "pmd: auto: no vhost-pci function here yet; waiting for one\n"
        assert process.stderr() == waits
        (channel,) = process.json()["channels"]
        assert (channel["device"], channel["vf"], channel["state"]) == ("auto", "tap:vp0", "down")
        assert channel["vm1_to_vf"]["packets"] == 0


@pytest.mark.parametrize("command", ["bind", "unbind"])
@pytest.mark.parametrize("flags", [(), ("--dry-run",), ("--force",)])
def test_binding_a_function_that_is_not_there(command: str, flags: tuple[str, ...]) -> None:
    line = refused(1, command, "fe:1f.7", *flags)
    assert line.startswith("cannot find 0000:fe:1f.7: ")


def test_nobody_has_made_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "none"
    line = refused(1, "run", "--device", f"vfio-user:{path}", "--vf", "loop")
    assert line.startswith(f"cannot attach to vfio-user:{path}: ")


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        line = refused(1, "run", "--device", f"vfio-user:{path}", "--vf", "loop")
    assert line.startswith(f"cannot attach to vfio-user:{path}: ")


def test_the_path_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    line = refused(1, "run", "--device", f"vfio-user:{path}", "--vf", "loop")
    assert line.startswith(f"cannot attach to vfio-user:{path}: ")


def test_a_pci_address_that_is_not_there() -> None:
    line = refused(1, "run", "--device", "0000:fe:1f.7", "--vf", "loop")
    assert "0000:fe:1f.7" in line


def test_missing_interface() -> None:
    line = refused(1, "run", "--device", "sim", "--vf", "packet:none0")
    assert line.startswith("cannot open VF packet:none0: ")


def test_a_bar_that_is_not_the_window() -> None:
    line = refused(1, "run", "--device", "sim", "--bar", "0")
    assert line.startswith("cannot use --bar 0: BAR 0 is not the window: ")


def test_help_and_version() -> None:
    for arguments in (("--help",), ("run", "--help"), ("--version",), ()):
        with pmd(*arguments) as process:
            assert process.wait() == 0
            assert "pmd" in process.stdout()
            assert process.stderr() == ""


def test_closed_streams() -> None:
    """Nothing of stderr comes out of stdout, and nothing fails for want of a stream."""
    shut = "import os, sys; [os.close(int(fd)) for fd in sys.argv[1]]; os.execv(sys.executable, "
    shut += "[sys.executable, '-m', 'pmd.cli', *sys.argv[2:]])"
    for fds, words, status in (
        ("12", ("--version",), 0),
        ("1", ("list",), 0),
        ("02", ("bind", "frob"), 2),
    ):
        done = subprocess.run(
            [sys.executable, "-c", shut, fds, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_list_without_functions() -> None:
    with pmd("list") as process:
        assert process.wait() == 0
        assert process.stdout() == "no vhost-pci function on this machine\n"
    imported = "import sys, pmd.cli, pmd.listing; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", imported], cwd=ROOT, text=True).split()
    assert {"cyclopts", "rich", "numpy", "dataclasses"}.isdisjoint(modules)
    with pmd("list", "--json") as process:
        assert process.wait() == 0
        assert process.stdout() == "[]\n"


@pytest.mark.parametrize("package", ["pmd", "tools.device", "tools.lab", "tools.vm1"])
def test_interrupted_while_it_begins(package: str) -> None:
    """As its user does who sees that a word was wrong: modules take half a second to import."""
    script = f"""
import signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "cyclopts":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from {package}.cli import main
main()
"""
    command = [sys.executable, "-c", script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
