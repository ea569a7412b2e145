"""Every subset of the features that lay out a ring: frames go both ways (virtio 1.3, 2.2.2)."""

from __future__ import annotations

import itertools

import pytest

from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import DATA, WRITE, Rig, receive, transmit

FEATURES = ("indirect", "event_idx", "mergeable", "in_order")
FRAMES = [bytes(range(each, each + 100)) for each in range(3)]
SUBSETS = [
    dict(zip(FEATURES, chosen, strict=True))
    for chosen in itertools.product([False, True], repeat=len(FEATURES))
]


def _rig(packed: bool, features: dict[str, bool], flags: int) -> Rig:
    """Three chains of two buffers each; header_bytes are as without VERSION_1 where they can be."""
    header_bytes = 12 if packed or features["mergeable"] else 10
    make = PackedRig if packed else Rig
    rig = make(8, header_bytes=header_bytes, **features)
    for number in range(len(FRAMES)):
        where = DATA + 0x100 * number
        rig.chain(2 * number, [(where, header_bytes), (where + header_bytes, 100)], flags)
    return rig


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_frames_go_both_ways_whatever_is_accepted(packed: bool) -> None:
    for features in SUBSETS:
        with _rig(packed, features, 0) as rig:
            assert (transmit(rig).packets, features) == (len(FRAMES), features)
        with _rig(packed, features, WRITE) as rig:
            assert (receive(rig, FRAMES).packets, features) == (len(FRAMES), features)
