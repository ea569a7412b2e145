"""The ports that need no device: null, loop, gen; and what rk_port_open refuses."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from driver.software_vf import FRAME_BYTES_MAX, PortSpec, parse_vf
from guest.errors import VhostPciError
from pmd.kernel_abi import BURST_MAX, FRAME_MAX
from tests.kernel.port_user import PortUser, VfUser


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(VhostPciError, match="there is no kind of port named teapot"):
        PortUser(PortSpec("teapot"))


def test_null_takes_all_and_has_none() -> None:
    with VfUser(parse_vf("null"), 2) as vf:
        assert vf[1].tx([b"a" * 60] * BURST_MAX) == ["sent"] * BURST_MAX
        assert vf[1].rx() == []
        assert vf[1].missed == 0


def test_copy_takes_all_it_can_hold_and_has_none() -> None:
    longest: list[bytes | list[bytes]] = [
        b"l" * FRAME_MAX,
        [b"a" * 60, b"b" * 9000],
        b"x" * (FRAME_MAX + 1),
    ]
    with VfUser(parse_vf("copy")) as vf:
        assert vf[0].tx(longest) == ["sent", "sent", "oversize"]
        assert vf[0].tx([b"a" * 60] * BURST_MAX) == ["sent"] * BURST_MAX
        assert vf[0].rx() == []


def test_queue_pairs_of_loop_are_apart() -> None:
    with VfUser(parse_vf("loop"), 2) as vf:
        assert vf[0].tx([b"0" * 60]) == ["sent"]
        assert vf[1].tx([b"1" * 60]) == ["sent"]
        assert vf[0].take() == [b"0" * 60]
        assert vf[1].take() == [b"1" * 60]


def test_loop_takes_the_longest_frame_when_empty_wherever_it_stands() -> None:
    longest = bytes(range(256)) * 257
    longest = longest[:FRAME_MAX]
    with VfUser(parse_vf("loop")) as vf:
        for _ in range(40):
            assert vf[0].tx([b"x" * 61, longest]) == ["sent", "sent"]
            assert vf[0].take() == [b"x" * 61, longest]


def test_loop_refuses_what_is_longer_than_any_frame_and_goes_on() -> None:
    with VfUser(parse_vf("loop")) as vf:
        verdicts = vf[0].tx([b"a" * 60, b"b" * (FRAME_MAX + 1), b"c" * 60])
        assert verdicts == ["sent", "oversize", "sent"]
        assert vf[0].take() == [b"a" * 60, b"c" * 60]


def test_full_loop_consumes_nothing_and_loses_nothing() -> None:
    with VfUser(parse_vf("loop")) as vf:
        taken = 0
        while vf[0].tx([taken.to_bytes(4, "big") * 5000]):
            taken += 1
        assert taken >= 1_000_000 // 20_000
        assert vf[0].tx([b"more" * 5000]) == []
        assert vf[0].take(1) == [bytes(20_000)]
        frames = vf[0].take()
        assert frames == [i.to_bytes(4, "big") * 5000 for i in range(1, taken)]
        assert vf[0].rx() == []


@pytest.mark.parametrize("size", [2**15 - 8, 2**15, 2**15 - 16, 2**16 - 8, 2**13 - 8])
@pytest.mark.parametrize("take", [1, 2, 3])
def test_loop_kept_full_loses_nothing_at_its_ends(size: int, take: int) -> None:
    """Sizes near 2**k - 8: with its length of 8 bytes such a frame just fits what is left."""
    sent = received = 0
    with VfUser(parse_vf("loop")) as vf:
        for _ in range(150 // take):
            while vf[0].tx([sent.to_bytes(4, "big") * (size // 4)]):
                sent += 1
            for frame in vf[0].take(take):
                assert frame == received.to_bytes(4, "big") * (size // 4)
                received += 1
        assert sent - received >= 2**20 // (size + 8) - 2 - take
        while frames := vf[0].take():
            assert (
                frames
                == [i.to_bytes(4, "big") * (size // 4) for i in range(received, sent)][
                    : len(frames)
                ]
            )
            received += len(frames)
    assert received == sent


sizes = st.one_of(
    st.integers(14, 300), st.sampled_from([15, 16, 17, 255, 256, 257]), st.integers(1000, FRAME_MAX)
)
frame_shapes = st.tuples(sizes, st.lists(st.integers(1, FRAME_MAX), max_size=5))
# One step: frames to send (size and where to cut it), how many to look at, how many to take off.
steps = st.tuples(st.lists(frame_shapes, max_size=12), st.integers(1, 40), st.integers(0, 40))


def _segmented(content: bytes, cuts: list[int]) -> list[bytes]:
    ends = [*sorted({cut for cut in cuts if cut < len(content)}), len(content)]
    return [
        content[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True) if end > start
    ]


@settings(max_examples=80, deadline=None)
@given(st.lists(steps, max_size=25))
def test_loop_is_a_queue_of_frames(
    script: list[tuple[list[tuple[int, list[int]]], int, int]],
) -> None:
    model: deque[bytes] = deque()
    number = 0
    with PortUser(PortSpec("loop")) as port:
        for shapes, look, take in script:
            frames = []
            for size, cuts in shapes:
                number += 1
                content = (number.to_bytes(4, "big") + bytes(range(251))) * (size // 255 + 1)
                frames.append(_segmented(content[:size], cuts))
            verdicts = port.tx(frames)
            assert set(verdicts) <= {"sent"}
            assert verdicts or model or not frames
            model.extend(b"".join(frame) for frame in frames[: len(verdicts)])
            shown = port.rx(look)
            assert shown == list(model)[:look]
            for _ in shown[:take]:
                model.popleft()
            port.done(len(shown[:take]))
        rest = []
        while shown := port.take():
            rest += shown
        assert rest == list(model)


@pytest.mark.parametrize("frame_bytes", [60, 64, 1514, FRAME_BYTES_MAX])
def test_gen_makes_numbered_datagrams(frame_bytes: int) -> None:
    with VfUser(parse_vf(f"gen:{frame_bytes}")) as vf:
        frames: list[bytes] = []
        while len(frames) < 300:
            shown = vf[0].rx(32)
            assert vf[0].rx(32) == shown
            vf[0].done(len(shown) // 2 + 1)
            frames += shown[: len(shown) // 2 + 1]
    assert {len(frame) for frame in frames} == {frame_bytes}
    for number, frame in enumerate(frames):
        assert frame[42:50] == number.to_bytes(8, "big")
        assert frame[50:] == bytes(frame_bytes - 50)
    packet = Ether(frames[5])
    assert (packet.src, packet.dst) == ("02:00:00:00:00:01", "02:00:00:00:00:02")
    assert (packet[IP].src, packet[IP].dst) == ("198.18.0.1", "198.19.0.1")
    assert packet[UDP].dport == 9
    assert packet[IP].len == min(frame_bytes - 14, 0xFFFF)
    assert packet[UDP].len == packet[IP].len - 20
    found = packet[IP].chksum
    del packet[IP].chksum
    assert Ether(bytes(packet))[IP].chksum == found


def test_gen_counts_what_vm1_sends_as_sent() -> None:
    with VfUser(parse_vf("gen")) as vf:
        assert vf[0].tx([b"a" * 60] * 3) == ["sent"] * 3
        assert len(vf[0].rx(1)[0]) == 60


@pytest.mark.parametrize("frame_bytes", [0, 59, FRAME_MAX + 1])
def test_gen_refuses_impossible_sizes(frame_bytes: int) -> None:
    with pytest.raises(VhostPciError, match=f"frames have 60 to {FRAME_MAX} bytes"):
        PortUser(PortSpec("gen", frame_bytes=frame_bytes))
