"""The dgram VF: one Ethernet frame a datagram, between two unix sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from driver.software_vf import abi
from driver.software_vf.packet import enlarge
from driver.software_vf.vf import PortSpec, Vf

_BUFFER_BYTES = 4 << 20


class DgramVf(Vf):
    """A socket bound at local that sends to remote, which need not exist yet.

    As QEMU's `-netdev dgram,local.type=unix,local.path=REMOTE,remote.type=unix,remote.path=LOCAL`.
    One queue pair, whatever VM1 has.

    Args:
        spec: The user's words.
        local: Path of our socket; a file left by a process that is gone is replaced.
        remote: The peer's path.
    """

    kind = "dgram"
    queue_pairs_max = 1

    def __init__(self, spec: str, local: str, remote: str) -> None:
        super().__init__(spec)
        self._local = Path(local)
        self._remote = remote

    def open(self, queue_pairs: int) -> list[PortSpec]:  # noqa: ARG002 - it has one
        """See `Vf.open`."""
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with self._refusal(), contextlib.ExitStack() as undo:
            ours = undo.enter_context(socket.socket(socket.AF_UNIX, kind))
            enlarge(ours, abi.SO_SNDBUFFORCE, socket.SO_SNDBUF, _BUFFER_BYTES)
            enlarge(ours, abi.SO_RCVBUFFORCE, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._remove_abandoned()
            ours.bind(str(self._local))
            undo.callback(self.close)
            self._left.callback(self._unlink, self._local.lstat())
            undo.pop_all()
            return [PortSpec(self.kind, ours.detach(), output=self._remote)]

    def _unlink(self, made: os.stat_result) -> None:
        """Remove the socket file, if it is still the one that we made."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._local.lstat(), made):
                self._local.unlink()

    def _remove_abandoned(self) -> None:
        """Unlink a socket file that no socket is bound to; raise where the path is taken."""
        try:
            mode = self._local.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise self._error(f"{self._local} exists and is not a socket", "name another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            result = probe.connect_ex(str(self._local))
        if result == errno.ECONNREFUSED:
            self._local.unlink()
        elif result != errno.ENOENT:
            raise self._error(
                f"{self._local} is in use", "stop the process that has it, or name another path"
            )
