"""The XDP program on an interface that gives each frame to the socket of the queue it came on.

The bare kernel interface, not libxdp: what is needed is five instructions, for which an ELF loader
is much, and a link, which goes with its descriptor. libxdp's dispatcher is pinned in bpffs and
stays on the interface after a kill -9; nothing of ours does, and nothing has to be installed. In
return the interface is not shared: one that has a program already is refused.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os

from guest import bpf
from guest.closing import Closing
from guest.errors import errno_text

_log = logging.getLogger("pmd")

_NAME = "pmd"
_NO_TRY = (errno.EBUSY, errno.EEXIST, errno.EPERM, errno.EACCES)


class XdpProgram(Closing):
    """Attached, and no socket in its map yet: frames go to the kernel as before.

    Args:
        name: The VF's, for the log.
        interface: The interface's number.
        queues: How many receive.

    Attributes:
        driver_mode: It runs in the interface's driver; else behind it, on the kernel's own buffers.
        multi_buffer: It takes frames that lie in several buffers (Linux 5.18).

    Raises:
        OSError: EBUSY or EEXIST where the interface has a program already.
    """

    def __init__(self, name: str, interface: int, queues: int) -> None:
        with contextlib.ExitStack() as stack:
            self._map = bpf.create_socket_map(queues, _NAME)
            stack.callback(os.close, self._map)
            program, self.multi_buffer = _load(self._map)
            stack.callback(os.close, program)
            self._link, self.driver_mode = _attach(name, program, interface)
            stack.callback(os.close, self._link)
            self._left = stack.pop_all()

    def set_socket(self, queue: int, socket_fd: int) -> None:
        """Have a bound socket get the frames of its queue."""
        bpf.set_socket(self._map, queue, socket_fd)

    @property
    def interface(self) -> int:
        """The number of the interface it is on; 0: that went away."""
        return bpf.attached_interface(self._link)

    def close(self) -> None:
        """Take it off. Twice is fine."""
        self._left.close()


def _load(map_fd: int) -> tuple[int, bool]:
    """The program; whether it takes frames in several buffers."""
    step = bpf.instruction
    # return bpf_redirect_map(map, context->rx_queue_index, XDP_PASS): linux/bpf.h.
    instructions = b"".join(
        (
            step(0x61, to=2, source=1, offset=16),  # r2 = context->rx_queue_index
            step(0x18, to=1, source=1, value=map_fd),  # r1 = map: an instruction of two slots
            step(0),
            step(0xB7, to=3, value=2),  # r3 = XDP_PASS: what becomes of a frame without a socket
            step(0x85, value=51),  # call bpf_redirect_map
            step(0x95),  # exit
        )
    )
    try:
        return bpf.load_xdp_program(instructions, bpf.XDP_HAS_FRAGS, _NAME), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return bpf.load_xdp_program(instructions, 0, _NAME), False


def _attach(name: str, program: int, interface: int) -> tuple[int, bool]:
    """The link; whether it is in the driver, which it is wherever the driver can."""
    try:
        return bpf.attach_xdp(program, interface, bpf.XDP_DRIVER_MODE), True
    except OSError as error:
        if error.errno in _NO_TRY:
            raise
        _log.info("VF %s: its driver takes no XDP program: %s", name, errno_text(error))
    return bpf.attach_xdp(program, interface, bpf.XDP_GENERIC_MODE), False
