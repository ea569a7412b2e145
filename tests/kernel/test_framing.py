"""Where a frame lies in its buffers is VM1's choice, and what VM1 only lends stays as it was.

Sections of virtio 1.3; rows S.. and P.. are of tests/conformance.toml.
"""

from __future__ import annotations

import struct

import pytest

from pmd.kernel import DirectionStats, Work
from tests.kernel.packed_driver import WRAP, WRITE
from tests.kernel.packed_rig import HEADER, PackedRig
from tests.kernel.rig import AVAIL, BIG, DATA, DESC, USED, Rig, receive, transmit
from tests.kernel.single_step import changes, native_port

FRAME = bytes(range(60))
WHOLE = HEADER + len(FRAME)
LAYOUTS = pytest.mark.parametrize("layout", [Rig, PackedRig])


def _used(rig: Rig, count: int) -> list[tuple[int, int | None]]:
    if isinstance(rig, PackedRig):
        return [(each.id, each.length) for each in rig.driver.reap()]
    return list(rig.used(count))


def _posted(rig: Rig, cuts: range, flags: int) -> list[int]:
    """A chain of two buffers for each cut; their heads."""
    heads = [2 * number for number in range(len(cuts))]
    for head, cut in zip(heads, cuts, strict=True):
        at = BIG + 256 * head
        rig.chain(head, [(at, cut), (at + cut, WHOLE - cut)], flags)
    return heads


@LAYOUTS
def test_a_sent_frame_may_be_cut_at_every_byte(layout: type[Rig]) -> None:
    """2.7.4.1: header and frame meet in a buffer or not, wherever it ends."""
    cuts = range(1, WHOLE)
    with layout(256) as rig:
        for number in range(len(cuts)):
            rig.poke(BIG + 512 * number, bytes(HEADER) + FRAME)
        heads = _posted(rig, cuts, 0)
        outcome = transmit(rig)
        assert outcome.frames == [FRAME] * len(cuts)
        assert _used(rig, len(cuts)) == [(head, 0) for head in heads]


@LAYOUTS
def test_a_received_frame_may_be_cut_at_every_byte(layout: type[Rig]) -> None:
    cuts = range(1, WHOLE)
    with layout(256) as rig:
        heads = _posted(rig, cuts, WRITE)
        assert receive(rig, [FRAME] * len(cuts)).packets == len(cuts)
        for head in heads:
            assert rig.peek(BIG + 256 * head + HEADER, len(FRAME)) == FRAME
        assert _used(rig, len(cuts)) == [(head, WHOLE) for head in heads]


@pytest.mark.parametrize("flags", [0, WRITE])
def test_what_vm1_lends_stays_as_it_was(flags: int) -> None:
    """2.7.5.1: no descriptor is written, nor the available ring, nor a buffer that is only read."""
    with Rig(8, indirect=True, event_idx=True) as rig:
        rig.poke(BIG, bytes(HEADER) + FRAME)
        for head in (0, 2, 4):
            rig.chain(head, [(BIG, 30), (BIG + 30, WHOLE - 30)], flags)
        spans = [(DESC, 16 * 8), (AVAIL, 6 + 2 * 8)] + ([] if flags else [(BIG, WHOLE)])
        before = [rig.peek(*span) for span in spans]
        outcome = receive(rig, [FRAME] * 3) if flags else transmit(rig)
        assert outcome.packets == 3
        assert [rig.peek(*span) for span in spans] == before


def test_s36_heads_out_of_order_are_served_as_they_were_posted() -> None:
    """2.7.9 is VM1's promise; nothing here relies on it."""
    with Rig(8, in_order=True) as rig:
        for head in (5, 0, 7, 2):
            rig.poke(DATA + 128 * head, bytes(HEADER) + bytes([head]) * 60)
            rig.chain(head, [(DATA + 128 * head, WHOLE)])
        outcome = transmit(rig)
        assert outcome.frames == [bytes([head]) * 60 for head in (5, 0, 7, 2)]
        assert rig.used(4) == [(5, 0), (0, 0), (7, 0), (2, 0)]


def test_used_elements_and_buffers_are_there_before_the_index() -> None:
    """2.7.8.2, 5.1.6.4: after each instruction, what used.idx names is whole."""
    frames = [bytes([1]) * 20, bytes([2]) * 60, bytes([3]) * 28]
    with Rig(8, mergeable=True) as rig, native_port(frames) as port:
        for head in range(8):
            rig.chain(head, [(BIG + 64 * head, 40)], WRITE)
        work = Work(None, rig.queue(DirectionStats()), port)
        lengths = [32, 40, 32, 40]
        content = [
            struct.pack("<10xH", 1) + bytes([1]) * 20,
            struct.pack("<10xH", 2) + bytes([2]) * 28,
            bytes([2]) * 32,
            struct.pack("<10xH", 1) + bytes([3]) * 28,
        ]
        indices = []
        for _ in changes(lambda: work.turn(4), lambda: rig.peek(USED, 4 + 8 * 8)):
            indices.append(rig.used_index())
            assert rig.used(indices[-1]) == list(enumerate(lengths))[: indices[-1]]
            for head in range(indices[-1]):
                assert rig.peek(BIG + 64 * head, lengths[head]) == content[head]
        assert indices[-1] == len(lengths)
        assert set(indices) <= {0, 1, 3, 4}, "a frame must be seen whole"


def test_p08_a_used_descriptor_is_whole_when_it_is_seen() -> None:
    """2.8.15: id, length and buffer are final once the mark is there."""
    frames = [bytes([number]) * (20 + number) for number in range(3)]
    with PackedRig(4, WRAP) as rig, native_port(frames) as port:
        for number in range(3):
            rig.driver.post(50 + number, [(BIG + 128 * number, 100)], WRITE)
        rig.driver.show()
        work = Work(None, rig.queue(DirectionStats()), port)
        marked = 0
        for _ in changes(lambda: work.turn(32), lambda: rig.peek(DESC, 16 * 3)):
            for number in range(3):
                length, id_, flags = struct.unpack("<8xIHH", rig.peek(DESC + 16 * number, 16))
                if flags & 1 << 15:  # VM1 made them available with USED clear
                    marked += 1
                    assert (length, id_) == (HEADER + 20 + number, 50 + number)
                    frame = rig.peek(BIG + 128 * number + HEADER, 20 + number)
                    assert frame == frames[number]
        assert marked == 1 + 2 + 3, "one after the other, from the last to the first"
