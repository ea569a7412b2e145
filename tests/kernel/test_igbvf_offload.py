"""What VM1 leaves to its device, left to an igbvf: on the wire is what software would have made.

The oracle is `driver.offload`; scapy has the last word. The VF's model refuses what no 82576 takes.
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import given

from driver.igbvf.device import FRAME_BYTES_MAX
from driver.igbvf.queue import TX_COUNT
from driver.igbvf.vf import IgbVf
from driver.memory_map import BusAddress
from driver.offload import PLAIN, Gso, Offload, OffloadError, OffloadFlag
from driver.passthrough import OpenFunction
from guest.closing import Closing
from pmd.kernel import DirectionStats, Port, Work, drop_names
from pmd.steering import Steering
from tests.driver.igb_model import IgbModel
from tests.kernel.direct_rig import Window
from tests.kernel.offload_frames import asking, check, packet, unnumbered
from tests.kernel.port_user import PortUser
from tests.kernel.rig import BIG, DATA, DATA_SEAM, MORE, READ_ONLY, Rig
from tests.kernel.test_offload import ALL, FRAMES, NONE, SETTINGS, done

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from guest.mapping import Mapping
    from pmd.handle import Handle
    from tests.kernel.offload_port import Told

HEADER = 12
EVERY_FRAME = 0xFFFFFFFF
ROUNDS, FRAMES_AT_ONCE = 40, 60
PAYLOAD = bytes(i * 7 & 0xFF for i in range(40_000))


class Sender(Closing):
    """VM1's transmit ring, and a VF that reaches VM1's memory, or not (shared).

    lanes: queue pairs that share the VF's, of which this is the last; 0: it has the VF to itself.
    count: descriptors of the transmit ring that the port is told of.
    """

    def __init__(self, *, shared: bool = True, lanes: int = 0, count: int = TX_COUNT) -> None:
        self.model = IgbModel()
        self.vf = IgbVf("igbvf:01:10.0", self.model.name, None, lambda _: self._function())
        (spec,) = self.vf.open(1)
        assert spec.igbvf is not None
        spec = spec._replace(igbvf=replace(spec.igbvf, tx=replace(spec.igbvf.tx, count=count)))
        with ExitStack() as stack:
            stack.callback(self.vf.close)
            self.port = stack.enter_context(Port(spec))
            self.rig = stack.enter_context(Rig(256, offloads=ALL))
            if shared:
                windows = [
                    Window(data.ctypes.data, len(data)) for data in self.rig.windows.values()
                ]
                self.vf.share([cast("Mapping", window) for window in windows])
            self.stats = DirectionStats()
            port: Handle = self.port
            if lanes:
                port = stack.enter_context(Steering(self.port, [None] * lanes)).ports[-1]
            self.work = Work(self.rig.queue(self.stats), None, port)
            self._stack = stack.pop_all()
        self._head = 0

    def _function(self) -> OpenFunction:
        return OpenFunction(self.model, ())

    def post(self, told: Told, at: int = BIG, cuts: Sequence[int] = ()) -> int:
        """VM1 has a frame to send, in the buffers that cuts make; where the next may lie."""
        frame, offload = told
        data = offload.pack() + bytes(2) + frame
        self.rig.poke(at, data)
        ends = sorted({cut for cut in cuts if 0 < cut < len(data)} | {len(data)})
        begins = [0, *ends[:-1]]
        self.rig.chain(self._head, [(at + a, b - a) for a, b in zip(begins, ends, strict=True)])
        self._head = (self._head + len(ends)) % 256
        return at + len(data)

    def turn(self, burst: int = 256) -> None:
        self.work.turn(burst)

    def finish(self, burst: int = 256) -> list[bytes]:
        """Everything on the wire, once VM1 has all its buffers back."""
        for _ in range(2000):
            self.turn(burst)
            self.model.run()
            if self.rig.used_index() == self.rig.index:
                return self.model.wire
        raise AssertionError("VM1 does not have its buffers back")

    @property
    def drops(self) -> dict[str, int]:
        named = zip(drop_names(), self.stats.drops, strict=False)
        return {name: count for name, count in named if count}

    def close(self) -> None:
        self._stack.close()
        self.model.dispose()
        assert self.model.faults == []


@pytest.fixture
def sender() -> Iterator[Sender]:
    with Sender() as made:
        yield made


def software(*frames: Told) -> list[bytes]:
    """What becomes of them where nobody else does it."""
    return [frame for told in frames for frame, _ in done(told, ALL, NONE)]


def padded(frames: Sequence[bytes]) -> list[bytes]:
    """Some are padded by the VF, which the model does not do."""
    return [frame.ljust(60, b"\0") for frame in frames]


TAKEN = [
    asking(packet(PAYLOAD[:size], udp=udp, ipv6=ipv6, tags=tags, options=options), segment_bytes)
    for ipv6 in (False, True)
    for tags in (0, 1)
    for size, udp, options, segment_bytes in (
        (0, False, 0, 0),
        (1, False, 0, 0),
        (1400, False, 0, 0),
        (1400, True, 0, 0),
        (8000, True, 0, 0),
        (1449, False, 0, 1448),
        (20000, False, 0, 1448),
        (9000, False, 0, 256),
        (30000, False, 0, 9000),
    )
] + [asking(packet(PAYLOAD[:5000], options=2), segment_bytes) for segment_bytes in (0, 1448)]


@pytest.mark.parametrize("how", ["held", "copied", "unreachable"])
def test_the_vf_does_it(how: str) -> None:
    """Of what it reads in VM1's memory nothing but headers were copied, and nothing is written."""
    with Sender(shared=how != "unreachable") as sender:
        sender.port.set_copy_below(EVERY_FRAME if how == "copied" else 0)
        for number, told in enumerate(TAKEN, 1):
            sender.model.wire.clear()
            sender.post(told)
            found = sender.finish()
            assert found == software(told)
            for frame in found:
                check(frame)
            assert sender.rig.peek(BIG + HEADER, len(told[0])) == told[0]
            assert (sender.model.transmit.asked, sender.drops) == (number, {})
            assert sender.port.tx_held == (number if how == "held" else 0)


@pytest.mark.parametrize("segment_bytes", [0, 1448])
def test_headers_are_ours_and_the_payload_is_vm1s(sender: Sender, segment_bytes: int) -> None:
    """What VM1 writes after it was judged: to the headers nothing, to the payload what it sends."""
    frame, offload = asking(packet(b"a" * 6000), segment_bytes)
    sender.post((frame, offload))
    sender.turn()
    assert sender.rig.used_index() == 0
    sender.rig.poke(BIG, b"\xff" * (HEADER + 54) + b"b" * 6000)
    expected = software((frame[:54] + b"b" * 6000, offload))
    assert sender.finish() == expected
    for each in expected:
        check(each)


NOT_TAKEN = {
    "two tags": asking(packet(PAYLOAD[:3000], tags=2), 1448),
    "extension headers": asking(packet(PAYLOAD[:3000], ipv6=True, options=1), 0),
    "extension headers, cut": asking(packet(PAYLOAD[:3000], ipv6=True, options=1), 1448),
    "ECN": asking(packet(PAYLOAD[:3000]), 1448, ecn=True),
    "datagrams": asking(packet(PAYLOAD[:3000], udp=True), 1448),
    "one segment": asking(packet(PAYLOAD[:1448]), 1448),
    "short segments": asking(packet(PAYLOAD[:3000]), 255),
    "long segments": asking(packet(PAYLOAD[:9300]), 9181),
    "no checksum asked for": (
        TAKEN[6][0],
        replace(TAKEN[6][1], flags=0, checksum_start=0, checksum_offset=0),
    ),
    "another field": (TAKEN[2][0], replace(TAKEN[2][1], checksum_offset=14)),
    "another start": (TAKEN[2][0], replace(TAKEN[2][1], checksum_start=38)),
    "no IP": (
        b"\x02" * 12 + b"\x88\xb5" + bytes(86),
        Offload(OffloadFlag.NEEDS_CSUM, 0, 0, 0, 34, 16),
    ),
}


def test_what_no_context_expresses_is_done_in_software(sender: Sender) -> None:
    for name, told in NOT_TAKEN.items():
        sender.model.wire.clear()
        sender.post(told)
        expected = [frame for frame in software(told) if len(frame) <= FRAME_BYTES_MAX]
        assert sender.finish() == expected, name
        assert (sender.model.transmit.asked, sender.port.tx_held) == (0, 0), name
    assert sender.drops == {"oversize": 1}


def test_a_ring_too_short_for_the_longest_frame() -> None:
    """It would wait for ever: the software has it instead."""
    with Sender(count=32) as sender:
        for told in (TAKEN[6], TAKEN[2]):
            sender.model.wire.clear()
            sender.post(told)
            assert sender.finish() == software(told)
        assert sender.model.transmit.asked == 0


@pytest.mark.parametrize("lanes", [0, 2])
def test_what_the_vf_takes_and_what_not_keeps_its_order(lanes: int) -> None:
    frames = [(packet(bytes([i]) * 200).build(), PLAIN) for i in range(3)]
    frames[1:1] = [TAKEN[6], NOT_TAKEN["ECN"], TAKEN[2], NOT_TAKEN["datagrams"], TAKEN[3]]
    with Sender(lanes=lanes) as sender:
        at = BIG
        for told in frames:
            at = sender.post(told, at)
        assert sender.finish(burst=3) == software(*frames)
        assert sender.model.transmit.asked == 3


@SETTINGS
@given(frames=FRAMES)
def test_any_frame_leaves_as_software_would_have_it(
    frames: list[tuple[Told, tuple[int, ...]]],
) -> None:
    with Sender() as sender:
        expected: list[bytes] = []
        bad = 0
        at = BIG
        for (frame, offload), cuts in frames:
            at = sender.post((frame, offload), at, cuts)
            flags = offload.flags & OffloadFlag.NEEDS_CSUM
            try:
                expected += software((frame, replace(offload, flags=flags)))
            except OffloadError:
                bad += 1
        found = [unnumbered(frame) for frame in sender.finish()]
        assert padded(found) == padded(expected)
        assert sender.drops == ({"bad_offload": bad} if bad else {})


@pytest.mark.parametrize("seam", [DATA_SEAM, READ_ONLY])
def test_frames_across_the_ends_of_regions(sender: Sender, seam: int) -> None:
    """Bus addresses go on where the window does not: with the seam in headers and payload."""
    befores = [1, HEADER, HEADER + 1, HEADER + 53, HEADER + 54, HEADER + 55, 2000]
    for before in befores:
        assert seam - before > (DATA if seam == DATA_SEAM else MORE)
        for told in (asking(packet(PAYLOAD[:3000]), size) for size in (0, 1448)):
            sender.model.wire.clear()
            sender.post(told, seam - before)
            assert sender.finish() == software(told)
    assert sender.port.tx_held == 2 * len(befores)


@pytest.mark.parametrize(
    ("pieces", "held"), [(24, 1), (25, 0), (64, 0), (65, 0), (200, 0)]
)  # of the payload; more than 64 are made one first
def test_chains(sender: Sender, pieces: int, held: int) -> None:
    told = asking(packet(PAYLOAD[:20000]), 1448)
    cuts = [HEADER, HEADER + 20, *(HEADER + 54 + 20000 * i // pieces for i in range(pieces))]
    sender.post(told, cuts=cuts)
    assert sender.finish() == software(told)
    assert (sender.port.tx_held, sender.model.transmit.asked) == (held, 1)


def test_the_longest_frame_in_one_buffer(sender: Sender) -> None:
    """No descriptor says more than 65535 bytes."""
    told = asking(packet(bytes(i % 251 for i in range(65535 - 40))), 1448)
    sender.post(told)
    assert sender.finish() == software(told)
    assert sender.port.tx_held == 1


def test_a_context_is_told_once(sender: Sender) -> None:
    """One of each kind is remembered; a VF that was opened anew has to be told again."""
    at = BIG
    for told in (TAKEN[6], TAKEN[2], TAKEN[6], TAKEN[2], TAKEN[1]):
        at = sender.post(told, at)
    sender.finish()
    assert sender.model.transmit.told == 2
    at = sender.post(TAKEN[3], at)  # UDP
    sender.post(TAKEN[2], at)
    sender.finish()
    assert sender.model.transmit.told == 4
    sender.vf.close()
    (spec,) = sender.vf.open(1)
    with PortUser(spec) as user:
        assert user.tx([TAKEN[2][0]], TAKEN[2][1]) == ["sent"]
        sender.model.run()
    assert sender.model.transmit.told == 1


def test_a_full_ring_waits_and_goes_on(sender: Sender) -> None:
    """24 frames of 24 pieces and more are more than it holds; a VF that stalls has only those."""
    told = asking(packet(PAYLOAD[:6000]), 1448)
    cuts = [HEADER + 54, *(HEADER + 54 + 250 * i for i in range(1, 24))]
    sender.model.completes = False
    for i in range(10):
        sender.post(told, BIG + 0x2000 * i, cuts)
    sender.turn()
    sender.model.run()
    assert len(sender.model.wire) == (TX_COUNT - 2) // 25 * len(software(told))
    sender.turn()
    assert sender.rig.used_index() == 0
    assert sender.port.tx_held == (TX_COUNT - 2) // 25


def test_a_frame_that_changed_since_it_was_asked_about_is_dropped() -> None:
    """tx() looks again, at its own copy."""
    model = IgbModel()
    vf = IgbVf("igbvf:01:10.0", model.name, None, lambda _: OpenFunction(model, ()))
    (spec,) = vf.open(1)
    with PortUser(spec) as user:
        frame, offload = TAKEN[6]
        for name in ("two tags", "short segments", "extension headers", "another start"):
            assert user.tx([NOT_TAKEN[name][0]], NOT_TAKEN[name][1]) == ["bad_offload"]
        assert user.tx([frame], replace(offload, gso_type=int(Gso.TCPV6))) == ["bad_offload"]
        assert user.tx([frame[:60]], offload) == ["bad_offload"]
        assert user.tx([packet(bytes(9300)).build()], TAKEN[2][1]) == ["oversize"]
        assert user.tx([frame], offload) == ["sent"]
    vf.close()
    assert (model.faults, model.wire) == ([], [])
    model.dispose()


def _rewrite(target: npt.NDArray[np.uint8], images: Sequence[npt.NDArray[np.uint8]]) -> None:
    """VM1, a process of its own: it ends with the one that started it, however that ends."""
    parent = os.getppid()
    while os.getppid() == parent:
        for image in images:
            target[:] = image


def test_vm1_writes_headers_all_the_time() -> None:
    """What context and VF are told is of one and the same header: the model sees any other."""
    kinds = [asking(packet(PAYLOAD[:2500], options=options), 1448) for options in (0, 2)]
    images = [np.frombuffer(frame[12:100], np.uint8) for frame, _ in kinds]
    size = HEADER + len(kinds[0][0])
    with Sender() as sender:
        sender.post(kinds[0])
        sender.finish()
        run = sender.rig.memory.translate(BusAddress(BIG + HEADER + 12), 88, write=True)
        target = sender.rig.windows[run.window][run.offset : run.offset + 88]
        vm1 = multiprocessing.get_context("fork").Process(target=_rewrite, args=(target, images))
        vm1.start()
        try:
            for _ in range(ROUNDS):
                for head in range(FRAMES_AT_ONCE):
                    sender.rig.chain(head, [(BIG, size)])
                sender.finish()
                sender.model.wire.clear()
        finally:
            vm1.kill()
            vm1.join()
            vm1.close()
        assert sender.stats.packets + sum(sender.stats.drops) == 1 + ROUNDS * FRAMES_AT_ONCE
        assert sender.port.tx_held > 1
