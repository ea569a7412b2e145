"""What `vhost-pci-lab check` takes for proof that nothing was copied."""

from __future__ import annotations

from typing import Any

import pytest

from guest.errors import VhostPciError
from tools.lab.check import require_no_copies, require_said


def statistics(*, there: int, uncopied_there: int, back: int, uncopied_back: int) -> dict[str, Any]:
    """Of one channel, with what is looked at."""
    channel = {
        "vm1_to_vf": {"packets": there},
        "vf_to_vm1": {"packets": back},
        "tx_zero_copy": uncopied_there,
        "rx_zero_copy": uncopied_back,
    }
    return {"channels": [channel]}


def test_no_copy() -> None:
    told = require_no_copies(statistics(there=5, uncopied_there=5, back=7, uncopied_back=7))
    assert told == ["5 frames read from VM1's memory by the VF", "7 frames written to it"]


@pytest.mark.parametrize(
    ("there", "uncopied_there", "back", "uncopied_back", "cause"),
    [
        (5, 4, 7, 7, "tx_zero_copy is 4, vm1_to_vf 5 frames"),
        (5, 5, 7, 6, "rx_zero_copy is 6, vf_to_vm1 7 frames"),
        (0, 0, 7, 7, "tx_zero_copy is 0, vm1_to_vf 0 frames"),
        (5, 5, 0, 0, "rx_zero_copy is 0, vf_to_vm1 0 frames"),
    ],
)
def test_one_frame_that_was_copied_or_none_at_all(
    there: int, uncopied_there: int, back: int, uncopied_back: int, cause: str
) -> None:
    told = statistics(
        there=there, uncopied_there=uncopied_there, back=back, uncopied_back=uncopied_back
    )
    with pytest.raises(VhostPciError, match=cause):
        require_no_copies(told)


def test_what_a_vf_is_said_to_be() -> None:
    text = "pmd: zero-copy\npmd: VF xdp:a: no XDP\npmd: VF xdp:a: copy, driver mode, 1 queue\n"
    assert require_said(text, "copy, driver") == "VF xdp:a: copy, driver mode, 1 queue"
    with pytest.raises(VhostPciError, match=r"of 'zero-copy' pmd says only: VF xdp:a: no XDP / VF"):
        require_said(text, "zero-copy")
    with pytest.raises(VhostPciError, match="only: nothing; another kernel may: --kernel back"):
        require_said("pmd: serving 2 of 2 rings\n", "zero-copy")
