"""The pcap port: replays files of scapy and of this test; scapy and tcpdump read what it writes."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from scapy.utils import RawPcapReader, RawPcapWriter

from driver.software_vf import PortSpec, parse_vf
from guest.errors import VhostPciError
from pmd.kernel_abi import FRAME_MAX
from tests.kernel.namespace import frame
from tests.kernel.port_user import PortUser, VfUser, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MICROSECONDS = 0xA1B2C3D4
NANOSECONDS = 0xA1B23C4D
FILE_HEADER = "IHHiIII"
RECORD = "IIII"


def pcap(
    frames: Sequence[bytes], order: str = "<", magic: int = MICROSECONDS, link: int = 1
) -> bytes:
    """A pcap file by its description (draft-ietf-opsawg-pcap)."""
    content = struct.pack(order + FILE_HEADER, magic, 2, 4, 0, 0, 262144, link)
    for each in frames:
        content += struct.pack(order + RECORD, 1, 2, len(each), len(each)) + each
    return content


def replay(path: Path) -> tuple[list[bytes], int]:
    """All frames of a file, and how many were missed."""
    with VfUser(parse_vf(f"pcap:{path},")) as vf:
        frames: list[bytes] = []
        idle = 0
        while idle < 3:
            taken = vf[0].take(50)
            frames += taken
            idle = 0 if taken else idle + 1
        return frames, vf[0].missed


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [MICROSECONDS, NANOSECONDS])
def test_replay_reads_both_orders_and_resolutions(tmp_path: Path, order: str, magic: int) -> None:
    frames = [frame(i, 60 + i) for i in range(500)]
    (tmp_path / "in").write_bytes(pcap(frames, order, magic))
    assert replay(tmp_path / "in") == (frames, 0)


def test_replay_of_a_file_larger_than_its_buffer(tmp_path: Path) -> None:
    frames = [frame(i, FRAME_MAX if i % 10 == 0 else 60 + i) for i in range(600)]
    writer = RawPcapWriter(str(tmp_path / "in"), linktype=1)
    for each in frames:
        writer.write(each)
    writer.close()
    assert (tmp_path / "in").stat().st_size > 3 << 20
    assert replay(tmp_path / "in") == (frames, 0)


def test_replay_passes_over_runts_and_oversize(tmp_path: Path) -> None:
    frames = [b"x" * 13, frame(1), b"y" * (FRAME_MAX + 1), b"", frame(2), b"z" * 262144]
    frames += [b"w" * 200_000] * 20 + [frame(3)]
    (tmp_path / "in").write_bytes(pcap(frames))
    assert replay(tmp_path / "in") == ([frame(1), frame(2), frame(3)], 24)


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 75])
def test_replay_stops_at_a_record_the_file_ends_in(tmp_path: Path, cut: int) -> None:
    whole = pcap([frame(0, 60), frame(1, 60)])
    (tmp_path / "in").write_bytes(whole[:-cut])
    assert replay(tmp_path / "in") == ([frame(0, 60)], 1)


def test_replay_stops_at_a_length_that_cannot_be(tmp_path: Path) -> None:
    broken = struct.pack("<" + RECORD, 1, 2, 262145, 262145)
    (tmp_path / "in").write_bytes(pcap([frame(0)]) + broken + bytes(1 << 19))
    assert replay(tmp_path / "in") == ([frame(0)], 1)


def test_replay_of_no_frames(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(pcap([]))
    assert replay(tmp_path / "in") == ([], 0)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is too short for a pcap file"),
        (pcap([])[:23], "is too short for a pcap file"),
        (b"\x0a\x0d\x0d\x0a" + bytes(60), "is pcapng, only pcap can be read"),
        (b"GIF89a" + bytes(60), "is not a pcap file"),
        (pcap([], link=101), "does not hold Ethernet frames"),
        (pcap([], ">", link=113), "does not hold Ethernet frames"),
        (struct.pack("<" + FILE_HEADER, MICROSECONDS, 3, 0, 0, 0, 0, 1), "is not of pcap version"),
    ],
)
def test_what_is_no_pcap_file_is_refused(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(VhostPciError, match=f"{tmp_path}/in: {cause}"):
        PortUser(PortSpec("pcap", input=str(tmp_path / "in")))


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    with pytest.raises(VhostPciError, match="is not a regular file"):
        PortUser(PortSpec("pcap", input=str(tmp_path / "in")))


def test_unreachable_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VhostPciError, match="in: No such file"):
        PortUser(PortSpec("pcap", input=str(tmp_path / "in")))
    with pytest.raises(VhostPciError, match="none/out: No such file"):
        PortUser(PortSpec("pcap", output=str(tmp_path / "none" / "out")))


def test_capture_is_what_vm1_sent(tmp_path: Path) -> None:
    frames = [frame(i, 60 + 111 * i) for i in range(500)]
    begin = time.time()
    with VfUser(parse_vf(f"pcap:,{tmp_path}/out")) as vf:
        for start in range(0, 500, 20):
            batch: list[bytes | list[bytes]] = [
                [each[:1], each[1:50], each[50:]] for each in frames[start : start + 20]
            ]
            assert vf[0].tx(batch) == ["sent"] * 20
        assert vf[0].tx([b"x" * (FRAME_MAX + 1)]) == ["oversize"]
        assert vf[0].rx() == []
    with RawPcapReader(str(tmp_path / "out")) as reader:
        assert (reader.linktype, reader.nano) == (1, True)
        records = list(reader)
    assert [data for data, _ in records] == frames
    for _, fields in records:
        assert int(begin) <= fields.sec <= time.time()
        assert fields.usec < 1_000_000_000
    listing = subprocess.run(
        ["tcpdump", "-r", str(tmp_path / "out"), "-nn", "-q"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert len([line for line in listing.stdout.splitlines() if "0x88b5" in line]) == 500


def test_capture_reaches_the_file_while_it_runs(tmp_path: Path) -> None:
    with VfUser(parse_vf(f"pcap:,{tmp_path}/out")) as vf:
        assert vf[0].tx([frame(1)]) == ["sent"]

        def flushed() -> bool:
            assert vf[0].rx() == []
            return (tmp_path / "out").stat().st_size == 24 + 16 + 64

        until(flushed, "the frame to be written")


def test_one_file_is_replayed_and_another_written(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(pcap([frame(0)]))
    (tmp_path / "out").write_bytes(b"what was there before")
    with VfUser(parse_vf(f"pcap:{tmp_path}/in,{tmp_path}/out")) as vf:
        assert vf[0].take() == [frame(0)]
        for i in range(1000):
            assert vf[0].tx([frame(i, 1500)]) == ["sent"]
    with RawPcapReader(str(tmp_path / "out")) as reader:
        written = [data for data, _ in reader]
    assert written == [frame(i, 1500) for i in range(1000)]


def test_ports_opened_again_go_on_writing(tmp_path: Path) -> None:
    vf = parse_vf(f"pcap:,{tmp_path}/out")
    for i in range(2):
        with PortUser(vf.open(1)[0]) as port:
            assert port.tx([frame(i)]) == ["sent"]
    vf.close()
    with RawPcapReader(str(tmp_path / "out")) as reader:
        assert [data for data, _ in reader] == [frame(0), frame(1)]


def test_a_full_disk_drops_and_leaves_whole_records(tmp_path: Path) -> None:
    """A limit on file size stands for the disk's: write() then stops short, and later fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    dropped = 0
    with VfUser(parse_vf(f"pcap:,{tmp_path}/out")) as vf:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            sent = 0
            while dropped == 0:
                verdicts = vf[0].tx([frame(sent + i, 1000) for i in range(32)])
                assert set(verdicts) <= {"sent", "vf_error"}
                sent += verdicts.count("sent")
                dropped += verdicts.count("vf_error")
            assert vf[0].tx([frame(0, 1000)]) in (["sent"], ["vf_error"])
            assert (tmp_path / "out").stat().st_size == 1_000_000
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert vf[0].tx([frame(sent, 1000)]) == ["sent"]
    with RawPcapReader(str(tmp_path / "out")) as reader:
        written = [data for data, _ in reader]
    assert written[:sent] == [frame(i, 1000) for i in range(sent)]
    assert sent > 1000
