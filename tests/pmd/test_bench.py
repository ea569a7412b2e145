"""`pmd bench` as a user runs it: what it prints, how it ends, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guest.errors import VhostPciError
from pmd.bench_feature import Feature, require_agreed
from tests.pmd.processes import Process, marked, pmd
from tests.pmd.test_cli import misused, refused
from tests.pmd.wait import wait_for
from tools.stage.build import kernel_path

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.alone

CONDITIONS = {"near_quiet", "near_busy", "far_quiet", "far_busy", "untagged"}
ONE = ("--mode", "null", "--size", "64")
RESERVED = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture(autouse=True)
def huge_pages() -> Iterator[None]:
    """As many are reserved afterwards as before."""
    before = RESERVED.read_text()
    yield
    assert RESERVED.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (("--mode", "frob"), "cannot use --mode frob: it is none; there are null, copy, loop, p"),
        (("--direction", "up"), "cannot use --direction up: it is none; there are tx, rx, both"),
        (("--ring", "round"), "cannot use --ring round: it is none; there are split, packed"),
        (("--size", "64,,128"), "cannot use --size 64,,128: '' is not 60 to 9216"),
        (("--size", "59"), "cannot use --size 59: '59' is not 60 to 9216"),
        (("--queue-size", "100"), "cannot use --queue-size 100: it is no power of two"),
        (("--burst", "257"), "cannot use --burst 257: '257' is not 1 to 256"),
        (("--touch", "3"), "cannot use --touch 3: it is not 0 to 2"),
        (("--idle", "64"), "cannot use --idle 64: it is not 0 to 63"),
        (("--full", "--idle", "1"), "cannot use --idle: --full says what is measured"),
        (("--channels", "65"), "cannot use --channels 65: '65' is not 1 to 64"),
        (("--mode", "null", "--direction", "rx"), "cannot measure --direction rx: null has no fra"),
        (("--full", "--size", "64"), "cannot use --size: --full says what is measured"),
        (("--latency", "0"), "cannot use --latency 0: '0' is not 1 to 100000000"),
        (("--latency", "9", "--size", "64"), "cannot use --latency: it says what is measured"),
        (("--latency", "9", "--plot", "/x.svg"), "cannot use --plot /x.svg: it draws rates"),
        (
            ("--poll", "busy"),
            "cannot use --poll busy: rates and peers are busy; give it with --la",
        ),
        (("--latency", "9", "--poll", "x"), "cannot use --poll x: it is none; there are busy, ad"),
        (("--feature", "frob"), "cannot use --feature frob: it is none; there are packed, mrg_rxb"),
        (("--feature", "all", "--size", "64"), "cannot use --feature all: it says what is measur"),
        (("--feature", "csum", "--peer", "x"), "cannot use --feature csum: it says what is measu"),
        (("--feature", "csum", "--latency", "9"), "cannot use --latency: it says what is measure"),
        (("--seconds", "0.1"), "cannot use --seconds 0.1: it is not 0.5 to 3600"),
        (("--lcores", "0", "--vm1-cpus", "0"), "cannot use --lcores 0: CPU 0 is there twice"),
        (("--plot", "/rates.png"), "cannot use --plot /rates.png: the picture is an SVG"),
        (("--plot", "/none/rates.svg"), "cannot use --plot /none/rates.svg: there is no such fol"),
    ],
)
def test_usage(capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], start: str) -> None:
    assert misused(capfd, "bench", *arguments).startswith(start)


def test_a_peer_that_is_not_installed() -> None:
    line = refused(1, "bench", "--peer", "/none/testpmd")
    assert line.startswith("cannot find --peer /none/testpmd: there is no such program; install")


def test_a_kernel_that_is_not_there() -> None:
    line = refused(1, "bench", "--peer", "/none/limit.so")
    assert line.startswith("cannot find --peer /none/limit.so: there is no such file")


def test_one_cpu_is_too_few() -> None:
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        line = refused(1, "bench")
    finally:
        os.sched_setaffinity(0, everywhere)
    assert line.startswith("cannot measure on this machine: this process may use 1 CPU; it takes")


def rows_of(process: Process) -> list[dict[str, Any]]:
    assert process.wait() == 0
    assert process.left_behind == []
    assert marked(process.mark) == []
    assert "Traceback" not in process.stderr()
    found = json.loads(process.stdout())
    assert isinstance(found, list)
    return found


def test_without_a_peer(tmp_path: Path) -> None:
    picture = tmp_path / "rates.svg"
    options = ("--mode", "loop", "--seconds", "0.5", "--plot", picture)
    with pmd("bench", *options, "--json") as process:
        (row,) = rows_of(process)
    assert row["case"] == "loop-both-64B-split-q256-b32-c1-t1"
    assert row["placement"] in CONDITIONS
    assert row["ours_mpps"] > 0
    cycles = row["ours_cycles_per_packet"]
    assert cycles is None or cycles > 0
    stages = row["ours_cycles_by_stage"]
    assert set(stages) == (set() if cycles is None else {"dequeue", "enqueue"})
    low, high = row["spread"]["ours"]
    assert low <= row["ours_mpps"] <= high
    assert [row[key] for key in ("peer", "peer_mpps", "ratio", "refusal")] == [None] * 4
    text = picture.read_text()
    assert text.startswith("<?xml")
    assert "<svg" in text


def test_channels_beside_a_peer() -> None:
    case = (
        "--mode",
        "null",
        "--size",
        "1518",
        "--channels",
        "2",
        "--idle",
        "1",
        "--seconds",
        "0.5",
    )
    kernel = kernel_path()  # beside itself
    with pmd("bench", *case, "--peer", kernel) as process:
        assert process.wait() == 0
        table = process.stdout()
        assert process.left_behind == []
    assert table.count("VM1 -> VF, 2 channels, 1 idle") >= 1
    assert kernel.stem in table  # a ratio or a refusal: that is the machine's affair


def vm1_of(process: Process) -> int:
    """The process id of the first VM1 that pmd bench starts."""
    found: list[int] = []

    def look() -> bool:
        for pid in marked(process.mark):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"tools.vm1.cli" in words:
                found.append(pid)
        return bool(found)

    wait_for(look, "a VM1")
    return found[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    with pmd("bench", *ONE, "--seconds", "600") as process:
        vm1_of(process)
        process.signal(number)
        assert process.wait() == 128 + number
        assert process.stdout() == ""
        assert process.left_behind == []
        assert marked(process.mark) == []
        assert "Traceback" not in process.stderr()


def test_a_killed_child_is_named() -> None:
    with pmd("bench", *ONE, "--seconds", "600") as process:
        os.kill(vm1_of(process), signal.SIGKILL)
        assert process.wait() == 1
        assert process.stderr().endswith("pmd: cannot run VM1 of pmd: signal 9 ended it\n")
        assert process.stdout() == ""
        assert process.left_behind == []
        assert marked(process.mark) == []


def test_a_peer_that_ends_is_quoted(tmp_path: Path) -> None:
    program = tmp_path / "testpmd"
    program.write_text("#!/bin/sh\necho EAL: no memory here >&2\nexit 3\n")
    program.chmod(0o755)
    with pmd("bench", *ONE, "--peer", program) as process:
        assert process.wait() == 1
        line = process.stderr().splitlines()[-1]
        assert line == "pmd: cannot run testpmd: it ended with status 3: EAL: no memory here"
        assert process.left_behind == []
        assert marked(process.mark) == []


def test_latency() -> None:
    options = ("--poll", "busy,interrupt", "--seconds", "0.5", "--json")
    with pmd("bench", "--latency", "1000,20000", *options) as process:
        found = rows_of(process)
    assert [(row["poll"], row["rate_pps"], row["side"]) for row in found] == [
        (poll, rate, "pmd") for poll in ("busy", "interrupt") for rate in (1000, 20000)
    ]
    for row in found:
        assert row["case"] == f"latency-64B-split-{row['poll']}"
        assert 0 <= row["kept"] <= 1
        assert row["lost"] == 0
        if not row["kept"]:  # the machine was never ours
            assert "p50_ns" not in row
            continue
        assert 0 < row["p50_ns"] <= row["p99_ns"] <= row["p999_ns"] <= row["max_ns"]
        best, worst = row["p50_ns_spread"]
        assert best <= row["p50_ns"] <= worst
        assert 0 < row["sent"] <= 1


def test_features() -> None:
    """Beside VM1 without each; the run itself sees to it that VM1 and its device agreed so."""
    with pmd("bench", "--feature", "packed,guest_csum", "--seconds", "0.5", "--json") as process:
        found = rows_of(process)
    kinds = [(row["feature"], row["mode"], row["ring"], row["peer"]) for row in found]
    assert list(dict.fromkeys(kinds)) == [
        ("packed", "null", "packed", "pmd without packed"),
        ("packed", "gen", "packed", "pmd without packed"),
        ("guest_csum", "loop", "split", "pmd without guest_csum"),
    ]
    for row in found:
        assert row["case"].endswith(f"-{row['feature']}")
        assert row["ours_mpps"] > 0
        assert row["peer_mpps"] > 0
        assert row["peer_cycles_per_packet"] is None or row["peer_cycles_per_packet"] > 0


@pytest.mark.parametrize("without", [False, True])
def test_a_feature_that_was_not_agreed_on(without: bool) -> None:
    """0x20000000: VIRTIO_F_EVENT_IDX."""
    results = [{"features": hex(1 << 29)}, {"features": hex(0 if not without else 1 << 29)}]
    with pytest.raises(VhostPciError, match=r"event_idx: VM1 and its device (did not )?agree"):
        require_agreed(Feature.EVENT_IDX, results, without=without)
    require_agreed(Feature.EVENT_IDX, [{"features": hex(0)}], without=True)


@pytest.mark.system
def test_beside_testpmd() -> None:
    case = ("--mode", "null,loop,gen", "--size", "64", "--seconds", "1")
    with pmd("bench", *case, "--peer", "testpmd", "--json") as process:
        found = rows_of(process)
    assert {row["mode"] for row in found} == {"null", "loop", "gen"}
    for row in found:
        assert row["peer"].startswith("testpmd ")
        assert row["peer_mpps"] > 0
        assert row["peer_cycles_per_packet"] is None or row["peer_cycles_per_packet"] > 0
        if row["refusal"] is None:
            assert row["placement"] == row["peer_placement"]
            assert row["ratio"] == pytest.approx(row["ours_mpps"] / row["peer_mpps"], rel=0.01)
        else:
            assert row["ratio"] is None
