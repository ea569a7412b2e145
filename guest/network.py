"""Network interfaces of this machine that a device is behind, as sysfs and procfs show them."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

ROOT = Path("/")
_ETHERNET = 1  # linux/if_arp.h ARPHRD_ETHER
_ROUTE_UP = 1 << 0  # linux/route.h RTF_UP


@dataclass(frozen=True, slots=True)
class NetworkInterface:
    """An Ethernet interface of a device, at the moment of asking.

    Attributes:
        name: Its name.
        driver: Of its device.
        use: What this machine uses it for, as the end of a sentence; empty: nothing that shows.
    """

    name: str
    driver: str
    use: str


def network_interfaces(
    root: Path = ROOT, names: Collection[str] | None = None
) -> list[NetworkInterface]:
    """The interfaces, by name; bridges, tunnels and the like have no device and are left out.

    Args:
        root: Where sysfs and procfs are.
        names: Those to look at. By default those of this thread's network namespace: sysfs may be
            another one's.
    """
    if names is None:
        names = [name for _, name in socket.if_nameindex()]
    default = _default_route_interfaces(root / "proc/thread-self/net")
    directory = root / "sys/class/net"
    found = []
    for name in sorted(names):
        driver = directory / name / "device/driver"
        if not driver.exists() or _text(directory / name / "type") != str(_ETHERNET):
            continue
        use = _use(directory, name, default)
        found.append(NetworkInterface(name, driver.resolve().name, use))
    return found


def _use(directory: Path, name: str, default: set[str]) -> str:
    if name in default:
        return "has the default route"
    master = directory / name / "master"
    if master.is_symlink():
        return f"is part of {master.resolve().name}"
    for upper in sorted(directory.glob(f"{name}/upper_*")):
        above = upper.name.removeprefix("upper_")
        if _use(directory, above, default):
            return f"is below {above}"
    return ""


def _default_route_interfaces(directory: Path) -> set[str]:
    """Of IPv4 and IPv6; seq_show of net/ipv4/fib_trie.c and net/ipv6/route.c say what a line is."""
    found = set()
    for line in _text(directory / "route").splitlines()[1:]:
        name, destination, _, flags, _, _, _, mask, *_ = line.split()
        if int(flags, 16) & _ROUTE_UP and int(destination, 16) == int(mask, 16) == 0:
            found.add(name)
    for line in _text(directory / "ipv6_route").splitlines():
        destination, length, *_, flags, name = line.split()
        if int(flags, 16) & _ROUTE_UP and int(destination, 16) == int(length, 16) == 0:
            found.add(name)
    return found


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""
