"""What is done to VM1's traffic by every kind of VF, and what is then on the wire to outside."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from tests.kernel.offload_frames import check
from tools.lab.picture import STEP_TIMEOUT_S, VM1_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.lab.agent import Job
    from tools.lab.picture import Picture

CAPTURED_BYTES = 300_000
_ETHERNET_BYTES = 14
_MSS_MAX = 1460  # of an MTU of 1500
_GOES_ON_FRAMES = 300


def vm1_counters(picture: Picture) -> tuple[int, int]:
    """Frames that VM1's driver had back from its transmitqs, and that it received."""
    script = "cd /sys/class/net/eth0/statistics; cat tx_packets rx_packets"
    sent, received = picture.vm1.agent.shell(script).split()
    return int(sent), int(received)


@contextlib.contextmanager
def _captured(picture: Picture, path: Path) -> Iterator[None]:
    """What outside receives and sends meanwhile, in a pcap file."""
    dump = {"qom-type": "filter-dump", "id": "dump", "netdev": "wire0", "maxlen": 1 << 16}
    picture.outside.qmp.execute("object-add", **dump, file=str(path))
    yield
    picture.outside.qmp.execute("object-del", id="dump")


def require_legal_segments(picture: Picture) -> None:
    """What VM1 leaves to its device by TCP is on the wire whole, as segments of an MTU of 1500 with
    checksums that scapy computes as well, more of them than VM1 had frames."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "wire.pcap"
        before, _ = vm1_counters(picture)
        with _captured(picture, path):
            picture.transfer(picture.vm1, picture.outside, CAPTURED_BYTES)
        after, _ = vm1_counters(picture)
        frames = rdpcap(str(path))
    require_segments([bytes(each) for each in frames], CAPTURED_BYTES, after - before)


def require_segments(frames: Sequence[bytes], size_bytes: int, fewer: int) -> None:
    """VM1 sent so many bytes by TCP in these: legal segments, more than there were frames of its.

    frames: What was on the wire meanwhile.
    fewer: VM1's frames.
    """
    parsed = [Ether(each) for each in frames]
    sent = [each for each in parsed if TCP in each and each[IP].src == VM1_ADDRESS]
    carried: set[int] = set()
    for each in sent:
        ip = check(bytes(each)[: _ETHERNET_BYTES + each[IP].len])[IP]  # without padding
        size = ip.len - 4 * (ip.ihl + ip[TCP].dataofs)
        assert size <= _MSS_MAX
        carried.update(range(ip[TCP].seq, ip[TCP].seq + size))
    assert len(carried) == size_bytes
    assert fewer < len(sent)  # on a busy machine TCP has two segments in a frame


def goes_on(stream: Job) -> None:
    """Return once so many more frames came back to VM1."""
    _wait_for_more(stream, "back")


def sends_on(stream: Job) -> None:
    """Return once VM1 had so many more frames sent, all of which may be lost."""
    _wait_for_more(stream, "sent")


def _wait_for_more(stream: Job, what: str) -> None:
    def count() -> int:
        return max((int(each) for each in re.findall(rf"{what} (\d+)", stream.text)), default=0)

    wanted = count() + _GOES_ON_FRAMES

    def ended_or_so_many() -> bool:
        return stream.status is not None or count() >= wanted

    otherwise = f"has no {_GOES_ON_FRAMES} frames {what}"
    stream.wait_until(ended_or_so_many, STEP_TIMEOUT_S, otherwise)
    assert stream.status is None, stream.text


@contextlib.contextmanager
def told(picture: Picture, words: str) -> Iterator[None]:
    """What is done in it makes `pmd` say that, once more."""
    pmd = picture.pmd
    before = pmd.text.count(words)
    yield
    pmd.wait_until(lambda: pmd.text.count(words) > before, STEP_TIMEOUT_S, f"does not say {words}")


@contextlib.contextmanager
def loaded(picture: Picture) -> Iterator[Job]:
    """VM1 sends frames of all sizes meanwhile, and outside sends them back."""
    reflection, stream = picture.reflect(), picture.stream()
    goes_on(stream)
    yield stream
    for job in (stream, reflection):
        job.signal()
        job.wait(STEP_TIMEOUT_S)


def require_each_once(
    picture: Picture, channel: dict[str, Any], former: Sequence[int] = (0, 0)
) -> None:
    """Each buffer that VM1 gave the channel came back to it, once: `pmd` has ended.

    former: What VM1 counted before it.
    """
    sent, received = (now - then for now, then in zip(vm1_counters(picture), former, strict=True))
    drops = channel["vm1_to_vf"]["drops"]
    assert sent == channel["vm1_to_vf"]["packets"] + sum(drops.values())
    assert received == channel["vf_to_vm1"]["packets"]
    assert "is not a head" not in picture.vm1.agent.shell("dmesg")
