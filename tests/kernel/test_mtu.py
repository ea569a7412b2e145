"""An MTU that VM1 was told holds for what it receives (virtio 1.3, 5.1.4.1)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest

from driver.offload import PLAIN, Gso
from driver.offloads import Offloads
from pmd.kernel import DirectionStats, Work, drop_names
from tests.kernel.offload_frames import asking, packet
from tests.kernel.offload_port import OffloadPort, Told
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import BIG, WRITE, Rig, receive, transmit

if TYPE_CHECKING:
    from collections.abc import Sequence

MTU = 1500
HEADER_BYTES = 14
CUSTOMER, SERVICE = b"\x81\x00\x00\x07", b"\x88\xa8\x00\x07"
ADDRESSES = bytes(range(12))
RIGS = {"split": Rig, "packed": PackedRig}
KINDS = [*product(RIGS, [True, False], [True, False])]


def frame(payload_bytes: int, *tags: bytes) -> bytes:
    return ADDRESSES + b"".join(tags) + b"\x08\x00" + bytes([payload_bytes % 251]) * payload_bytes


def post(rig: Rig, count: int, size: int) -> None:
    for index in range(count):
        rig.chain(index, [(BIG + size * index, size)], WRITE)


@pytest.mark.parametrize(("layout", "plain", "mergeable"), KINDS)
def test_n11_a_longer_frame_is_dropped_and_takes_no_buffer(
    layout: str, plain: bool, mergeable: bool
) -> None:
    """Tags are of the Ethernet header, and come on top: as many as two."""
    tags: list[tuple[bytes, ...]] = [(), (CUSTOMER,), (SERVICE,), (SERVICE, CUSTOMER)]
    good = [frame(MTU, *each) for each in tags] + [frame(60)]
    bad = [frame(MTU + 1, *each) for each in tags]
    bad += [frame(MTU - 3, SERVICE, CUSTOMER, CUSTOMER), frame(8000)]  # a third is payload
    mixed = [good[0], bad[0], bad[1], good[1], bad[2], good[2], good[3], *bad[3:], good[4]]
    with RIGS[layout](16, mergeable=mergeable, mtu=MTU) as rig:
        rig.plain = plain
        post(rig, 16, 800 if mergeable else 2048)
        outcome = receive(rig, mixed)
    assert outcome.drops == {"over_mtu": len(bad)}
    assert (outcome.packets, outcome.frames) == (len(good), [])


@pytest.mark.parametrize(("layout", "plain", "mergeable"), KINDS)
def test_without_an_mtu_any_length_goes(layout: str, plain: bool, mergeable: bool) -> None:
    with RIGS[layout](8, mergeable=mergeable) as rig:
        rig.plain = plain
        post(rig, 8, 9000)
        outcome = receive(rig, [frame(8000), frame(1501), frame(60)])
    assert (outcome.packets, outcome.drops) == (3, {})


def test_the_least_mtu() -> None:
    """68, by 5.1.4.1: a frame of two tags is judged by bytes that it has."""
    with Rig(8, mtu=68) as rig:
        post(rig, 8, 2048)
        outcome = receive(rig, [frame(68), frame(69), frame(69, CUSTOMER), frame(68, SERVICE)])
    assert (outcome.packets, outcome.drops) == (2, {"over_mtu": 2})


def received(
    told: Sequence[Told], offloads: Offloads, mtu: int = MTU
) -> tuple[list[int], dict[str, int]]:
    """The lengths that VM1 finds in its buffers, of frames with headers; and the drops."""
    with Rig(64, offloads=offloads, mtu=mtu) as rig, OffloadPort(Offloads(0x1F00)) as port:
        post(rig, *((8, 8192) if offloads else (64, 2048)))
        stats = DirectionStats()
        work = Work(None, rig.queue(stats), port)
        port.give(told)
        while port.given:
            work.turn(256)
        lengths = [length - 12 for _, length in rig.used(rig.used_index())]
    named = zip(drop_names(), stats.drops, strict=False)
    return lengths, {name: count for name, count in named if count}


def segments(segment_bytes: int, payload_bytes: int = 4000) -> Told:
    return asking(packet(bytes(payload_bytes)), segment_bytes)


def test_segments_that_vm1_takes_together_may_be_longer() -> None:
    told = segments(1448)
    lengths, drops = received([told], Offloads.CSUM | Offloads.TSO4)
    assert (lengths, drops) == ([len(told[0])], {})


def test_a_checksum_alone_does_not_make_a_long_frame_good() -> None:
    data, offload = segments(1448)
    long = (data, replace(offload, gso_type=Gso.NONE, segment_bytes=0))
    short = asking(packet(bytes(1000)), 0)
    lengths, drops = received([long, short, long], Offloads.CSUM | Offloads.TSO4)
    assert (lengths, drops) == ([len(short[0])], {"over_mtu": 2})


def test_what_is_cut_here_is_judged_by_its_parts() -> None:
    lengths, drops = received([segments(1448), (frame(60), PLAIN)], Offloads(0))
    assert drops == {}
    assert max(lengths) <= HEADER_BYTES + MTU
    assert len(lengths) == 4
    lengths, drops = received([segments(1900), (frame(60), PLAIN)], Offloads(0))
    # 4000 bytes: two parts of 1900, which are too long, and one of 200.
    assert (len(lengths), drops) == (2, {"over_mtu": 2})


@pytest.mark.parametrize("layout", RIGS)
def test_n06_what_vm1_sends_above_it_goes_out(layout: str) -> None:
    """The MTU is of what VM1 receives here; what is too long to send, the VF knows."""
    with RIGS[layout](8, mtu=MTU) as rig:
        rig.poke(BIG, bytes(12) + frame(MTU + 500))
        rig.chain(0, [(BIG, 12 + HEADER_BYTES + MTU + 500)])
        assert transmit(rig).frames == [frame(MTU + 500)]
