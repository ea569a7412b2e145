"""The other end of `--vf dgram:`: sends every datagram back, until it is ended.

dgram_echo.py LOCAL REMOTE
"""

from __future__ import annotations

import socket
import sys

FRAME_MAX = 65562


def echo(local: str, remote: str) -> None:
    """Never returns. Blocks where the other end does not take what it sent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(local)
        print("ready", flush=True)
        frame = bytearray(FRAME_MAX)
        view = memoryview(frame)
        while True:
            end.sendto(view[: end.recv_into(frame)], remote)


if __name__ == "__main__":
    echo(*sys.argv[1:])
