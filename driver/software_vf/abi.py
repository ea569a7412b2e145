"""Numbers of the kernel's headers for TAP devices, packet and XDP sockets, and interfaces."""

from __future__ import annotations

import struct

# linux/if.h, bits/ioctls.h
IFNAME_BYTES = 16  # with the terminating zero
IFREQ = struct.Struct("16sH22x")  # struct ifreq: name, then flags or an address's family
IFREQ_INDEX = struct.Struct("16si20x")  # struct ifreq: name, then an interface's number
IFREQ_POINTER = struct.Struct("16sQ16x")  # struct ifreq: name, then an address
SIOCGIFFLAGS = 0x8913
SIOCGIFMTU = 0x8921
SIOCGIFHWADDR = 0x8927
SIOCGIFINDEX = 0x8933
SIOCETHTOOL = 0x8946
IFF_UP = 1 << 0
IFF_RUNNING = 1 << 6

# linux/ethtool.h
ETHTOOL_VALUE = struct.Struct("II")  # struct ethtool_value: command, answer
ETHTOOL_GLINK = 0x0A
ETHTOOL_GFLAGS = 0x25
ETH_FLAG_RXVLAN = 1 << 8
ETHTOOL_GCHANNELS = 0x3C
ETHTOOL_CHANNELS = struct.Struct("9I")  # command; most, then now: receive, send, other, combined

# linux/if_arp.h
ARPHRD_ETHER = 1
ARPHRD_LOOPBACK = 772

# linux/if_tun.h
TUNSETIFF = 0x400454CA  # _IOW('T', 202, int)
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUNSETOFFLOAD = 0x400454D0  # _IOW('T', 208, unsigned int)
TUNSETVNETHDRSZ = 0x400454D8  # _IOW('T', 216, int)
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_UFO = 0x10
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40

# linux/if_ether.h
ETH_P_ALL = 0x0003

# linux/socket.h
AF_XDP = 44
SOL_PACKET = 263
SOL_XDP = 283

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

# linux/if_xdp.h
XDP_COPY = 1 << 1
XDP_ZEROCOPY = 1 << 2
XDP_USE_NEED_WAKEUP = 1 << 3
XDP_USE_SG = 1 << 4
SOCKADDR_XDP = struct.Struct("HHIII")  # family, flags, interface, queue, another one's socket
XDP_MMAP_OFFSETS = 1
XDP_RX_RING = 2
XDP_TX_RING = 3
XDP_UMEM_REG = 4
XDP_UMEM_FILL_RING = 5
XDP_UMEM_COMPLETION_RING = 6
XDP_STATISTICS = 7
XDP_STATISTICS_WORDS = struct.Struct("6Q")  # struct xdp_statistics of Linux 5.9 on
XDP_OPTIONS = 8
XDP_RING_OFFSETS = struct.Struct("16Q")  # receive, send, fill, completion: producer, consumer, ...
XDP_UMEM = struct.Struct("QQIIII")  # struct xdp_umem_reg: address, bytes, chunk, headroom, flags
XDP_OPTIONS_ZEROCOPY = 1 << 0
XDP_RING_NEED_WAKEUP = 1 << 0  # of a ring's flags
XDP_PGOFF_RX_RING = 0
XDP_PGOFF_TX_RING = 0x80000000
XDP_UMEM_PGOFF_FILL_RING = 0x100000000
XDP_UMEM_PGOFF_COMPLETION_RING = 0x180000000
XDP_DESC_BYTES = 16
XDP_HEADROOM_BYTES = 256  # linux/bpf.h XDP_PACKET_HEADROOM: before each received frame
