"""The commands of `pmd`, and what is said of words that are none."""

from __future__ import annotations

import json as json_format
from pathlib import Path  # noqa: TC003 - cyclopts reads annotations at run time
from typing import Annotated, Any

from cyclopts import App, Parameter

from guest.errors import VhostPciError
from pmd import command_line
from pmd.bench_options import BenchFlags
from pmd.run_command import CONFIG, run_command

_FLAG = Parameter(negative=())
_BENCH = BenchFlags()


app = App(
    name="pmd",
    help="Serve another VM's virtio-net rings from user space through a vhost-pci PCI function.",
    version=lambda: command_line.version("pmd"),
    suppress_keyboard_interrupt=False,
)


@app.command
def run(
    *,
    bar: int | None = None,
    device: Annotated[list[str] | None, Parameter(negative=())] = None,
    vf: Annotated[list[str] | None, Parameter(negative=())] = None,
    lcores: Annotated[str | None, Parameter(name=["--lcores", "-l"])] = None,
    burst: int | None = None,
    window_map: str | None = None,
    poll: str | None = None,
    coalesce_us: int | None = None,
    copy: str | None = None,
    duration: float | None = None,
    stats_period: float | None = None,
    json: Annotated[bool | None, _FLAG] = None,
    config: Path | None = None,
) -> None:
    """Forward between VM1's rings and a VF until SIGINT, SIGTERM or the duration's end.

    Args:
        bar: The window's BAR: 2.
        device: What to serve: auto, the default (every vhost-pci function of this machine, as they
            are plugged in and out), a PCI address, vfio-user:PATH, or sim (an embedded VM1). May
            be repeated.
        vf: Where frames go, one for each --device in order: KIND:WHAT as the README lists them, or
            auto, which picks a VF of this machine and says which. Without any, PCI functions get
            auto and sim gets loop. For --device auto, {n} in it counts functions: tap:vp{n} makes
            vp0, vp1 ... Without {n}, a VF that can be had only once serves one function at a time.
        lcores: CPUs to poll on, such as 1-3,5. By default the last one allowed.
        burst: Frames taken from a ring at once, 1 to 256. By default 32.
        window_map: How VM1's memory is mapped from a PCI function: vfio, wc (write-combining, by
            sysfs), or auto, the default: the faster, measured when the function is attached.
        poll: busy, the default, polls without end; adaptive sleeps once nothing moved for a
            millisecond, until VM1 kicks or the VF has frames; interrupt sleeps at once.
        coalesce_us: Microseconds an interrupt to VM1 may wait for others, 0 to 1000. By default 0.
        copy: Whether frames are copied between VM1's memory and a VF that reaches it by DMA: auto,
            the default (short ones, and where it does not), always or never.
        duration: Seconds to run.
        stats_period: Seconds between two updates of the statistics, 0.1 or more. By default 1.
        json: Print one JSON object at the end and nothing else on stdout.
        config: A TOML file with these keys; flags win over it.
    """
    given: dict[str, Any] = {
        "bar": bar,
        "device": device,
        "vf": vf,
        "lcores": lcores,
        "burst": burst,
        "window-map": window_map,
        "poll": poll,
        "coalesce-us": coalesce_us,
        "copy": copy,
        "duration": duration,
        "stats-period": stats_period,
        "json": json,
        CONFIG: config,
    }
    run_command({key: value for key, value in given.items() if value is not None})


@app.command(name="list")
def list_functions(*, json: Annotated[bool, _FLAG] = False) -> None:
    """Show the vhost-pci functions of this machine, and what keeps one from being used.

    Args:
        json: Print a JSON array instead of a table.
    """
    from pmd.listing import show  # noqa: PLC0415 - only this command needs it

    show(json=json)


@app.command
def doctor(
    *,
    device: Annotated[list[str] | None, Parameter(negative=())] = None,
    lcores: Annotated[str | None, Parameter(name=["--lcores", "-l"])] = None,
    json: Annotated[bool, _FLAG] = False,
) -> int:
    """Check what keeps `run` from running, or from running well; each line has its remedy.

    Functions that nobody uses are opened, and the speed of reading VM1's memory is measured. The
    exit status is 1 if there is a problem.

    Args:
        device: As of run. May be repeated.
        lcores: As of run.
        json: Print one JSON object instead of lines.
    """
    from pmd import finding  # noqa: PLC0415 - only this command needs these
    from pmd.doctor import examine  # noqa: PLC0415

    findings = examine(device or (), lcores or "")
    if json:
        print(json_format.dumps(finding.json_object(findings)), flush=True)
    else:
        print(finding.lines(findings), flush=True)
    return VhostPciError.exit_status if finding.has_problem(findings) else 0


@app.command
def bench(
    *,
    flags: BenchFlags = _BENCH,
    json: Annotated[bool, _FLAG] = False,
    plot: Path | None = None,
) -> None:
    """Measure the forwarding rate with an embedded VM1 whose rings are always full, or stocked.

    VM1, pmd and peers are processes of their own, pinned; pmd and peers run by turns of 250 ms. A
    ratio is told only between slices that were taken under the same conditions.

    Args:
        flags: What and where.
        json: Print a JSON list instead of a table.
        plot: Also draw rate by frame size, as an SVG at this path.
    """
    from pmd.bench_command import bench as measure  # noqa: PLC0415 - only this command needs it

    measure(flags.options(), as_json=json, plot=plot)


@app.command
def bind(
    address: str,
    *,
    force: Annotated[bool, _FLAG] = False,
    dry_run: Annotated[bool, _FLAG] = False,
) -> None:
    """Give a PCI function to vfio-pci, loading it. `run` does that by itself for vhost-pci.

    Args:
        address: The function, such as 0000:01:00.0.
        force: Also where it is in use, or kept for another driver.
        dry_run: Change nothing; show what would be written where.
    """
    from pmd.bind import bind as lines  # noqa: PLC0415 - only this command needs it

    for line in lines(address, force=force, dry_run=dry_run):
        print(line, flush=True)


@app.command
def unbind(
    address: str,
    *,
    force: Annotated[bool, _FLAG] = False,
    dry_run: Annotated[bool, _FLAG] = False,
) -> None:
    """Give a PCI function back to the driver the kernel chooses.

    Args:
        address: The function, such as 0000:01:00.0.
        force: Also while a process holds it: the kernel asks that one to let go, and waits.
        dry_run: Change nothing; show what would be written where.
    """
    from pmd.bind import unbind as lines  # noqa: PLC0415 - only this command needs it

    for line in lines(address, force=force, dry_run=dry_run):
        print(line, flush=True)


def perform(arguments: list[str]) -> int:
    """Run the command that these words are; its exit status.

    Raises:
        VhostPciError: As the command says.
    """
    return command_line.perform(app, arguments)
