"""Network namespaces of a test's own, by iproute2."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def ip(*arguments: str, namespace: str = "") -> str:
    """Runs `ip`, in a namespace if one is named; its words are in the error if it fails."""
    inside = ["-netns", namespace] if namespace else []
    done = subprocess.run(
        ["ip", *inside, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"ip {' '.join([*inside, *arguments])}: {done.stderr}"
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


def add_tap(name: str, namespace: str, address: str = "") -> None:
    """A persistent TAP device, up; IPv6 is off, so that the kernel sends nothing unasked."""
    ip("tuntap", "add", "dev", name, "mode", "tap", namespace=namespace)
    quiet = f"echo 1 > /proc/sys/net/ipv6/conf/{name}/disable_ipv6"
    subprocess.run(["ip", "netns", "exec", namespace, "sh", "-c", quiet], timeout=60, check=True)
    if address:
        ip("addr", "add", address, "dev", name, namespace=namespace)
    ip("link", "set", name, "up", namespace=namespace)
