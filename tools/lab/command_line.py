"""`vhost-pci-lab`: the command line. stdout holds what was asked for, stderr errors."""

from __future__ import annotations

import contextlib
import json as json_format
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

from cyclopts import App, Parameter
from cyclopts.validators import Number

from guest.errors import UsageError, VhostPciError, errno_text
from pmd import command_line
from tools.lab import client, debian
from tools.lab.check import check
from tools.lab.nic import Nic
from tools.lab.picture import VF_KINDS, Picture
from tools.lab.prepare import Steps, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = "vhost-pci-lab"
_FOLLOW_S = 0.2
_SUITES = {"stable": debian.SUITE, "backports": debian.BACKPORTS}
_LOG_LINES = 20  # of each file, when something went wrong

app = App(
    name=_NAME,
    help="Two real virtual machines and an outside, on stock QEMU, from Debian packages.",
    version=lambda: command_line.version(_NAME),
    suppress_keyboard_interrupt=False,
)


@app.command(name="check")
def check_command(
    *,
    vf: str = "packet",
    nic: str = "",
    megabytes: Annotated[int, Parameter(validator=Number(gte=1, lte=10_000))] = 16,
    qemu: Path | None = None,
    kernel: Literal["stable", "backports"] = "stable",
    keep_logs: Path | None = None,
) -> None:
    """Bring the whole picture up, send traffic through it, replace VM1, send again, end it all.

    Args:
        vf: Where frames go in VM2: packet (its network card, by a packet socket), tap (bridged),
            igb (an SR-IOV VF of the card, by its own rings), xdp (that one's interface, by AF_XDP),
            virtio-net (the card, by its own rings); xdp-igb or xdp-virtio-net (the card's own
            interface, by AF_XDP, zero-copy: with --kernel backports).
        nic: What VM1's network card has, by QEMU's names: packed=on,mrg_rxbuf=off,queues=4.
        megabytes: MiB that TCP moves each way, each time.
        qemu: A QEMU of yours, 10.1 or newer, instead of Debian's.
        kernel: Debian's of all three machines; backports has a newer one.
        keep_logs: Directory for consoles and logs, made if need be; without it they are shown if a
            step fails.
    """
    if vf not in VF_KINDS:
        kinds = ", ".join(VF_KINDS)
        raise UsageError("use", f"--vf {vf}", "there is no such kind", f"use {kinds}")
    card = Nic.parse(nic)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if keep_logs is not None:
        _make(keep_logs)
    steps = Steps(_tell, _begin)
    templates, package = prepare(steps, qemu, _SUITES[kernel])
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(work_directory(keep_logs))
        picture = stack.enter_context(Picture(templates, package, directory, nic=card))
        try:
            check(picture, steps, vf, megabytes)
        except VhostPciError:
            if keep_logs is None:
                _show_logs(directory, sys.stderr)
            raise
    _tell("all of it held")


@app.command
def up(*, nic: str = "", qemu: Path | None = None) -> None:
    """Start VM1, the device server, VM2 and a machine outside, and leave them running.

    The function is plugged into VM2 while VM1's driver runs. `pmd` is a command in VM2:
    vhost-pci-lab exec vm2 pmd run --bar 2 --vf packet:eth0

    Args:
        nic: What VM1's network card has, by QEMU's names: packed=on,mrg_rxbuf=off,queues=4.
        qemu: A QEMU of yours, 10.1 or newer, instead of Debian's.
    """
    Nic.parse(nic)
    client.up(nic, qemu, _tell)


@app.command
def down() -> None:
    """End what `up` started."""
    client.down()


@app.command
def status(*, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Show what runs. Exit status 1 if no lab is up.

    Args:
        json: Print one JSON object with all that is known.
    """
    state = client.status()
    if json:
        print(json_format.dumps(state), flush=True)
        return 0
    for name, facts in state["machines"].items():
        print(f"{name}: {facts['memory_mib']} MiB, {state['accelerator']}, process {facts['pid']}")
    plugged = "plugged into VM2" if state["plugged"] else "not plugged"
    driver = state["device"]["function"]["driver_status"] if state["device"] else "its server ended"
    print(f"function: {plugged}, driver {driver}")
    print(f"logs: {state['directory']}")
    return 0


@app.command(name="exec")
def execute(
    vm: str,
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> int:
    """Run a command in a machine, its streams ours; exits with its status.

    Args:
        vm: vm1, vm2 or outside.
        words: The command. Without any a shell: with a prompt on a terminal, else it reads a script
            from standard input.
    """
    if words:
        return client.execute(vm, words)
    return client.prompt(vm) if sys.stdin.isatty() else client.execute(vm, ("sh",))


@app.command
def console(
    vm: str, *, follow: Annotated[bool, Parameter(name=["-f", "--follow"], negative=())] = False
) -> None:
    """Show what a machine's kernel wrote to its console.

    Args:
        vm: vm1, vm2 or outside.
        follow: Go on showing what comes, until interrupted.
    """
    path = client.lab_directory() / f"{vm}.console"
    if not path.exists():
        raise UsageError("show the console of", vm, f"there is no {path}")
    with path.open("rb") as file:
        while True:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
            if not follow:
                return
            time.sleep(_FOLLOW_S)


@app.command
def logs() -> None:
    """Show the end of every log of the lab that is up, or of the one that did not come up."""
    directory = client.lab_directory()
    if not directory.is_dir():
        raise VhostPciError("show", "the lab's logs", f"there is no {directory}")
    _show_logs(directory, sys.stdout)


@contextlib.contextmanager
def work_directory(keep: Path | None) -> Iterator[Path]:
    """A short path for sockets and logs, gone at the end; the logs are copied to keep before."""
    with tempfile.TemporaryDirectory(prefix="vpci-lab-") as name:
        directory = Path(name)
        try:
            yield directory
        finally:
            if keep is not None:
                for file in _logs(directory):
                    shutil.copy(file, keep)


def _make(keep: Path) -> None:
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = errno_text(error)
        raise UsageError("keep logs in", str(keep), cause, "name a directory") from error


def _logs(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file())


def _show_logs(directory: Path, to: TextIO) -> None:
    for file in _logs(directory):
        lines = file.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        if lines:
            print(f"--- {file.name}", *lines, sep="\n", file=to)


def _begin(line: str) -> None:
    """What is going on, where somebody watches; the next line takes its place."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="", flush=True)


def _tell(line: str) -> None:
    clear = "\r\x1b[K" if sys.stdout.isatty() else ""
    print(f"{clear}{line}", flush=True)


def _set_apart(words: list[str]) -> list[str]:
    """Words of a command line with those of `exec VM COMMAND...` kept from being taken for ours."""
    if words[:1] == ["exec"] and len(words) > 2 and not words[2].startswith("-"):
        return [*words[:2], "--", *words[2:]]
    return words


def perform(words: list[str]) -> int:
    """Run what these words ask for; its exit status: 0, 1 on failure, 2 on wrong use.

    Raises:
        VhostPciError: It failed.
    """
    return command_line.perform(app, _set_apart(words))
