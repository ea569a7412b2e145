"""Rings of every size, full, and past each wrap: kernel and oracle (virtio 1.3, 2.7, 2.8.10.1)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.kernel.packed_driver import WRAP
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import BIG, BIG_SIZE, NEXT, WRITE, Rig, receive, transmit

if TYPE_CHECKING:
    import numpy.typing as npt

HEADER, PAYLOAD = 12, 20
BYTES = HEADER + PAYLOAD
SPLIT = [2, 1024, 32768]
PACKED = [1, 7, 1000, 32768]
SEVERAL = 3  # frames more than a ring has room for
_DESC = np.dtype([("address", "<u8"), ("length", "<u4"), ("flags", "<u2"), ("next", "<u2")])


def _addresses(size: int) -> npt.NDArray[np.int64]:
    """Where buffers lie: the first ones apart, later ones over each other."""
    return BIG + np.arange(size) * 37 % (BIG_SIZE - BYTES)


def _fill_split(rig: Rig, flags: int) -> list[int]:
    """One-buffer chains of all descriptors, in no order, past the index's wrap; their heads."""
    size = rig.layout.size
    descs = np.zeros(size, _DESC)
    descs["address"], descs["length"], descs["flags"] = _addresses(size), BYTES, flags
    rig.poke(rig.layout.desc, descs.tobytes())
    start = 65536 - size // 2 - 1
    rig.set_index(start)
    heads = np.random.default_rng(size).permutation(size).astype("<u2")
    slots = np.empty_like(heads)
    slots[(start + np.arange(size)) % size] = heads
    rig.poke(rig.layout.avail + 4, slots.tobytes())
    rig.index = start + size
    rig.make_available()
    return [int(head) for head in heads]


def _fill_packed(rig: PackedRig, flags: int) -> None:
    for number, address in enumerate(_addresses(rig.layout.size)):
        rig.driver.put(int(address), BYTES, number, flags, first=True)
        rig.driver.posted.append((number, 1))
    rig.driver.show()


def _packed(size: int) -> PackedRig:
    """It begins in the middle, so that the wrap counter changes within a lap."""
    return PackedRig(size, size // 2 | WRAP, mergeable=True)


def _frames(count: int) -> list[bytes]:
    return [struct.pack(f"<{PAYLOAD - 4}xI", number) for number in range(count)]


@pytest.mark.parametrize("size", SPLIT)
def test_s07_a_full_split_ring_is_transmitted(size: int) -> None:
    with Rig(size, event_idx=True) as rig:
        heads = _fill_split(rig, 0)
        addresses = _addresses(size)[heads] + HEADER
        expected = [rig.peek(int(address), PAYLOAD) for address in addresses]
        outcome = transmit(rig)
        assert (outcome.frames, outcome.drops, outcome.fault) == (expected, {}, "none")
        assert rig.used(size) == [(head, 0) for head in heads]


@pytest.mark.parametrize("size", SPLIT)
def test_s07_a_full_split_ring_receives(size: int) -> None:
    frames = _frames(size + SEVERAL)
    with Rig(size, mergeable=True) as rig:
        heads = _fill_split(rig, WRITE)
        outcome = receive(rig, frames)
        assert (outcome.frames, outcome.packets, outcome.drops) == (frames[size:], size, {})
        assert rig.used(size) == [(head, BYTES) for head in heads]


@pytest.mark.parametrize("size", PACKED)
def test_p06_a_full_packed_ring_is_transmitted(size: int) -> None:
    with _packed(size) as rig:
        _fill_packed(rig, 0)
        expected = [rig.peek(int(at) + HEADER, PAYLOAD) for at in _addresses(size)]
        outcome = transmit(rig)
        assert (outcome.frames, outcome.drops, outcome.fault) == (expected, {}, "none")
        assert [each.id for each in rig.driver.reap()] == list(range(size))


@pytest.mark.parametrize("size", PACKED)
def test_p06_a_full_packed_ring_receives(size: int) -> None:
    frames = _frames(size + SEVERAL)
    with _packed(size) as rig:
        _fill_packed(rig, WRITE)
        outcome = receive(rig, frames)
        assert (outcome.frames, outcome.packets, outcome.drops) == (frames[size:], size, {})
        back = [(each.id, each.length) for each in rig.driver.reap()]
        assert back == [(number, BYTES) for number in range(size)]


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_chain_of_all_32768_descriptors(packed: bool, write: bool) -> None:
    """S02, P03: the longest there is; a frame of as many two-byte pieces goes through."""
    size, flags = 32768, WRITE if write else 0
    buffers = [(BIG + 2 * number, 2) for number in range(size)]
    frame = bytes(number * 7 % 251 for number in range(2 * size - HEADER))
    rig = _packed(size) if packed else Rig(size)
    with rig:
        rig.chain(0, buffers, flags)
        if write:
            assert receive(rig, [frame]).packets == 1
            assert rig.peek(BIG + HEADER, len(frame)) == frame
        else:
            assert transmit(rig).frames == [rig.peek(BIG + HEADER, len(frame))]


@pytest.mark.parametrize("size", [2, 8, 32768])
def test_s01_a_loop_of_all_descriptors(size: int) -> None:
    with Rig(size) as rig:
        descs = np.zeros(size, _DESC)
        descs["address"], descs["flags"] = BIG, NEXT
        descs["next"] = (np.arange(size) + 1) % size
        rig.poke(rig.layout.desc, descs.tobytes())
        rig.make_available(0)
        assert transmit(rig).drops == {"chain_loop": 1}
