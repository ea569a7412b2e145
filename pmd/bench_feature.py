"""What a feature of virtio costs or gains: VM1 with it beside VM1 without it, by turns."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONG_BUFFER = "1536"  # bytes: what a stock Linux posts, at least; longer frames take several


class Feature(enum.StrEnum):
    """By the names of `vhost-pci-device --features`."""

    PACKED = "packed"
    MRG_RXBUF = "mrg_rxbuf"
    EVENT_IDX = "event_idx"
    INDIRECT = "indirect"
    IN_ORDER = "in_order"
    MQ = "mq"
    CSUM = "csum"
    HOST_TSO4 = "host_tso4"
    HOST_USO = "host_uso"
    HOST_UFO = "host_ufo"
    GUEST_CSUM = "guest_csum"


@dataclass(frozen=True, slots=True)
class _Use:
    """A feature's bit (virtio 1.3, 5.1.3 and 6), and VM1's words with it and without."""

    bit: int
    words: tuple[str, ...] = ()
    words_without: tuple[str, ...] = ()


_USES = {
    Feature.PACKED: _Use(34, ("--packed",)),
    Feature.MRG_RXBUF: _Use(15, ("--buffer-size", _LONG_BUFFER), ("--no-mergeable",)),
    Feature.EVENT_IDX: _Use(29, (), ("--no-event-idx",)),
    # Chains of one descriptor no driver puts into a table.
    Feature.INDIRECT: _Use(28, ("--chain", "2", "--indirect"), ("--chain", "2")),
    Feature.IN_ORDER: _Use(35, (), ("--no-in-order",)),
    Feature.MQ: _Use(22, ("--queue-pairs", "4")),
    Feature.CSUM: _Use(0, ("--leave", "csum")),
    Feature.HOST_TSO4: _Use(11, ("--leave", "tso")),
    Feature.HOST_USO: _Use(56, ("--leave", "uso")),
    Feature.HOST_UFO: _Use(14, ("--leave", "ufo")),
    Feature.GUEST_CSUM: _Use(1, ("--leave", "csum", "--guest-csum"), ("--leave", "csum")),
}


def vm1_words(feature: Feature, *, without: bool) -> tuple[str, ...]:
    """What `vhost-pci-vm1 replay` is told."""
    use = _USES[feature]
    return use.words_without if without else use.words


def require_agreed(feature: Feature, results: Sequence[dict[str, Any]], *, without: bool) -> None:
    """Each VM1's device agreed to the feature, or did not.

    Args:
        feature: What is measured.
        results: The JSON object of each VM1.
        without: Whether it had to be left out.

    Raises:
        VhostPciError: It is otherwise, so there is nothing to compare.
    """
    bit = _USES[feature].bit
    for result in results:
        if bool(int(result["features"], 16) >> bit & 1) == without:
            name = f"VM1 without {feature}" if without else str(feature)
            cause = f"VM1 and its device {'agreed' if without else 'did not agree'} on it"
            raise VhostPciError("measure", name, cause)
