"""What VM1 is offered: virtio features, by the names of `--features`, and its largest MTU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.errors import UsageError
from tools.vhost_user_abi import Feature

if TYPE_CHECKING:
    from collections.abc import Iterable

MTU_MIN = 68  # virtio 1.3, 5.1.4.1
MTU_MAX = 65535

# Without these there is no device of ours to talk to (virtio 1.3, 6.2; vhost-user).
# LOG_ALL is vhost's own: by it VM1's VMM asks for the log of changed memory, to migrate VM1.
ALWAYS = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.LOG_ALL
# CTRL_VQ, CTRL_RX, MQ, STATUS and GUEST_ANNOUNCE belong to the control queue, which front-ends end
# themselves; without them in the offer QEMU and DPDK would hide several queues from their guests,
# and DPDK receive modes too. Those say what VM1 wants at least (5.1.6.5.1): it is given all frames.
RINGS = (
    Feature.NET_MRG_RXBUF,
    Feature.NET_MQ,
    Feature.NET_CTRL_VQ,
    Feature.NET_CTRL_RX,
    Feature.NET_STATUS,
    Feature.NET_GUEST_ANNOUNCE,
    Feature.NET_MTU,
    Feature.INDIRECT_DESC,
    Feature.EVENT_IDX,
    Feature.RING_PACKED,
    Feature.IN_ORDER,
    Feature.ANY_LAYOUT,
    Feature.ACCESS_PLATFORM,
)
SEGMENTS = (
    Feature.NET_CSUM,
    Feature.NET_GUEST_CSUM,
    Feature.NET_GSO,
    Feature.NET_HOST_TSO4,
    Feature.NET_HOST_TSO6,
    Feature.NET_HOST_ECN,
    Feature.NET_HOST_USO,
    Feature.NET_HOST_UFO,
    Feature.NET_GUEST_TSO4,
    Feature.NET_GUEST_TSO6,
    Feature.NET_GUEST_ECN,
    Feature.NET_GUEST_USO4,
    Feature.NET_GUEST_USO6,
    Feature.NET_GUEST_UFO,
)
# virtio 1.3, 5.1.3.1: what a feature requires, any one of the alternatives. 2.2.2: it is not to be
# offered without.
REQUIRES = {
    Feature.NET_MQ: Feature.NET_CTRL_VQ,
    Feature.NET_CTRL_RX: Feature.NET_CTRL_VQ,
    Feature.NET_GUEST_ANNOUNCE: Feature.NET_CTRL_VQ,
    Feature.NET_GSO: Feature.NET_CSUM,
    Feature.NET_HOST_TSO4: Feature.NET_CSUM,
    Feature.NET_HOST_TSO6: Feature.NET_CSUM,
    Feature.NET_HOST_USO: Feature.NET_CSUM,
    Feature.NET_HOST_UFO: Feature.NET_CSUM,
    Feature.NET_HOST_ECN: Feature.NET_HOST_TSO4 | Feature.NET_HOST_TSO6,
    Feature.NET_GUEST_TSO4: Feature.NET_GUEST_CSUM,
    Feature.NET_GUEST_TSO6: Feature.NET_GUEST_CSUM,
    Feature.NET_GUEST_USO4: Feature.NET_GUEST_CSUM,
    Feature.NET_GUEST_USO6: Feature.NET_GUEST_CSUM,
    Feature.NET_GUEST_UFO: Feature.NET_GUEST_CSUM,
    Feature.NET_GUEST_ECN: Feature.NET_GUEST_TSO4 | Feature.NET_GUEST_TSO6,
}
# Names of users: packed, in_order, mrg_rxbuf, ...
NAMES = {
    str(feature.name).lower().removeprefix("net_").removeprefix("ring_").removesuffix("_desc"): (
        feature
    )
    for feature in (*RINGS, *SEGMENTS)
}


@dataclass(frozen=True, slots=True)
class Offer:
    """features: bits of GET_FEATURES; an int, since its complement has bits without a name."""

    features: int = int(ALWAYS) | sum(NAMES.values())
    mtu: int = MTU_MAX

    @classmethod
    def parse(cls, only: str | None, without: str | None, mtu: int = MTU_MAX) -> Offer:
        """The offer of a command line.

        Args:
            only: `--features`: names, or one hexadecimal number; None for all.
            without: `--no-features`: names. What requires one of them goes with it.
            mtu: `--mtu`.

        Raises:
            UsageError: A name is none, or a feature lacks what it requires.
        """
        wanted = set(NAMES.values()) if only is None else _parse(only, "--features")
        for feature in wanted:
            if only is not None and not _is_met(feature, wanted):
                needed = " or ".join(_name(each) for each in REQUIRES[feature])
                raise UsageError("offer", _name(feature), f"it requires {needed}")
        wanted -= _parse(without, "--no-features") if without is not None else set()
        while missing := {feature for feature in wanted if not _is_met(feature, wanted)}:
            wanted -= missing
        return cls(int(ALWAYS) | sum(wanted), mtu)


def _is_met(feature: Feature, offered: Iterable[Feature]) -> bool:
    required = REQUIRES.get(feature)
    return required is None or any(each in offered for each in required)


def _name(feature: Feature) -> str:
    return next((name for name, each in NAMES.items() if each == feature), str(feature.name))


def _parse(text: str, option: str) -> set[Feature]:
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", text):
        left = int(text, 16) & ~int(ALWAYS)
        found = {feature for feature in NAMES.values() if feature & left}
        if left & ~sum(found):
            raise _usage(f"{option} {text}", f"{left & ~sum(found):#x} is none that is offered")
        return found
    found = set()
    for name in text.split(",") if text else ():
        if name not in NAMES:
            raise _usage(f"{option} {text}", f"'{name}' is none that is offered")
        found.add(NAMES[name])
    return found


def _usage(subject: str, cause: str) -> UsageError:
    return UsageError("use", subject, cause, f"there are {', '.join(NAMES)}")
