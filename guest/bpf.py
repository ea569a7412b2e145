"""bpf(2): what a program on a network interface takes; each object goes with its descriptor.

Source: linux/bpf.h and bpf(2). Everything here raises OSError with the kernel's errno. Descriptors
are close-on-exec and the caller's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280}  # of the system call

# enum bpf_cmd
_MAP_CREATE = 0
_MAP_UPDATE_ELEM = 2
_PROG_LOAD = 5
_OBJ_GET_INFO_BY_FD = 15
_LINK_CREATE = 28

_PROG_TYPE_XDP = 6
_ATTACH_TYPE_XDP = 37
_MAP_TYPE_XSKMAP = 17
_NAME_BYTES = 16

# The used heads of the members of union bpf_attr; the kernel takes what is missing for zero.
_MAP_ATTRIBUTES = struct.Struct(
    "=IIIIIII16s"
)  # type, key, value, entries, flags, inner, node, name
_ELEMENT_ATTRIBUTES = struct.Struct("=IIQQQ")  # map, padding, key, value, flags
_PROGRAM_ATTRIBUTES = struct.Struct("=IIQQIIQII16sII")
_LINK_ATTRIBUTES = struct.Struct("=IIII")  # program, interface, attach type, flags
_INFO_ATTRIBUTES = struct.Struct("=IIQ")  # descriptor, room, address
_LINK_INFO = struct.Struct("=IIIII")  # type, id, program, padding, interface

XDP_HAS_FRAGS = 1 << 5  # BPF_F_XDP_HAS_FRAGS: the program takes frames in several buffers
# linux/if_link.h
XDP_GENERIC_MODE = 1 << 1  # XDP_FLAGS_SKB_MODE
XDP_DRIVER_MODE = 1 << 2  # XDP_FLAGS_DRV_MODE


def instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One instruction: RFC 9669, 3."""
    return struct.pack("=BBhi", code, source << 4 | to, offset, value)


def create_socket_map(entries: int, name: str) -> int:
    """A map of AF_XDP sockets by queue number (BPF_MAP_TYPE_XSKMAP), empty."""
    return _call(
        _MAP_CREATE,
        _MAP_ATTRIBUTES.pack(_MAP_TYPE_XSKMAP, 4, 4, entries, 0, 0, 0, _name(name)),
    )


def set_socket(map_fd: int, queue: int, socket_fd: int) -> None:
    """Have the map name a bound socket for a queue; closing the socket takes it out again."""
    key, value = ctypes.c_uint32(queue), ctypes.c_uint32(socket_fd)
    attributes = _ELEMENT_ATTRIBUTES.pack(
        map_fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0
    )
    _call(_MAP_UPDATE_ELEM, attributes)


def load_xdp_program(instructions: bytes, flags: int, name: str) -> int:
    """A program for interfaces. It is ours, so BSD, and may call no function that is for GPL only.

    Args:
        instructions: Of 8 bytes each.
        flags: 0 or XDP_HAS_FRAGS.
        name: For bpftool, at most 15 characters.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"BSD")
    attributes = _PROGRAM_ATTRIBUTES.pack(
        _PROG_TYPE_XDP,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0,  # log_level, log_size, log_buf
        0,
        0,
        0,  # kern_version
        flags,
        _name(name),
        0,  # prog_ifindex
        _ATTACH_TYPE_XDP,
    )
    return _call(_PROG_LOAD, attributes)


def attach_xdp(program_fd: int, interface: int, mode: int) -> int:
    """A link: the program runs on the interface (its number) until the link's last descriptor goes.

    Raises:
        OSError: EBUSY or EEXIST where the interface has a program already; the driver's errno
            where mode is XDP_DRIVER_MODE and the driver cannot.
    """
    attributes = _LINK_ATTRIBUTES.pack(program_fd, interface, _ATTACH_TYPE_XDP, mode)
    return _call(_LINK_CREATE, attributes)


def attached_interface(link_fd: int) -> int:
    """The number of the interface that a link is on; 0: it went away, and the program with it."""
    info = ctypes.create_string_buffer(_LINK_INFO.size)
    _call(
        _OBJ_GET_INFO_BY_FD,
        _INFO_ATTRIBUTES.pack(link_fd, _LINK_INFO.size, ctypes.addressof(info)),
    )
    return int(_LINK_INFO.unpack(info.raw)[4])


def _name(text: str) -> bytes:
    return text.encode()[: _NAME_BYTES - 1]


def _call(command: int, attributes: bytes) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = libc.syscall(
        ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes))
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)
