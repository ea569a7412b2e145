"""One end of a TCP transfer inside a machine: prints what went over, as SHA-256.

    transfer.py receive ADDRESS PORT        prints "ready", takes one connection, prints
                                            the digest and the seconds it took
    transfer.py send ADDRESS PORT BYTES [PATH]
                                            sends so many bytes, no two pieces alike, and more
                                            until a file PATH is there; prints the digest

Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time

_TIMEOUT_S = 120.0
_CHUNK = 1 << 16
_NUMBER_BYTES = 8


def receive(address: str, port: int) -> str:
    """Digest of all bytes of one connection, and its duration in seconds."""
    digest = hashlib.sha256()
    with socket.create_server((address, port)) as server:
        print("ready", flush=True)
        server.settimeout(_TIMEOUT_S)
        connection, _ = server.accept()
        began = time.monotonic()
        with connection:
            connection.settimeout(_TIMEOUT_S)
            while data := connection.recv(_CHUNK):
                digest.update(data)
        duration_s = time.monotonic() - began
    return f"{digest.hexdigest()} {duration_s:.6f}"


def send(address: str, port: int, size: int, path: str = "") -> str:
    """Digest of what it sent: a piece of random bytes again and again, each with its number."""
    piece = os.urandom(_CHUNK - _NUMBER_BYTES)
    number = 0
    digest = hashlib.sha256()
    with socket.create_connection((address, port), _TIMEOUT_S) as connection:
        while size or (path and not os.access(path, os.F_OK)):
            data = number.to_bytes(_NUMBER_BYTES, "big") + piece
            if size:
                data = data[:size]
                size -= len(data)
            connection.sendall(data)
            digest.update(data)
            number += 1
    return digest.hexdigest()


def main() -> None:
    """One of the two."""
    _, action, where, number, *more = sys.argv
    if action == "receive":
        print(receive(where, int(number)), flush=True)
    else:
        print(send(where, int(number), int(more[0]), *more[1:]), flush=True)


if __name__ == "__main__":
    main()
