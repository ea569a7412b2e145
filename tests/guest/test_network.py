"""What sysfs and procfs say of network interfaces, on trees and on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.network import NetworkInterface, network_interfaces
from tests.kernel.namespace import ip, namespace

if TYPE_CHECKING:
    from pathlib import Path

NET = "proc/thread-self/net"
ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
{default}\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth9\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
ZERO = "0" * 32
ROUTES6 = f"""{ZERO} 00 {ZERO} 00 fd{ZERO[2:]} 00000400 00000002 00000000 00000003     {{default}}
fe8{ZERO[3:]} 40 {ZERO} 00 {ZERO} 00000100 00000002 00000000 00000001     eth9
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200     eth9
"""


def interface(root: Path, name: str, driver: str = "iavf", kind: int = 1) -> Path:
    """An interface in a tree; without a driver it has no device."""
    path = root / "sys/class/net" / name
    path.mkdir(parents=True)
    (path / "type").write_text(f"{kind}\n")
    if driver:
        (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (path / "device").mkdir()
        (path / "device/driver").symlink_to(root / "drivers" / driver)
    return path


def routes(root: Path, default: str = "none", default6: str = "none") -> None:
    (root / NET).mkdir(parents=True)
    (root / NET / "route").write_text(ROUTES.format(default=default))
    (root / NET / "ipv6_route").write_text(ROUTES6.format(default=default6))


def test_only_ethernet_interfaces_of_devices(tmp_path: Path) -> None:
    interface(tmp_path, "eth1")
    interface(tmp_path, "eth0", "mlx5_core")
    interface(tmp_path, "br0", driver="")
    interface(tmp_path, "wwan0", kind=65534)
    interface(tmp_path, "elsewhere")
    names = ["eth1", "eth0", "br0", "wwan0", "lo", "gone"]
    assert network_interfaces(tmp_path, names) == [
        NetworkInterface("eth0", "mlx5_core", ""),
        NetworkInterface("eth1", "iavf", ""),
    ]


def test_uses(tmp_path: Path) -> None:
    names = [f"eth{i}" for i in range(10)]
    paths = {name: interface(tmp_path, name) for name in names}
    bridge = interface(tmp_path, "br0", driver="")
    (paths["eth2"] / "master").symlink_to(bridge)
    (paths["eth2"] / "upper_br0").symlink_to(bridge)
    for name, upper in (("eth3", "vlan3"), ("vlan3", "vlan33"), ("eth4", "vlan4"), ("eth5", "m5")):
        above = interface(tmp_path, upper, driver="")
        (tmp_path / "sys/class/net" / name / f"upper_{upper}").symlink_to(above)
    (tmp_path / "sys/class/net/m5/master").symlink_to(bridge)
    routes(tmp_path, "eth0", "vlan33")
    uses = {each.name: each.use for each in network_interfaces(tmp_path, names)}
    assert uses == {
        "eth0": "has the default route",
        "eth2": "is part of br0",
        "eth3": "is below vlan3",
        "eth5": "is below m5",
        **dict.fromkeys(("eth1", "eth4", "eth6", "eth7", "eth8", "eth9"), ""),
    }


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert network_interfaces(tmp_path, ["eth0"]) == []


def test_this_thread_s_namespace() -> None:
    with namespace():
        ip("link add v0 type veth")
        assert network_interfaces() == []
