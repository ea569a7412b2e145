"""What VM1 is offered, as the command line names it."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest

from guest.errors import UsageError
from tests.device.device_process import DeviceProcess, run
from tests.device.vhost_user_peer import PROTOCOL, FrontEnd, serving
from tools.device import offer
from tools.device.offer import ALWAYS, MTU_MAX, NAMES, Offer
from tools.vhost_user_abi import Feature, ProtocolFeature, Request

if TYPE_CHECKING:
    from pathlib import Path

BASE = int(ALWAYS)


def test_names_are_those_of_the_specification() -> None:
    assert {"packed", "in_order", "event_idx", "indirect", "mrg_rxbuf", "mq"} <= NAMES.keys()
    assert NAMES["packed"] == 1 << 34
    assert Offer().features == BASE | sum(NAMES.values())


@pytest.mark.parametrize(
    ("only", "without", "features"),
    [
        (None, None, Offer().features),
        ("", None, BASE),
        ("packed,mrg_rxbuf", None, BASE | 1 << 34 | 1 << 15),
        ("packed,mrg_rxbuf", "packed", BASE | 1 << 15),
        (f"{1 << 34 | 1 << 15 | BASE:#x}", None, BASE | 1 << 34 | 1 << 15),
        ("0X8000", None, BASE | 1 << 15),
        (None, "packed,mtu", Offer().features & ~(1 << 34 | 1 << 3)),
        # virtio 1.3, 2.2.2: what requires it goes with it.
        (None, "ctrl_vq", Offer().features & ~(1 << 17 | 1 << 18 | 1 << 21 | 1 << 22)),
    ],
)
def test_offer(only: str | None, without: str | None, features: int) -> None:
    assert Offer.parse(only, without) == Offer(features, MTU_MAX)


@pytest.mark.parametrize(
    ("only", "without", "cause"),
    [
        ("packed,", None, "'' is none that is offered"),
        ("Packed", None, "'Packed' is none that is offered"),
        ("0x", None, "'0x' is none that is offered"),
        ("0x2000000", None, "0x2000000 is none that is offered"),
        ("0x8000000000000000", None, "0x8000000000000000 is none that is offered"),
        ("mq", None, "cannot offer mq: it requires ctrl_vq"),
        ("ctrl_rx", None, "cannot offer ctrl_rx: it requires ctrl_vq"),
        (None, "packed;mtu", "'packed;mtu' is none that is offered"),
        (None, "version_1", "'version_1' is none that is offered"),
    ],
)
def test_refused(only: str | None, without: str | None, cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as caught:
        Offer.parse(only, without)
    if "requires" not in cause:
        assert ", ".join(NAMES) in str(caught.value)


def test_no_offload_without_its_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """virtio 1.3, 5.1.3.1, of all features there are."""
    names = {str(each.name): each for each in (*offer.RINGS, *offer.SEGMENTS)}
    monkeypatch.setattr(offer, "NAMES", names)
    gone = set(names.values()) - {
        feature
        for feature in Feature
        if feature & Offer.parse(None, "NET_CSUM,NET_GUEST_TSO4,NET_GUEST_TSO6").features
    }
    assert sum(gone) == sum(1 << bit for bit in (0, 6, 7, 8, 9, 11, 12, 13, 14, 56))
    with pytest.raises(UsageError, match="it requires NET_HOST_TSO4 or NET_HOST_TSO6"):
        Offer.parse("NET_CSUM,NET_HOST_ECN", None)


def test_any_subset_of_the_offer_is_accepted(seed: int) -> None:
    """virtio 1.3, 2.2.2: each alone, all but each, and others with each run; nothing beyond it."""
    chance = random.Random(seed)
    offered = list(NAMES.values())
    subsets = [0, *offered, *(sum(offered) & ~each for each in offered)]
    subsets += [sum(chance.sample(offered, chance.randrange(len(offered)))) for _ in range(500)]
    with serving() as server, server.front_end() as front_end:
        front_end.negotiate()
        for features in subsets:
            accepted = struct.pack("<Q", features | int(Feature.VERSION_1))
            assert front_end.acknowledged(Request.SET_FEATURES, accepted)
            assert server.backend.state.features == features | Feature.VERSION_1
        for bit in range(64):
            if not Offer().features >> bit & 1:
                beyond = struct.pack("<Q", BASE | 1 << bit)
                assert not front_end.acknowledged(Request.SET_FEATURES, beyond)


def test_mtu() -> None:
    """QEMU's host_mtu: told once, of what is possible (virtio 1.3, 5.1.4.1)."""
    with serving() as server, server.front_end() as front_end:
        front_end.negotiate(protocol=PROTOCOL | ProtocolFeature.MTU)
        for mtu, taken in ((67, False), (68, True), (65536, False), (1 << 63, False), (9000, True)):
            payload = struct.pack("<Q", mtu)
            assert front_end.acknowledged(Request.NET_SET_MTU, payload) is taken
        assert server.backend.describe()["mtu"] == 9000
        assert server.backend.state.mtu == 0  # VM1 has not accepted it
        assert front_end.acknowledged(Request.SET_FEATURES, struct.pack("<Q", BASE | 1 << 3))
        assert server.backend.state.mtu == 9000


def test_command_line(tmp_path: Path) -> None:
    arguments = ("--no-features", "packed", "--no-mtu", "--no-in-order", "--mtu", "9000")
    with DeviceProcess(tmp_path, *arguments) as device, FrontEnd(device.vhost_user) as front_end:
        offered = front_end.ask_u64(Request.GET_FEATURES)
        assert offered == Offer().features & ~(1 << 34 | 1 << 3 | 1 << 35)
        front_end.negotiate(protocol=1 << 3 | 1 << 4)
        assert not front_end.acknowledged(Request.NET_SET_MTU, struct.pack("<Q", 9001))
        assert front_end.acknowledged(Request.NET_SET_MTU, struct.pack("<Q", 9000))
        shown = device.state()["vhost_user"]
        assert "RING_PACKED" not in shown["offered"]
        assert shown["mtu"] == 9000
        assert not front_end.acknowledged(Request.SET_FEATURES, struct.pack("<Q", BASE | 1 << 34))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--features", "packed,nonsense"),
        ("--no-features", "nonsense"),
        ("--no-nonsense",),
        ("--mtu", "67"),
        ("--mtu", "65536"),
    ],
)
def test_wrong_use(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    paths = ("--vhost-user", tmp_path / "a", "--vfio-user", tmp_path / "b")
    ended = run(*paths, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("vhost-pci-device: ")
    assert len(ended.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
