"""`--vf auto`: which VF is meant, by the PCI functions and network interfaces that there are.

A function that was given to VFIO can be for nothing else, so these come first; then the network
interfaces with a kernel driver that this machine does not use itself. Among those of one kind none
is preferred: more than are wanted is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.igbvf import vf as igbvf
from driver.virtio_net import vf as virtio_net
from guest.binding import is_vfio
from guest.discovery import pci_functions
from guest.errors import UsageError, VhostPciError
from guest.network import network_interfaces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest.discovery import PciFunction
    from guest.network import NetworkInterface

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Choice:
    """A VF that auto may stand for: its spec, and what it is."""

    spec: str
    what: str


@dataclass(frozen=True, slots=True)
class _Known:
    """A kind of function that we have a driver for."""

    kind: str
    vendor: int
    device: int
    name: str


_KNOWN = (
    *(_Known("igbvf", igbvf.VENDOR, each, f"an {name}") for each, name in igbvf.DEVICES.items()),
    *(
        _Known("virtio-net", virtio_net.VENDOR, each, "a virtio NIC")
        for each in (virtio_net.DEVICE, virtio_net.TRANSITIONAL_DEVICE)
    ),
)


def resolve(specs: Sequence[str]) -> list[Choice]:
    """A VF for each spec: what was picked for auto, and the others as they are (`what` is empty).

    Raises:
        UsageError: There are more VFs than channels, or fewer.
        VhostPciError: There is none, or interfaces cannot be listed.
    """
    functions = [f for known in _KNOWN for f in pci_functions(known.vendor, known.device)]
    named = [spec for spec in specs if spec != AUTO]
    picked = pick(specs.count(AUTO), named, functions, network_interfaces())
    return [picked.pop(0) if spec == AUTO else Choice(spec, "") for spec in specs]


def pick(
    count: int,
    named: Sequence[str],
    functions: Sequence[PciFunction],
    interfaces: Sequence[NetworkInterface],
) -> list[Choice]:
    """VFs for count channels, each its own.

    Args:
        count: More than 0.
        named: Specs of other channels, whose functions and interfaces are not to be had.
        functions: Those that there is a driver for.
        interfaces: Those of this machine.

    Raises:
        UsageError: There are more, or fewer.
        VhostPciError: There is none.
    """
    taken = {spec.partition(":")[2].partition(",")[0] for spec in named}
    addresses = {start + each.lower() for each in taken for start in ("", "0000:")}
    free = [each for each in functions if each.address not in addresses]
    found = [
        Choice(f"{_known(each).kind}:{each.address}", f"{_known(each).name} bound to {each.driver}")
        for each in free
        if is_vfio(each.driver)
    ]
    if len(found) < count:
        found += [
            Choice(f"xdp:{each.name}", f"a network card driven by {each.driver}")
            for each in interfaces
            if each.name not in taken and not each.use
        ]
    if len(found) == count:
        return found
    listed = ", ".join(choice.spec for choice in found)
    if len(found) > count:
        cause = (
            f"there are {len(found)} VFs for {count} channel{'s' if count > 1 else ''}: {listed}"
        )
        raise UsageError("use", f"--vf {AUTO}", cause, "name the one to use")
    if found:
        cause = f"there are {count} channels, and no more VFs than {listed}"
        raise UsageError("use", f"--vf {AUTO}", cause, "name one for each channel")
    raise VhostPciError("use", f"--vf {AUTO}", _nothing(free, interfaces), _REMEDY)


_REMEDY = "bind a VF (pmd bind ADDRESS), or name one: packet:NAME, tap:NAME ..."


def _nothing(functions: Sequence[PciFunction], interfaces: Sequence[NetworkInterface]) -> str:
    why = [f"{each.name} {each.use or 'is named already'}" for each in interfaces]
    why += [
        f"{each.address} is {_known(each).name} bound to nothing"
        for each in functions
        if not each.driver
    ]
    return f"no VF is there to be had ({'; '.join(why) or 'nor any network card'})"


def _known(function: PciFunction) -> _Known:
    ids = function.vendor, function.device
    return next(each for each in _KNOWN if (each.vendor, each.device) == ids)
