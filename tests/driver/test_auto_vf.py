"""What `--vf auto` stands for on which machine."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from driver.auto_vf import Choice, pick, resolve
from guest import discovery
from guest.discovery import PciFunction
from guest.errors import UsageError, VhostPciError
from guest.network import NetworkInterface
from pmd.run import _resolve
from tests.guest.fake_sysfs import FakeSysfs
from tests.kernel.namespace import namespace

if TYPE_CHECKING:
    from pathlib import Path


def function(address: str, ids: tuple[int, int], driver: str | None = "vfio-pci") -> PciFunction:
    return PciFunction(address, *ids, 0x020000, driver, 1, None, "")


IGB = function("0000:01:10.0", (0x8086, 0x10CA))
I350 = function("0000:02:10.4", (0x8086, 0x1520))
VIRTIO = function("0000:03:00.0", (0x1AF4, 0x1041))
OLD_VIRTIO = function("0000:04:00.0", (0x1AF4, 0x1000), "vfio-pci")
LOOSE = function("0000:01:10.2", (0x8086, 0x10CA), None)
KERNELS = function("0000:05:00.0", (0x1AF4, 0x1041), "virtio-pci")
ETH0 = NetworkInterface("eth0", "virtio_net", "has the default route")
ETH1 = NetworkInterface("eth1", "iavf", "")
ETH2 = NetworkInterface("eth2", "mlx5_core", "")


@pytest.mark.parametrize(
    ("functions", "interfaces", "choice"),
    [
        ([IGB], [], Choice("igbvf:0000:01:10.0", "an 82576 VF bound to vfio-pci")),
        ([I350], [ETH0], Choice("igbvf:0000:02:10.4", "an I350 VF bound to vfio-pci")),
        ([VIRTIO, LOOSE], [], Choice("virtio-net:0000:03:00.0", "a virtio NIC bound to vfio-pci")),
        ([OLD_VIRTIO], [], Choice("virtio-net:0000:04:00.0", "a virtio NIC bound to vfio-pci")),
        # What was given to VFIO is for nothing else.
        (
            [IGB, KERNELS],
            [ETH0, ETH1, ETH2],
            Choice("igbvf:0000:01:10.0", "an 82576 VF bound to vfio-pci"),
        ),
        ([LOOSE, KERNELS], [ETH0, ETH1], Choice("xdp:eth1", "a network card driven by iavf")),
    ],
)
def test_the_only_one(
    functions: list[PciFunction], interfaces: list[NetworkInterface], choice: Choice
) -> None:
    assert pick(1, [], functions, interfaces) == [choice]


def test_each_channel_gets_its_own() -> None:
    picked = pick(2, [], [IGB, I350], [ETH1])
    assert [choice.spec for choice in picked] == ["igbvf:0000:01:10.0", "igbvf:0000:02:10.4"]
    picked = pick(3, [], [IGB], [ETH0, ETH1, ETH2])
    assert [choice.spec for choice in picked] == ["igbvf:0000:01:10.0", "xdp:eth1", "xdp:eth2"]


@pytest.mark.parametrize(
    ("named", "spec"),
    [
        (["igbvf:01:10.0,52:54:00:12:34:56", "packet:eth1"], "xdp:eth2"),
        (["igbvf:0000:01:10.0", "xdp:eth2", "tap:eth7"], "xdp:eth1"),
        (["xdp:eth1", "loop"], "igbvf:0000:01:10.0"),
    ],
)
def test_what_another_channel_has_is_not_to_be_had(named: list[str], spec: str) -> None:
    assert [choice.spec for choice in pick(1, named, [IGB], [ETH1, ETH2])] == [spec]


@pytest.mark.parametrize(
    ("count", "functions", "interfaces", "cause"),
    [
        (
            1,
            [IGB, I350],
            [],
            "there are 2 VFs for 1 channel: igbvf:0000:01:10.0, igbvf:0000:02:10.4;",
        ),
        (1, [], [ETH0, ETH1, ETH2], "there are 2 VFs for 1 channel: xdp:eth1, xdp:eth2; name the"),
        (2, [IGB], [ETH1, ETH2], "3 VFs for 2 channels: igbvf:0000:01:10.0, xdp:eth1, xdp:eth2;"),
        (3, [IGB], [ETH0, ETH1], "3 channels, and no more VFs than igbvf:0000:01:10.0, xdp:eth1;"),
    ],
)
def test_more_or_fewer(
    count: int, functions: list[PciFunction], interfaces: list[NetworkInterface], cause: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        pick(count, [], functions, interfaces)
    assert cause in str(refusal.value)
    assert refusal.value.exit_status == 2


def test_none() -> None:
    part = NetworkInterface("eth3", "e1000e", "is part of br0")
    with pytest.raises(VhostPciError) as refusal:
        pick(1, ["xdp:eth1"], [LOOSE, KERNELS], [ETH0, ETH1, part])
    assert str(refusal.value) == (
        "cannot use --vf auto: no VF is there to be had (eth0 has the default route; eth1 is named "
        "already; eth3 is part of br0; 0000:01:10.2 is an 82576 VF bound to nothing); "
        "bind a VF (pmd bind ADDRESS), or name one: packet:NAME, tap:NAME ..."
    )
    assert refusal.value.exit_status == 1


@pytest.mark.parametrize(
    ("ids", "spec", "what"),
    [
        ((0x8086, 0x10CA), "igbvf", "an 82576 VF"),
        ((0x8086, 0x152D), "igbvf", "an 82576 VF"),
        ((0x8086, 0x1520), "igbvf", "an I350 VF"),
        ((0x8086, 0x152F), "igbvf", "an I350 VF"),
        ((0x1AF4, 0x1041), "virtio-net", "a virtio NIC"),
        ((0x1AF4, 0x1000), "virtio-net", "a virtio NIC"),
    ],
)
def test_what_was_picked_is_said(
    *,
    ids: tuple[int, int],
    spec: str,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By what the machine's PCI bus shows; what has another driver, or other ids, is nothing."""
    sysfs = FakeSysfs(tmp_path)
    sysfs.add("0000:01:00.0", ids=(0x8086, 0x10C9), driver="vfio-pci")  # a PF
    sysfs.add("0000:01:10.0", ids=ids, driver="vfio-pci")
    sysfs.add("0000:01:10.2", ids=(0x8086, 0x10CA))
    monkeypatch.setattr(discovery, "SYSFS", sysfs.root)
    with caplog.at_level(logging.INFO, "pmd"), namespace():
        assert _resolve(["loop", "auto"]) == ["loop", f"{spec}:0000:01:10.0"]
    assert caplog.messages == [f"VF auto: {spec}:0000:01:10.0, {what} bound to vfio-pci"]


def test_what_is_named_stays() -> None:
    assert resolve(["loop", "tap:t0"]) == [Choice("loop", ""), Choice("tap:t0", "")]


def test_a_machine_without_a_network_card() -> None:
    with namespace(), pytest.raises(VhostPciError, match=r"to be had \(nor any network card\);"):
        resolve(["loop", "auto"])
