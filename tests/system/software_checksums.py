"""Has an interface finish checksums in software: `ethtool -K INTERFACE tx off`, without ethtool."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import sys

SIOCETHTOOL = 0x8946  # linux/sockios.h
ETHTOOL_STXCSUM = 0x17  # linux/ethtool.h

value = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_STXCSUM, 0))
request = struct.pack("16sQ16x", sys.argv[1].encode(), ctypes.addressof(value))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, SIOCETHTOOL, request)
