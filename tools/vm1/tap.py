"""A TAP device, VM1's way into a real network stack."""

from __future__ import annotations

import fcntl
import os
import struct

from guest.errors import UsageError, VhostPciError, errno_text

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_NAME_MAX = 15  # linux/if.h IFNAMSIZ, with its final zero


def open_tap(name: str) -> int:
    """Attach to the TAP device of this name, made if there is none; the caller owns the descriptor.

    Non-blocking, frames without any header. Bringing the device up is the user's.

    Raises:
        UsageError: The name cannot be one.
        VhostPciError: The kernel refused.
    """
    encoded = name.encode()
    if not 0 < len(encoded) <= _NAME_MAX or "/" in name or "\0" in name:
        raise UsageError("use", f"--tap {name}", f"a name has 1 to {_NAME_MAX} bytes and no /")
    fd = -1
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", encoded, _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        remedy = "it needs /dev/net/tun and CAP_NET_ADMIN"
        raise VhostPciError("open TAP device", name, errno_text(error), remedy) from error
    return fd
