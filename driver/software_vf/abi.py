"""Numbers of the kernel's headers for TAP devices, packet sockets and interfaces."""

from __future__ import annotations

import struct

# linux/if.h, bits/ioctls.h
IFNAME_BYTES = 16  # with the terminating zero
IFREQ = struct.Struct("16sH22x")  # struct ifreq: name, then flags or an address's family
IFREQ_INDEX = struct.Struct("16si20x")  # struct ifreq: name, then an interface's number
SIOCGIFFLAGS = 0x8913
SIOCGIFHWADDR = 0x8927
SIOCGIFINDEX = 0x8933
IFF_UP = 1 << 0

# linux/if_arp.h
ARPHRD_ETHER = 1
ARPHRD_LOOPBACK = 772

# linux/if_tun.h
TUNSETIFF = 0x400454CA  # _IOW('T', 202, int)
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000

# linux/if_ether.h
ETH_P_ALL = 0x0003

# linux/socket.h
SOL_PACKET = 263

# linux/if_packet.h
PACKET_ADD_MEMBERSHIP = 1
PACKET_FANOUT = 18
PACKET_QDISC_BYPASS = 20
PACKET_IGNORE_OUTGOING = 23
PACKET_MR_PROMISC = 1
PACKET_MREQ = struct.Struct("iHH8s")  # struct packet_mreq: interface, type, address
PACKET_FANOUT_HASH = 0
PACKET_FANOUT_FLAG_UNIQUEID = 0x2000
PACKET_FANOUT_FLAG_IGNORE_OUTGOING = 0x4000

# linux/un.h
UNIX_PATH_BYTES = 108  # with the terminating zero

# asm-generic/socket.h
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
