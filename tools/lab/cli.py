"""`vhost-pci-lab`: the command line. stdout holds what was asked for, stderr errors."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from guest.errors import UsageError, VhostPciError
from tools.lab import own
from tools.lab.cache import Cache, cache_directory
from tools.lab.check import Steps, check
from tools.lab.image import make_image
from tools.lab.picture import VF_KINDS, Picture
from tools.lab.qemu import find_qemu
from tools.lab.template import Templates

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = "vhost-pci-lab"
_LOG_LINES = 20  # of each file, when something went wrong

app = App(
    name=_NAME,
    help="Two real virtual machines and an outside, on stock QEMU, from Debian packages.",
    version_flags=[],
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


@app.command(name="check")
def check_command(
    *,
    vf: str = "packet",
    megabytes: Annotated[int, Parameter(validator=Number(gte=1, lte=10_000))] = 16,
    qemu: Path | None = None,
    keep_logs: Path | None = None,
) -> None:
    """Bring the whole picture up, send traffic through it, replace VM1, send again, end it all.

    Args:
        vf: Where frames go in VM2: packet (its network card, by a packet socket) or tap (bridged).
        megabytes: MiB that TCP moves each way, each time.
        qemu: A QEMU of yours, 10.1 or newer, instead of Debian's.
        keep_logs: Directory for consoles and logs; without it they are shown if a step fails.
    """
    if vf not in VF_KINDS:
        kinds = ", ".join(VF_KINDS)
        raise UsageError("use", f"--vf {vf}", "there is no such kind", f"use {kinds}")
    steps = Steps(_tell, _begin)
    templates, package = _prepare(steps, qemu)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(work_directory(keep_logs))
        picture = stack.enter_context(Picture(templates, package, directory))
        try:
            check(picture, steps, vf, megabytes)
        except VhostPciError:
            if keep_logs is None:
                _show_logs(directory)
            raise
    _tell("all of it held")


@contextlib.contextmanager
def work_directory(keep: Path | None) -> Iterator[Path]:
    """A short path for sockets and logs, gone at the end; the logs are copied to keep before."""
    with tempfile.TemporaryDirectory(prefix="vpci-lab-") as name:
        directory = Path(name)
        try:
            yield directory
        finally:
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                for file in _logs(directory):
                    shutil.copy(file, keep)


def _prepare(steps: Steps, qemu: Path | None) -> tuple[Templates, Path]:
    """All that comes from the cache, fetched or made now if need be."""
    cache = Cache(cache_directory())
    with steps.step("hypervisor") as facts:
        hypervisor = find_qemu(cache, qemu)
        facts.append(f"QEMU {hypervisor.version}")
    with steps.step("kernel and initramfs"):
        image = make_image(cache)
    with steps.step("our package"):
        package = own.package(cache)
    templates = Templates(cache, hypervisor, image, lambda line: _begin(f"   {line} ..."))
    with steps.step("accelerator") as facts:
        facts.append(templates.accelerator)
    return templates, package


def _logs(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file())


def _show_logs(directory: Path) -> None:
    for file in _logs(directory):
        lines = file.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        if lines:
            print(f"--- {file.name}", *lines, sep="\n", file=sys.stderr)


def _begin(line: str) -> None:
    """What is going on, where somebody watches; the next line takes its place."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="", flush=True)


def _tell(line: str) -> None:
    clear = "\r\x1b[K" if sys.stdout.isatty() else ""
    print(f"{clear}{line}", flush=True)


def main() -> None:
    """Entry point. Exit status 0 if all went well, 1 on failure, 2 on wrong use."""
    try:
        status = app(exit_on_error=False, print_error=False)
        sys.exit(status if isinstance(status, int) else 0)
    except CycloptsError as error:
        line = " ".join(str(error).split()).rstrip(".")
        print(f"{_NAME}: {line[:1].lower()}{line[1:]}; see {_NAME} --help", file=sys.stderr)
        sys.exit(UsageError.exit_status)
    except VhostPciError as error:
        print(f"{_NAME}: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
