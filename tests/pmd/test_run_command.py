"""`pmd run` without the command line's library: the same flags, and none of what is slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.commands import app
from pmd.kernel_library import library
from pmd.run_command import plain_flags
from tests.pmd.processes import ROOT, Device, Vm1
from tests.pmd.wait import wait_for

FLAGS = (
    *("bar", "device", "vf", "lcores", "burst", "window-map", "poll", "coalesce-us", "copy"),
    *("duration", "stats-period", "json", "config"),
)
VALUES = (
    *("0", "2", "007", "1_0", "1e3", "0x2", "-1", "+2", "1.5", ".5", "2.", "inf", "nan", "٣"),
    *("", "-", "--", "none", "None", "true", "false", "auto", "tap:vp{n}", "a=b", "a,b", "a b"),
    *("vfio-user:/run/x", "0000:01:00.0", '["x"]', '{"a": 1}', "~/x", "./x.toml", "[1]", "1-3,5"),
)


def by_library(words: list[str]) -> dict[str, Any] | None:
    """What cyclopts makes of the same words; None where they are no flags of `run`."""
    try:
        command, bound, *_ = app.parse_args(
            ["run", *words], exit_on_error=False, print_error=False, end_of_options_delimiter=""
        )
    except CycloptsError:
        return None
    if command.__name__ != "run":
        return None
    given = {name.replace("_", "-"): value for name, value in bound.arguments.items()}
    if "config" in given:
        given["config"] = str(given["config"])
    return given


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    words: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        flag = draw(st.sampled_from([f"--{name}" for name in FLAGS] + ["-l", "--no-json", "-h"]))
        value = draw(st.sampled_from(VALUES) | st.text(max_size=4))
        words += draw(st.sampled_from([[flag], [flag, value], [f"{flag}={value}"], [value]]))
    return words


@settings(max_examples=200, deadline=None)
@given(command_lines())
def test_plain_words_mean_what_the_library_says(words: list[str]) -> None:
    found = plain_flags(words)
    if found is not None:
        if "config" in found:
            found["config"] = str(Path(found["config"]))  # ./x is x
        assert found == by_library(words)


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ([], {}),
        (["--bar", "2"], {"bar": 2}),
        (["--vf", "tap:vp{n}", "--vf=loop"], {"vf": ["tap:vp{n}", "loop"]}),
        (
            ["-l", "1-3", "--json", "--duration=1.5"],
            {"lcores": "1-3", "json": True, "duration": 1.5},
        ),
        (["--config", "/etc/pmd.toml", "--burst", "64"], {"config": "/etc/pmd.toml", "burst": 64}),
    ],
)
def test_what_users_type_is_plain(words: list[str], flags: dict[str, object]) -> None:
    assert plain_flags(words) == flags
    assert by_library(words) == flags


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["--bogus"], ["extra"], ["--bar"], ["--bar", "x"], ["--bar", "-1"]),
        *(["--bar", "2", "--bar", "2"], ["--json=true"], ["--vf", "--json"], ["bar=2"], ["--"]),
    ],
)
def test_what_the_library_has_to_see(words: list[str]) -> None:
    assert plain_flags(words) is None


# What no run needs in order to serve VM1; each costs a tenth of a second or more where processors
# are emulated, and the daemon that takes a dead one's place is waited for.
SLOW = {"cyclopts", "numpy", "rich", "importlib.metadata", "importlib.resources", "asyncio"}
# What a VM loads only when VM1 is served, or not at all. Each dataclass is compiled when imported.
SLOW_IN_A_VM = {*SLOW, "dataclasses", "inspect", "pyudev"}


SERVE = """
import sys
sys.path = {path}
sys.argv = ["pmd", "run", "--device", {device!r}, "--vf", "loop", "--duration", "0.5"]
import pmd.cli, driver.software_vf.packet, guest.hotplug
try:
    pmd.cli.main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def _started(device: Device) -> bool:
    return any(ring["started"] for ring in device.describe()["function"]["rings"])


def test_a_run_imports_nothing_slow(tmp_path: Path) -> None:
    with Device(tmp_path) as device, Vm1("verify", device, "--count", "0"):
        wait_for(lambda: _started(device), "VM1's rings")
        program = SERVE.format(path=sys.path, device=device.name)
        command = [sys.executable, "-I", "-S", "-c", program]
        # An editable installation's library is found by what -S leaves out.
        there = {**os.environ, "PMD_KERNEL_LIBRARY": library()._name}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, env=there
        )
    assert done.returncode == 0, done.stderr
    assert "(forwarding)" in done.stdout
    imported = set(done.stderr.splitlines()[-1].split())
    assert "pmd.daemon" in imported
    assert imported & SLOW == set()


def test_a_vm_imports_less() -> None:
    """Functions by vfio-user need dataclasses; those of a VM's kernel do not."""
    modules = "pmd.cli, pmd.run, pmd.report, guest.vfio, guest.hotplug, driver.software_vf.packet"
    program = f"import sys; sys.path = {sys.path}; import {modules}; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) & SLOW_IN_A_VM == set()
