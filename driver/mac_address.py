"""MAC addresses: which ones a VF can have."""

from __future__ import annotations

import re

_FORM = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_MULTICAST = 1  # in an address's first byte


def parse_address(text: str) -> bytes | None:
    """The 6 bytes of a MAC address with colons; None if it is none."""
    return bytes.fromhex(text.replace(":", "")) if _FORM.fullmatch(text) else None


def address_error(address: bytes) -> str:
    """Why no VF can have this address, or ""."""
    if not any(address):
        return "it is all zeros"
    return "it is a multicast address" if address[0] & _MULTICAST else ""
