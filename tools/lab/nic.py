"""VM1's network card: what QEMU offers the driver of all that the device offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from guest.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.lab.vm import Vm

_DRIVER = "virtio-net-pci"
_RECONNECT_MS = 500
_QUEUES = "queues"
_QUEUES_MAX = 8  # of `vhost-pci-device`, unless told otherwise
_SWITCHES = {"on": True, "off": False}


@dataclass(frozen=True, slots=True)
class Nic:
    """A virtio-net-pci whose back-end is behind a vhost-user socket.

    Attributes:
        properties: QEMU's, as of QMP's device_add: packed, mrg_rxbuf, host_mtu ...
        queue_pairs: How many.
    """

    properties: Mapping[str, object] = field(default_factory=dict)
    queue_pairs: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a user's words, as of QEMU's -device: `packed=on,mrg_rxbuf=off,queues=4`.

        Raises:
            UsageError: They are no such words. That a property exists is for QEMU to say.
        """
        properties: dict[str, object] = {}
        queue_pairs = 1
        for word in filter(None, text.split(",")):
            name, _, value = word.partition("=")
            if not name or not (value in _SWITCHES or value.isdecimal()):
                raise _usage(text, f"'{word}' is not NAME=on, NAME=off or NAME=NUMBER")
            if name == _QUEUES:
                if not value.isdecimal() or not 1 <= int(value) <= _QUEUES_MAX:
                    raise _usage(text, f"there may be 1 to {_QUEUES_MAX} queues")
                queue_pairs = int(value)
            else:
                properties[name] = _SWITCHES[value] if value in _SWITCHES else int(value)
        return cls(properties, queue_pairs)

    def plug(self, vm1: Vm, name: str, socket: Path, mac: str) -> None:
        """Plug it into VM1, whose driver will find it; QEMU connects again whenever it has to.

        Raises:
            VhostPciError: QEMU refuses; nothing of it stays.
        """
        address = {"type": "unix", "data": {"path": str(socket)}}
        facts = {"addr": address, "server": False, "reconnect-ms": _RECONNECT_MS}
        vm1.qmp.execute("chardev-add", id=name, backend={"type": "socket", "data": facts})
        undo = "chardev-remove"
        try:
            queues = self.queue_pairs
            vm1.qmp.execute("netdev_add", type="vhost-user", id=name, chardev=name, queues=queues)
            undo = "netdev_del"  # its connection goes with it
            named: dict[str, object] = {"netdev": name, "mac": mac, "disable-legacy": "on"}
            if queues > 1:
                # An interrupt a ring, one for the control queue, one for changes.
                named |= {"mq": True, "vectors": 2 * queues + 2}
            vm1.plug(_id(name), _DRIVER, named | dict(self.properties))
        except BaseException:
            vm1.qmp.execute(undo, id=name)
            raise

    @staticmethod
    def unplug(vm1: Vm, name: str) -> None:
        """Take it out of VM1, while its driver runs or not; its back-end is let go.

        Raises:
            VhostPciError: QEMU refuses, or VM1 does not let go.
        """
        vm1.unplug(_id(name))
        vm1.qmp.execute("netdev_del", id=name)


def _id(name: str) -> str:
    return f"{name}-card"


def _usage(text: str, cause: str) -> UsageError:
    return UsageError("use", f"--nic {text}", cause, "say it as to QEMU: packed=on,mrg_rxbuf=off")
