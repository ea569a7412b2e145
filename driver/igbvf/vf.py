"""`IgbVf`: the VF behind `--vf igbvf:ADDRESS[,MAC]`.

The ladder of `open`: container and function (guest/) -> BAR 0 mapped -> reset and addresses by the
mailbox -> DMA memory -> queue pair enabled. `close` takes it back in reverse.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from typing import TYPE_CHECKING

from driver.igbvf.device import (
    FCS_BYTES,
    FRAME_BYTES_MAX,
    FRAME_OVERHEAD,
    RECEIVE_VECTOR,
    Counters,
    Device,
)
from driver.igbvf.queue import BUFFER_BYTES, MEMORY_BYTES, QueuePair, lay_out
from driver.igbvf.registers import BAR_SIZE, RDT, TDT, VTEIMC, VTEIMS
from driver.igbvf.report import Trouble, Watch
from driver.interrupts import Interrupts
from driver.mac_address import address_error
from driver.passthrough import OpenFunction, PassthroughVf, open_by_vfio
from driver.software_vf.vf import PortSpec
from guest.dma import DmaMemory, IovaSpace
from guest.errors import VhostPciError
from guest.function import Area, Region

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guest.function import Function

_log = logging.getLogger("pmd")

VENDOR = 0x8086
DEVICES = {0x10CA: "82576 VF", 0x152D: "82576 VF", 0x1520: "I350 VF", 0x152F: "I350 VF"}


MTU = 1500


class IgbVf(PassthroughVf):
    """An SR-IOV VF of an Intel 82576 or I350, with one queue pair; its PF may give it its MAC.

    Args:
        spec: The user's words.
        address: See `PassthroughVf`.
        mac: See `PassthroughVf`.
        open_function: See `PassthroughVf`.
        mtu: Longer frames are not received. It bounds what the VF writes to VM1's buffers, so that
            those of an ordinary driver (1522 bytes of room) will do.
        vlans: Numbers of the VLANs whose tagged frames it sends and receives.
    """

    kind = "igbvf"
    queue_pairs_max = 1  # an I350's VF has no more; an 82576's second one receives nothing
    writes_vm1 = True

    _device: Device | None = None
    _watch: Watch | None = None

    def __init__(
        self,
        spec: str,
        address: str,
        mac: bytes | None = None,
        open_function: Callable[[str], OpenFunction] = open_by_vfio,
        *,
        mtu: int = MTU,
        vlans: Sequence[int] = (),
    ) -> None:
        super().__init__(spec, address, mac, open_function)
        self._frame_bytes = mtu + FRAME_OVERHEAD + FCS_BYTES
        self._vlans = tuple(vlans)
        self._at_fault = False
        self._missed = 0
        self._counted = Counters()  # by the devices of before

    def open(self, queue_pairs: int) -> list[PortSpec]:
        """See `Vf.open`; the VF is reset first, whatever state it was left in."""
        if queue_pairs > self.queue_pairs_max:
            raise self._error(f"it has {self.queue_pairs_max} queue pair, not {queue_pairs}")
        with contextlib.ExitStack() as undo:
            opened = self._open_function(self._address)
            undo.callback(opened.function.close)
            self._check_identity(opened.function)
            area = Area(0, BAR_SIZE)
            bar = opened.function.map_area(Region.BAR0, area, writable=True)
            undo.callback(bar.close)
            device = Device(opened.function)
            self._set_addresses(device)
            direct_bytes = self._agree_on_size(device)
            space = IovaSpace(opened.iova_ranges)
            memory = undo.enter_context(DmaMemory(opened.function, space, MEMORY_BYTES))
            rx, tx = lay_out(memory)
            undo.callback(self.unshare)
            interrupts = undo.enter_context(Interrupts(opened.function, RECEIVE_VECTOR + 1))
            undo.callback(_stop, device)
            device.use_interrupts()
            device.start_queue(0, rx, tx)
            self._device = device
            self._opened = opened.function, space
            undo.callback(self._forget)
            self._see_link(up=device.link_up(), first=True)
            self._left = undo.pop_all()
        self._watch = Watch(rx, self._frame_bytes)
        pair = QueuePair(
            rx=rx,
            tx=tx,
            rx_tail=bar.address + RDT.at(0),
            tx_tail=bar.address + TDT.at(0),
            buffer_bytes=BUFFER_BYTES,
            frame_bytes_max=FRAME_BYTES_MAX,
            link_up=ctypes.addressof(self._link_up),
            windows=self._windows.address,
            report=ctypes.addressof(self._watch.report),
            direct_bytes=0 if self._at_fault else direct_bytes,
            interrupts_on=bar.address + VTEIMS.at(),
            interrupts_off=bar.address + VTEIMC.at(),
            wake_fd=interrupts.fd(RECEIVE_VECTOR),
        )
        return [PortSpec(self.kind, igbvf=pair)]

    def _check_identity(self, function: Function) -> None:
        found = function.identity()
        if found.vendor != VENDOR or found.device not in DEVICES:
            cause = f"it is {found.vendor:04x}:{found.device:04x}, no VF of an 82576 or I350"
            raise self._error(cause)

    def _set_addresses(self, device: Device) -> None:
        given = device.reset()
        mac = self._mac or given
        wrong = address_error(mac)
        if wrong and self._mac is None:
            remedy = f"name VM1's: {self.kind}:{self._address},MAC; or: ip link set PF vf N mac MAC"
            raise self._error(f"its PF gave it no MAC address ({wrong})", remedy)
        if mac != given:
            device.set_address(mac)
        if not device.set_multicast():
            _log.warning("VF %s: its PF does not let it have all multicast", self.spec)
        device.join_vlans(self._vlans)
        _log.info("VF %s: receives for %s, which must be VM1's address", self.spec, mac.hex(":"))

    def _agree_on_size(self, device: Device) -> int:
        """The most that the VF writes to a buffer of VM1's: `QueuePair.direct_bytes`."""
        if not device.set_frame_size(self._frame_bytes):
            text = "VF %s: its PF does not keep frames of more than %d bytes from it"
            _log.warning(text, self.spec, self._frame_bytes)
            return BUFFER_BYTES
        # A longer frame would be spread over several buffers, and VM1 expects a header in each.
        return self._frame_bytes if self._frame_bytes <= BUFFER_BYTES else 0

    def look(self) -> str:
        """See `Vf.look`; a VF that wrote more than it may receives by copies from then on."""
        device, watch = self._device, self._watch
        if device is None or watch is None:
            return ""
        self._at_fault |= watch.report.trouble == Trouble.OVERRUN
        try:
            if trouble := self._wanted_back() or device.trouble(0):
                return trouble
            self._see_link(up=device.link_up())
            trouble = watch.trouble(device, link_up=bool(self._link_up.value))
        except VhostPciError as error:
            return error.cause
        if trouble:
            self._missed += watch.unreported
        return trouble

    def missed(self, pair: int) -> int:  # noqa: ARG002 - it has one
        """See `Vf.missed`."""
        return self._missed

    def stop_receiving(self, pair: int) -> None:
        """See `Vf.stop_receiving`."""
        if self._device is not None:
            self._device.stop_receive(pair)

    def start_receiving(self, pair: int) -> None:
        """See `Vf.start_receiving`."""
        if self._device is not None:
            self._device.start_receive(pair)

    def counters(self) -> dict[str, int]:
        """See `Vf.counters`: the VF's registers, frames in and out, bytes with FCS."""
        device = self._device
        if device is None:
            return self._counted._asdict()
        try:
            now = device.counters()
        except VhostPciError:
            now = device.counted
        return self._with_former(now)._asdict()

    def _with_former(self, now: Counters) -> Counters:
        return Counters(*(a + b for a, b in zip(self._counted, now, strict=True)))

    def _forget(self) -> None:
        if self._device is not None:
            with contextlib.suppress(VhostPciError):
                self._device.counters()
            self._counted = self._with_former(self._device.counted)
        self._device = None
        self._opened = None


def _stop(device: Device) -> None:
    """Before the memory goes. A VF that is gone or in reset touches none."""
    with contextlib.suppress(VhostPciError):
        device.halt(0)
