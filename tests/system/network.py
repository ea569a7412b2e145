"""Network namespaces of a test's own.

Entered by nsenter: `ip netns exec` also makes a mount namespace, which a chroot does not allow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def inside(namespace: str) -> list[str]:
    """What stands before a command to run it in a namespace; nothing for no namespace."""
    return ["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []


def ip(*arguments: str, namespace: str = "") -> str:
    """Runs `ip`, in a namespace if one is named; its words are in the error if it fails."""
    command = [*inside(namespace), "ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def namespace(role: str) -> Iterator[str]:
    """A network namespace with its loopback up, gone at the end; yields its name."""
    name = f"vpci-{role}-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("link", "set", "lo", "up", namespace=name)
        yield name
    finally:
        ip("netns", "del", name)


def answered(address: str, count: int, namespace: str) -> list[int]:
    """The numbers of the answers to so many pings, 1400 bytes each.

    It goes on asking until so many have come: without -w it would wait for the last no longer than
    for two round trips. Where one is lost, its number is not there.
    """
    words = ["ping", "-n", "-c", str(count), "-i", "0.05", "-w", "60", "-s", "1400", address]
    command = [*inside(namespace), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return sorted(int(each) for each in re.findall(r"bytes from .* icmp_seq=(\d+)", done.stdout))


def silence(interface: str, namespace: str) -> None:
    """Turns IPv6 off, so that the kernel sends nothing unasked."""
    quiet = f"echo 1 > /proc/sys/net/ipv6/conf/{interface}/disable_ipv6"
    subprocess.run([*inside(namespace), "sh", "-c", quiet], timeout=60, check=True)


def add_tap(name: str, namespace: str, address: str = "") -> None:
    """A persistent TAP device, silent and up."""
    ip("tuntap", "add", "dev", name, "mode", "tap", namespace=namespace)
    silence(name, namespace)
    if address:
        ip("addr", "add", address, "dev", name, namespace=namespace)
    ip("link", "set", name, "up", namespace=namespace)


def wait_for_carrier(interfaces: tuple[str, ...], namespace: str) -> None:
    """Until each is up for whoever bridges it: up to a second after somebody opened it."""
    deadline = time.monotonic() + 60
    for interface in interfaces:
        while json.loads(ip("-j", "link", "show", interface, namespace=namespace))[0][
            "operstate"
        ] not in ("UP", "UNKNOWN"):
            assert time.monotonic() < deadline, f"{interface} has no carrier"
            time.sleep(0.02)


def add_veth(name: str, namespace: str, peer: str, peer_namespace: str, address: str) -> None:
    """Two connected interfaces, silent and up; the peer has the address, and finishes checksums."""
    ip(
        "link",
        "add",
        name,
        "type",
        "veth",
        "peer",
        peer,
        "netns",
        peer_namespace,
        namespace=namespace,
    )
    ip("addr", "add", address, "dev", peer, namespace=peer_namespace)
    for each, where in ((name, namespace), (peer, peer_namespace)):
        silence(each, where)
        ip("link", "set", each, "up", namespace=where)
    subprocess.run(
        [*inside(peer_namespace), sys.executable, "-m", "tests.system.software_checksums", peer],
        timeout=60,
        check=True,
    )
