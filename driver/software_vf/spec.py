"""The words after `--vf`: KIND or KIND:PARAMETERS."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from driver.mac_address import address_error, parse_address
from driver.software_vf.abi import IFNAME_BYTES, UNIX_PATH_BYTES
from driver.software_vf.vf import FRAME_BYTES_MAX, FRAME_BYTES_MIN, PcapVf, PlainVf
from guest.discovery import is_pci_address
from guest.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.software_vf.vf import Vf

VLAN_MAX = 4094  # 802.1Q
KINDS: dict[str, str] = {
    "null": "null: takes every frame and has none",
    "copy": "copy: takes every frame by a copy of it, as a VF without DMA does, and has none",
    "loop": "loop: what VM1 sends comes back to it",
    "patch": "patch:NAME: VM1 to VM1: for two devices, each at one end of the patch of that name",
    "gen": f"gen[:BYTES]: an endless stream of frames of BYTES ({FRAME_BYTES_MIN}); takes all",
    "tap": "tap:NAME: a kernel TAP device, made if it does not exist",
    "packet": "packet:NAME: an existing network interface, by a packet socket",
    "dgram": "dgram:LOCAL,REMOTE: a unix datagram socket, as of QEMU's -netdev dgram",
    "pcap": "pcap:IN,OUT: replays file IN once, writes what VM1 sends to OUT; either may be empty",
    "xdp": "xdp:NAME: an existing network interface, by AF_XDP; no copies where its driver can",
    "igbvf": "igbvf:ADDRESS[,MAC][,mtu=N][,vlans=A+B]: an Intel 82576 or I350 VF's PCI address, "
    "VM1's MAC, the MTU that it receives for (1500), and its VLANs (none)",
    "virtio-net": "virtio-net:ADDRESS[,MAC]: a virtio NIC's PCI address, and VM1's MAC",
}


def parse_vf(spec: str) -> Vf:
    """The VF that spec names; nothing is opened yet.

    Raises:
        UsageError: It names none: unknown kind, missing or surplus or impossible parameters.
    """
    kind, colon, parameters = spec.partition(":")
    parse = _PARSERS.get(kind)
    if parse is None:
        kinds = f"use {', '.join(KINDS)}, or auto"
        raise UsageError("use", f"VF {spec!r}", "there is no such kind", kinds)
    if colon and not parameters:
        raise _misuse(spec, "nothing follows the colon")
    return parse(spec, parameters)


def _misuse(spec: str, cause: str) -> UsageError:
    kind = spec.partition(":")[0]
    return UsageError("use", f"VF {spec!r}", cause, f"the form is {KINDS[kind]}")


def _parse_plain(spec: str, parameters: str) -> Vf:
    if parameters:
        raise _misuse(spec, "it takes no parameters")
    return PlainVf(spec, spec)


def _parse_gen(spec: str, parameters: str) -> Vf:
    if not parameters:
        return PlainVf(spec, "gen", FRAME_BYTES_MIN)
    if not (parameters.isascii() and parameters.isdigit()):
        raise _misuse(spec, "the frame size is not a number")
    # More digits than any frame size has are out of range, and slow to turn into a number.
    frame_bytes = int(parameters) if len(parameters) <= 9 else FRAME_BYTES_MAX + 1
    if not FRAME_BYTES_MIN <= frame_bytes <= FRAME_BYTES_MAX:
        raise _misuse(spec, f"frames have {FRAME_BYTES_MIN} to {FRAME_BYTES_MAX} bytes")
    return PlainVf(spec, "gen", frame_bytes)


def _parse_patch(spec: str, parameters: str) -> Vf:
    if not parameters:
        raise _misuse(spec, "the patch's name is missing")
    if "\0" in parameters:
        raise _misuse(spec, "a name cannot hold a zero byte")
    # As the others: here, since other kinds do without it.
    from driver.software_vf.patch import PatchVf  # noqa: PLC0415

    return PatchVf(spec)


def _interface(spec: str, name: str) -> str:
    """As the kernel's dev_valid_name(); a percent sign would make the TAP driver choose a name."""
    if not name:
        raise _misuse(spec, "the interface's name is missing")
    if len(os.fsencode(name)) >= IFNAME_BYTES:
        raise _misuse(spec, f"an interface's name has at most {IFNAME_BYTES - 1} bytes")
    if name in (".", "..") or any(c in "/:%\0" or c.isspace() for c in name):
        raise _misuse(spec, "this cannot be an interface's name")
    return name


def _pair(spec: str, parameters: str) -> tuple[str, str]:
    first, comma, second = parameters.partition(",")
    if not comma or "," in second:
        raise _misuse(spec, "it takes two names with one comma between them")
    if "\0" in parameters:
        raise _misuse(spec, "a name cannot hold a zero byte")
    return first, second


def _parse_dgram(spec: str, parameters: str) -> Vf:
    local, remote = _pair(spec, parameters)
    for path in (local, remote):
        if not path:
            raise _misuse(spec, "both sockets need a path")
        if len(os.fsencode(path)) >= UNIX_PATH_BYTES:
            raise _misuse(spec, f"a socket's path has at most {UNIX_PATH_BYTES - 1} bytes")
    if local == remote:
        raise _misuse(spec, "LOCAL and REMOTE are the same")
    from driver.software_vf.dgram import DgramVf  # noqa: PLC0415 - see _PARSERS

    return DgramVf(spec, local, remote)


def _pci_and_mac(spec: str, parameters: str) -> tuple[str, bytes | None]:
    """ADDRESS[,MAC]."""
    address, comma, text = parameters.lower().partition(",")
    if is_pci_address(f"0000:{address}"):
        address = f"0000:{address}"
    if not is_pci_address(address):
        raise _misuse(spec, f"{address or 'nothing'} is no PCI address")
    if not comma:
        return address, None
    mac = parse_address(text)
    if mac is None:
        raise _misuse(spec, f"{text or 'nothing'} is no MAC address")
    if wrong := address_error(mac):
        raise _misuse(spec, f"{text} cannot be VM1's: {wrong}")
    return address, mac


def _parse_tap(spec: str, parameters: str) -> Vf:
    from driver.software_vf.tap import TapVf  # noqa: PLC0415 - see _PARSERS

    return TapVf(spec, _interface(spec, parameters))


def _parse_packet(spec: str, parameters: str) -> Vf:
    from driver.software_vf.packet import PacketVf  # noqa: PLC0415 - see _PARSERS

    return PacketVf(spec, _interface(spec, parameters))


def _parse_xdp(spec: str, parameters: str) -> Vf:
    from driver.software_vf.xdp import XdpVf  # noqa: PLC0415 - see _PARSERS

    return XdpVf(spec, _interface(spec, parameters))


def _parse_igbvf(spec: str, parameters: str) -> Vf:
    from driver.igbvf.device import MTU_MAX, MTU_MIN  # noqa: PLC0415 - see _PARSERS
    from driver.igbvf.vf import MTU, IgbVf  # noqa: PLC0415

    words = parameters.split(",")
    options = [word.partition("=") for word in words if "=" in word]
    given = {name: text for name, _, text in options}
    if len(given) < len(options) or given.keys() - {"mtu", "vlans"}:
        raise _misuse(spec, "its options are mtu and vlans, once each")
    function = _pci_and_mac(spec, ",".join(word for word in words if "=" not in word))
    mtu = _number(given.get("mtu", str(MTU)), MTU_MIN, MTU_MAX)
    if mtu is None:
        raise _misuse(spec, f"its MTU is {MTU_MIN} to {MTU_MAX}")
    texts = given["vlans"].split("+") if "vlans" in given else []
    vlans = [number for text in texts if (number := _number(text, 1, VLAN_MAX)) is not None]
    if len(vlans) < len(texts):
        raise _misuse(spec, f"VLANs are 1 to {VLAN_MAX}, with + between them")
    return IgbVf(spec, *function, mtu=mtu, vlans=vlans)


def _number(text: str, least: int, most: int) -> int | None:
    """The number of these digits, or None: it is none, or not in the range."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        return None
    number = int(text)
    return number if least <= number <= most else None


def _parse_virtio_net(spec: str, parameters: str) -> Vf:
    from driver.virtio_net.vf import VirtioNetVf  # noqa: PLC0415 - see _PARSERS

    return VirtioNetVf(spec, *_pci_and_mac(spec, parameters))


def _parse_pcap(spec: str, parameters: str) -> Vf:
    input_path, output_path = _pair(spec, parameters)
    if not input_path and not output_path:
        raise _misuse(spec, "at least one file is needed")
    return PcapVf(spec, input_path or None, output_path or None)


# Each imports what its kind needs, and no run needs that of another.
_PARSERS: dict[str, Callable[[str, str], Vf]] = {
    "null": _parse_plain,
    "copy": _parse_plain,
    "loop": _parse_plain,
    "patch": _parse_patch,
    "gen": _parse_gen,
    "tap": _parse_tap,
    "packet": _parse_packet,
    "dgram": _parse_dgram,
    "pcap": _parse_pcap,
    "xdp": _parse_xdp,
    "igbvf": _parse_igbvf,
    "virtio-net": _parse_virtio_net,
}
