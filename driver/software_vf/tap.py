"""The tap VF: a kernel TAP device, one queue for each queue pair, or its only one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys

from driver.offloads import Offloads
from driver.software_vf import abi
from driver.software_vf.vf import PortSpec, Vf

_TUN = "/dev/net/tun"
_HEADER_BYTES = 10
_SEGMENTS = abi.TUN_F_CSUM | abi.TUN_F_TSO4 | abi.TUN_F_TSO6 | abi.TUN_F_TSO_ECN
# Linux no longer leaves fragments to us, but takes what is to be cut into them (since 4.14 again).
_SEGMENTS |= abi.TUN_F_UFO
_DATAGRAMS = abi.TUN_F_USO4 | abi.TUN_F_USO6


class TapVf(Vf):
    """A TAP device, made if it does not exist; one that we made goes with its last descriptor.

    Frames without packet information, each after a virtio-net header of 10 bytes: the kernel and we
    leave checksums and segments to each other. Bringing it up is the user's business: until then
    frames are dropped as vf_down.

    Args:
        spec: The user's words.
        name: The interface's.
    """

    kind = "tap"

    def __init__(self, spec: str, name: str) -> None:
        super().__init__(spec)
        self._name = name

    def open(self, queue_pairs: int) -> list[PortSpec]:
        """See `Vf.open`."""
        with self._refusal(self._explained(queue_pairs)):
            try:
                return self._open_queues(queue_pairs)
            except OSError as error:
                if error.errno != errno.EINVAL or queue_pairs == 1:
                    raise
            return self._open_queues(1)  # it was made without multi_queue

    def _open_queues(self, count: int) -> list[PortSpec]:
        flags = abi.IFF_TAP | abi.IFF_NO_PI | abi.IFF_VNET_HDR
        flags |= abi.IFF_MULTI_QUEUE if count > 1 else 0
        with contextlib.ExitStack() as undo:
            fds = []
            for _ in range(count):
                fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                undo.callback(os.close, fd)
                fcntl.ioctl(fd, abi.TUNSETIFF, abi.IFREQ.pack(os.fsencode(self._name), flags))
                fcntl.ioctl(fd, abi.TUNSETVNETHDRSZ, _HEADER_BYTES.to_bytes(4, sys.byteorder))
                fds.append(fd)
            offloads = _share_work(fds[0])
            undo.pop_all()
        return [PortSpec(self.kind, fd, offloads=offloads) for fd in fds]

    def _explained(self, queue_pairs: int) -> dict[int, tuple[str, str]]:
        missing = (f"{_TUN} is missing", "load the tun module: modprobe tun")
        refused = ("no permission", "run as root, or with CAP_NET_ADMIN")
        queues = "multi_queue" if queue_pairs > 1 else ""
        add = f"ip tuntap add {self._name} mode tap {queues}".rstrip()
        return {
            errno.ENOENT: missing,
            errno.ENODEV: missing,
            errno.ENXIO: missing,
            errno.EPERM: refused,
            errno.EACCES: refused,
            errno.EBUSY: ("the interface is in use", "stop the process that has it open"),
            errno.EINVAL: (
                f"the interface exists and is not a TAP device for {queue_pairs} queue pairs",
                f"delete it, or make it with: {add}",
            ),
        }


def _share_work(fd: int) -> Offloads:
    """Have the device leave us what it can; what it takes from us. Datagrams since Linux 6.2."""
    offloads = Offloads.CSUM | Offloads.TSO4 | Offloads.TSO6 | Offloads.ECN | Offloads.UFO
    try:
        fcntl.ioctl(fd, abi.TUNSETOFFLOAD, _SEGMENTS | _DATAGRAMS)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.ioctl(fd, abi.TUNSETOFFLOAD, _SEGMENTS)
        return offloads
    return offloads | Offloads.USO
