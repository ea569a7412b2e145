"""Instructions a packet, counted by callgrind, against what budget.json allows.

    python -m tools.stage.budget            compare; exit status 1 where one is over its budget
    python -m tools.stage.budget --record   write what this kernel needs into budget.json

A count depends on source, compiler and flags, and on nothing that differs from run to run or from
machine to machine: the C library's copies are kept to the one every x86-64 processor has. So there
is a budget for each compiler's major version, and 3 % of slack for changes that mean nothing.
Of a version that has none, the nearest one's is taken, with twice the slack that gcc 12 and 14
would need: they differ by -4 to +5 %.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from guest.errors import VhostPciError
from tools.stage.build import build, compiler, kernel_path

BUDGET = Path(__file__).with_name("budget.json")
SLACK = 0.03
SLACK_OF_ANOTHER = 0.1
_ROUNDS = 40
_COUNTED = re.compile(r"Collected : (\d+)")
# glibc(7) tunables: what a processor has beyond x86-64 is not used for memcpy.
_BEYOND = ("AVX512F", "AVX2", "AVX", "AVX_Fast_Unaligned_Load", "SSSE3", "ERMS", "FSRM")
_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=" + ",".join(f"-{each}" for each in _BEYOND)}


@dataclass(frozen=True, slots=True)
class Scenario:
    """A stage (stage.c): what VM1 and the port do, how VM1's memory is cut up; PMD_KERNEL_ISA.

    Attributes:
        regions: Those that VM1's buffers lie in, beside the one with the rings.
        run: So many buffers lie side by side in a region, those after them in the next; 1: each in
            another region than the one before.
        looped: So many channels that a loop runs; 0: one, without a loop.
        idle: So many more in that loop to which nothing comes.
    """

    kind: str
    frame_bytes: int = 64
    regions: int = 1
    run: int = 1
    queue_size: int = 256
    burst: int = 32
    packed: bool = False
    isa: str = "scalar"
    looped: int = 0
    idle: int = 0

    @property
    def name(self) -> str:
        """Tells it from the others."""
        words = [f"{self.kind} {self.frame_bytes} B"]
        words += [f"{self.regions} regions"] * (self.regions > 1)
        words += [f"runs of {self.run}"] * (self.run > 1) + ["packed"] * self.packed
        words += [self.isa] * (self.isa != "scalar")
        words += [f"{self.looped} in a loop"] * (self.looped > 0)
        words += [f"{self.idle} idle"] * (self.idle > 0)
        return ", ".join(words)

    @property
    def numbers(self) -> tuple[int, ...]:
        """What stage_new() is told beside the kind."""
        ring = (self.frame_bytes, self.queue_size, self.burst, self.regions, self.run)
        return (*ring, int(self.packed), self.looped, self.idle)

    @property
    def counted(self) -> str:
        """The kernel's function whose instructions count."""
        if self.kind == "translate":
            return "rk_map_translate"
        return "stage_work" if self.looped else "rk_work_turn"


SCENARIOS = (
    *(
        Scenario(kind, size, packed=packed)
        for packed in (False, True)
        for kind in ("null", "copy", "loop", "gen", "held")
        for size in (64, 1518)
    ),
    Scenario("null", regions=4000),
    Scenario("gen", regions=4000),
    *(Scenario(kind, regions=4000, run=64) for kind in ("null", "gen")),
    Scenario("translate"),
    Scenario("translate", regions=4000),
    *(Scenario("direct", packed=packed) for packed in (False, True)),
    *(Scenario(kind, packed=True, isa="avx2") for kind in ("null", "held")),
    *(Scenario("null", looped=channels) for channels in (1, 2, 8)),
    Scenario("null", looped=1, idle=63),
)


def count(program: Path, scenario: Scenario) -> float:
    """Instructions a packet, or a translation, of one scenario; program is of tools.stage.build.

    Raises:
        VhostPciError: valgrind is missing, or does not get to the end.
    """
    numbers = (*scenario.numbers, _ROUNDS)
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [f"--toggle-collect={scenario.counted}", str(program), scenario.kind]
    command += map(str, numbers)
    try:
        found = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ | _ENVIRONMENT | {"PMD_KERNEL_ISA": scenario.isa},
            check=False,
        )
    except FileNotFoundError as error:
        remedy = "install it (Debian: valgrind)"
        raise VhostPciError("run", "valgrind", "it is not there", remedy) from error
    instructions = _COUNTED.search(found.stderr)
    if found.returncode != 0 or instructions is None:
        said = found.stderr.strip().rpartition("\n")[2]
        raise VhostPciError("count", scenario.name, said or f"status {found.returncode}")
    return int(instructions[1]) / int(found.stdout)


def counts() -> dict[str, float]:
    """All scenarios that this processor can run, by name, of the kernel as it is installed."""
    known = {"scalar", *re.findall(r"\bavx2\b", Path("/proc/cpuinfo").read_text())}
    scenarios = [each for each in SCENARIOS if each.isa in known]
    with tempfile.TemporaryDirectory(prefix="stage-") as folder, ThreadPoolExecutor(2) as workers:
        program = Path(folder) / "stage"
        build(program, kernel_path(), shared=False)
        found = workers.map(lambda scenario: count(program, scenario), scenarios)
        return {s.name: round(each, 2) for s, each in zip(scenarios, found, strict=True)}


def key() -> str:
    """Which budget is the installed kernel's."""
    return f"{os.uname().machine}, {compiler(kernel_path())}"


@dataclass(frozen=True, slots=True)
class Budget:
    """Instructions a packet by scenario, recorded for key, and by which part one may have more."""

    key: str
    allowed: dict[str, float]
    slack: float = SLACK

    def over(self, found: dict[str, float]) -> list[str]:
        """What takes more than its budget and the slack, or has none; one line each."""
        return [
            f"{name}: {needed:.2f} instructions a packet, budget {self.allowed.get(name, 0.0):.2f}"
            f" of {self.key} and {self.slack:.0%}"
            for name, needed in found.items()
            if needed > self.allowed.get(name, 0.0) * (1 + self.slack)
        ]


def budget(wanted: str, everything: dict[str, dict[str, float]]) -> Budget | None:
    """What was recorded for wanted, or else of the nearest version; None: nothing of its kind."""
    kind, version = _parts(wanted)
    alike = [each for each in everything if _parts(each)[0] == kind]
    if not alike:
        return None
    nearest = min(alike, key=lambda other: abs(_parts(other)[1] - version))
    return Budget(nearest, everything[nearest], SLACK if nearest == wanted else SLACK_OF_ANOTHER)


def _parts(key: str) -> tuple[str, int]:
    """Machine and compiler; its version."""
    kind, _, version = key.rpartition(" ")
    return kind, int(version)


def recorded() -> dict[str, dict[str, float]]:
    """All budgets by `key`."""
    found: dict[str, dict[str, float]] = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    return found


def _record(found: dict[str, float]) -> None:
    everything = recorded() | {key(): found}
    BUDGET.write_text(json.dumps(everything, indent=2, sort_keys=True) + "\n")


def main() -> int:
    """The command; its exit status."""
    arguments = sys.argv[1:]
    if arguments not in ([], ["--record"]):
        print("usage: python -m tools.stage.budget [--record]", file=sys.stderr)
        return 2
    try:
        found = counts()
        if arguments:
            _record(found)
        allowed = budget(key(), recorded())
    except VhostPciError as error:
        print(f"budget: {error}", file=sys.stderr)
        return error.exit_status
    if allowed is None:
        print(f"budget: none was recorded for {key()}; --record records one", file=sys.stderr)
        return 1
    print(f"instructions a packet, {key()}; budget of {allowed.key} and {allowed.slack:.0%}")
    for name, needed in found.items():
        print(f"{name:30} {needed:8.2f}  budget {allowed.allowed.get(name, 0.0):8.2f}")
    return int(bool(allowed.over(found)))


if __name__ == "__main__":
    sys.exit(main())
