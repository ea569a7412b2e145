"""`Port`: one queue pair's end at the VF, as the kernel runs it."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Protocol

from guest.errors import VhostPciError
from pmd.handle import Handle
from pmd.kernel_abi import Frame, PortConfigStructure, Segment, igbvf_config
from pmd.kernel_library import library
from pmd.virtio_abi import virtio_config
from pmd.xdp_abi import xdp_config

if TYPE_CHECKING:
    from driver.igbvf.queue import QueuePair
    from driver.software_vf.xdp import XdpQueues
    from driver.virtio_net.queue import VirtioPair

_ERROR_BYTES = 256


class PortSpec(Protocol):
    """What `Port` opens: struct rk_port_config. driver.software_vf.PortSpec is one.

    A frozen dataclass of these names will do.
    """

    @property
    def kind(self) -> str:
        """As ringk.h lists them: "null", "loop", "gen", "tap" ..."""
        ...

    @property
    def fd(self) -> int:
        """The open tap or socket of tap, packet and dgram; else -1."""
        ...

    @property
    def frame_bytes(self) -> int:
        """Of the frames gen makes, without FCS; else 0."""
        ...

    @property
    def input(self) -> str | os.PathLike[str] | None:
        """The file pcap replays once."""
        ...

    @property
    def output(self) -> str | os.PathLike[str] | None:
        """The file pcap writes; dgram's peer, None where it is connected."""
        ...

    @property
    def offloads(self) -> int:
        """RK_RING_OFFLOADS: what tap and packet may leave to the kernel."""
        ...

    @property
    def igbvf(self) -> QueuePair | None:
        """The VF's queue pair of igbvf, whose memory must outlive the port."""
        ...

    @property
    def virtio(self) -> VirtioPair | None:
        """The device's queue pair of virtio-net, whose memory must outlive the port."""
        ...

    @property
    def xdp(self) -> XdpQueues | None:
        """The interface's queues of xdp, which must outlive the port."""
        ...


class Port(Handle):
    """One queue pair's end at the VF.

    Args:
        spec: Its fd belongs to the port once the constructor has returned, to the caller if it
            raised.
        name: For messages.

    Raises:
        VhostPciError: It cannot be opened.
    """

    _free = "rk_port_close"

    def __init__(self, spec: PortSpec, name: str = "port") -> None:
        self.name = name
        self._paths = tuple(
            None if path is None else os.fsencode(path) for path in (spec.input, spec.output)
        )
        queue_pair = None if spec.igbvf is None else ctypes.pointer(igbvf_config(spec.igbvf))
        virtio_pair = None if spec.virtio is None else ctypes.pointer(virtio_config(spec.virtio))
        queues = None if spec.xdp is None else ctypes.pointer(xdp_config(spec.xdp))
        structure = PortConfigStructure(
            spec.kind.encode(),
            spec.fd,
            spec.frame_bytes,
            *self._paths,
            int(spec.offloads),
            queue_pair,
            virtio_pair,
            queues,
        )
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        handle = library().rk_port_open(ctypes.byref(structure), error, _ERROR_BYTES)
        if not handle:
            raise VhostPciError(
                "open", f"{name} ({spec.kind})", error.value.decode("utf-8", "replace")
            )
        super().__init__(handle)

    @property
    def rx_missed(self) -> int:
        """Frames the VF's side lost before the port saw them, as far as it tells."""
        return int(library().rk_port_rx_missed(self.handle))

    def send(self, data: bytes) -> bool:
        """Send a frame that is not VM1's, while no loop runs it; whether the port sent it."""
        buffer = ctypes.create_string_buffer(data, len(data))
        segment = Segment(ctypes.addressof(buffer), len(data))
        frame = Frame(ctypes.pointer(segment), 1, len(data))
        taken = library().rk_port_tx(self.handle, ctypes.byref(frame), 1)
        return bool(taken == 1 and frame.verdict == 0)

    def set_copy_below(self, size: int) -> None:
        """Copy frames of fewer bytes, and have the VF read others where they are, if it can.

        Before a loop runs it; at first 64.
        """
        library().rk_port_set_copy_below(self.handle, size)

    def set_direct(self, direct: bool) -> None:
        """Begin or end receiving into VM1's memory; the VF's receive queue was just restarted.

        No loop runs it.
        """
        library().rk_port_set_direct(self.handle, direct)

    def drop_rest(self) -> None:
        """Count the frames that it has as missed; the VF's receive queue was stopped.

        `set_direct` is due. No loop runs it.
        """
        library().rk_port_drop_rest(self.handle)

    @property
    def rx_direct(self) -> int:
        """Frames that the VF wrote to VM1's memory, not copied by us."""
        return int(library().rk_port_rx_direct(self.handle))

    @property
    def tx_held(self) -> int:
        """Frames that the VF read from VM1's memory, not copied by us."""
        return int(library().rk_port_tx_held(self.handle))
