"""Announcing VM1: what tells a network's switches where it is now (docs/device.md 5.9)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from driver.device_state import Announcement
    from pmd.ports import Ports

_log = logging.getLogger("pmd")

_BROADCAST = b"\xff" * 6
_ETHERTYPE = b"\x80\x35"  # RFC 903: reverse address resolution
# Ethernet's addresses for IPv4's; a request (RFC 826, RFC 903).
_REQUEST = b"\x00\x01\x08\x00\x06\x04\x00\x03"
_SHORTEST = 60  # IEEE 802.3, without the check sequence


def reverse_request(address: bytes) -> bytes:
    """A broadcast frame from a MAC address that asks for nothing anybody answers."""
    both = (address + bytes(4)) * 2  # who asks, and for whom
    return (_BROADCAST + address + _ETHERTYPE + _REQUEST + both).ljust(_SHORTEST, b"\0")


class Announcing:
    """Sends each announcement once. Thread rule: while no loop runs the ports."""

    def __init__(self) -> None:
        self._seen = 0

    def follow(self, announcement: Announcement, ports: Ports) -> None:
        """Announce what was not announced yet; only while VM1 is served."""
        number, self._seen = self._seen, announcement.number
        if announcement.number in (0, number):
            return
        said = announcement.address.hex(":")
        if ports[0].send(reverse_request(announcement.address)):
            _log.info("VF %s: announced %s", ports.name, said)
        else:
            _log.warning("VF %s: did not take the announcement of %s", ports.name, said)
