"""`VirtioNetVf`: the VF behind `--vf virtio-net:ADDRESS[,MAC]`.

The ladder of `open`: container and function (guest/) -> reset and features -> DMA memory -> queues
enabled -> started -> addresses and queue pairs by the control queue. `close` takes it back in
reverse: a reset stops the device before its memory goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import struct
from typing import TYPE_CHECKING

from driver.interrupts import Interrupts
from driver.mac_address import address_error
from driver.passthrough import PassthroughVf
from driver.software_vf.vf import PortSpec
from driver.virtio_net.control import Command, ControlQueue
from driver.virtio_net.device import NO_VECTOR, Device
from driver.virtio_net.features import Feature
from driver.virtio_net.queue import FRAME_OVERHEAD, MTU_UNTOLD, VirtioPair, plan
from driver.virtio_net.report import Watch
from guest.dma import DmaMemory, IovaSpace
from guest.errors import VhostPciError
from guest.function import Area

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driver.virtio_net.capabilities import Place
    from driver.virtio_net.queue import Layout, Plan, Queue
    from guest.function import Function
    from guest.mapping import Mapping

_log = logging.getLogger("pmd")

VENDOR = 0x1AF4
DEVICE = 0x1041  # 4.1.2: 0x1040 and the device's type, 1
TRANSITIONAL_DEVICE = 0x1000


class VirtioNetVf(PassthroughVf):
    """A virtio network function, with as many queue pairs as it has.

    It writes to VM1's memory where a queue of it can be stopped by itself (VIRTIO_F_RING_RESET):
    else only a reset of all that it does would take that memory back from it.
    """

    kind = "virtio-net"
    _device: Device | None = None
    _interrupts: Interrupts | None = None
    _watches: Sequence[Watch] = ()
    _receivers: Sequence[Queue] = ()  # by pair

    def open(self, queue_pairs: int) -> list[PortSpec]:
        """See `Vf.open`; the device is reset first, whatever state it was left in."""
        with contextlib.ExitStack() as undo:
            opened = self._open_function(self._address)
            function = opened.function
            undo.callback(function.close)
            device = self._reset(function, queue_pairs)
            planned = plan(device, queue_pairs)
            space = IovaSpace(opened.iova_ranges)
            memory = undo.enter_context(DmaMemory(function, space, planned.memory_bytes))
            undo.callback(self.unshare)
            interrupts = undo.enter_context(Interrupts(function, queue_pairs))
            undo.callback(_stop, device)
            layout = planned.lay_out(memory)
            registers = undo.enter_context(_map_notify(function, device.structures.notify))
            notify = {
                queue.number: device.enable_queue(
                    queue.number, queue.areas, _vector(interrupts, queue)
                )
                for queue in layout.all
            }
            device.start()
            packed = Feature.RING_PACKED in device.features
            self.mode = "packed rings" if packed else "split rings"
            _log.info("VF %s: %s", self.spec, self.mode)
            self._command(function, device, layout, notify)
            self._device, self._interrupts = device, interrupts
            self._receivers = layout.queues[::2]
            self.writes_vm1 = Feature.RING_RESET in device.features
            self._opened = function, space
            undo.callback(self._forget)
            self._see_link(up=device.link_up(), first=True)
            self._left = undo.pop_all()
        self._watches = [Watch() for _ in range(queue_pairs)]
        begin = registers.address - _page_of(device.structures.notify.offset)
        at = {number: begin + offset for number, offset in notify.items()}
        return [self._port_spec(device, planned, layout, at, n) for n in range(queue_pairs)]

    def _reset(self, function: Function, queue_pairs: int) -> Device:
        """The device, with its features agreed on."""
        found = function.identity()
        modern = found.device == DEVICE
        transitional = found.device == TRANSITIONAL_DEVICE and found.subsystem_device == 1
        if found.vendor != VENDOR or not (modern or transitional):
            cause = f"it is {found.vendor:04x}:{found.device:04x}, no virtio network function"
            raise self._error(cause)
        device = Device(function)
        device.reset()
        device.negotiate()
        self.queue_pairs_max = device.queue_pairs_max()
        if queue_pairs > self.queue_pairs_max:
            raise self._error(f"it has {self.queue_pairs_max} queue pairs, not {queue_pairs}")
        return device

    def _port_spec(
        self, device: Device, planned: Plan, layout: Layout, notify: dict[int, int], number: int
    ) -> PortSpec:
        rx, tx = layout.queues[2 * number : 2 * number + 2]
        pair = VirtioPair(
            rx=rx,
            tx=tx,
            rx_notify=notify[rx.number],
            tx_notify=notify[tx.number],
            features=device.features,
            buffer_bytes=planned.buffer_bytes,
            frame_bytes_max=FRAME_OVERHEAD + (device.mtu() or MTU_UNTOLD),
            link_up=ctypes.addressof(self._link_up),
            report=ctypes.addressof(self._watches[number].report),
            windows=self._windows.address,
            wake_fd=self._wake_fd(device, rx),
        )
        return PortSpec(self.kind, virtio=pair)

    def _wake_fd(self, device: Device, queue: Queue) -> int:
        vector = _vector(self._interrupts, queue)
        # The device may have no resources for it.
        if self._interrupts is None or device.vector_of(queue.number) != vector:
            return -1
        return self._interrupts.fd(vector)

    def _command(
        self, function: Function, device: Device, layout: Layout, notify: dict[int, int]
    ) -> None:
        """Make it receive for VM1, and by all queue pairs that there are ports for."""
        control = None
        if layout.control is not None:
            number = layout.control.number

            def ring() -> None:
                bar, data = device.structures.notify.bar, struct.pack("<H", number)
                function.write(bar, notify[number], data)

            control = ControlQueue(device.name, layout.control, ring, device.order)
        self._set_address(device, control)
        pairs = len(layout.queues) // 2
        if control is None or not device.features & Feature.MQ:
            return
        if not control.request(Command.SET_QUEUE_PAIRS, struct.pack("<H", pairs)):
            raise self._error(f"it does not turn {pairs} queue pairs on")

    def _set_address(self, device: Device, control: ControlQueue | None) -> None:
        given = device.mac()
        mac = self._mac or given
        if mac is None or (wrong := address_error(mac)):
            cause = (
                f"it has no MAC address of its own ({wrong})" if mac else "it tells no MAC address"
            )
            raise self._error(cause, f"name VM1's: {self.kind}:{self._address},MAC")
        has_it = mac == given
        if not has_it and control is not None and device.features & Feature.CTRL_MAC_ADDR:
            has_it = control.request(Command.SET_ADDRESS, mac)
        receives_all = False
        if control is not None and device.features & Feature.CTRL_RX:
            receives_all = control.request(Command.PROMISCUOUS, bytes([not has_it])) and not has_it
            if not control.request(Command.ALL_MULTICAST, b"\1"):
                _log.warning("VF %s: the device does not let it have all multicast", self.spec)
        if not has_it and not receives_all:
            remedy = f"give VM1 {given.hex(':')}" if given else ""
            raise self._error(f"the device does not let it have {mac.hex(':')}", remedy)
        text = "all addresses" if receives_all else f"{mac.hex(':')}, which must be VM1's address"
        _log.info("VF %s: receives for %s", self.spec, text)

    def look(self) -> str:
        """See `Vf.look`."""
        device = self._device
        if device is None:
            return ""
        try:
            if trouble := self._wanted_back() or device.trouble():
                return trouble
            self._see_link(up=device.link_up())
        except VhostPciError as error:
            return error.cause
        up = bool(self._link_up.value)
        return next(filter(None, [watch.trouble(link_up=up) for watch in self._watches]), "")

    def stop_receiving(self, pair: int) -> None:
        """See `Vf.stop_receiving`."""
        if self._device is not None:
            self._device.reset_queue(self._receivers[pair].number)

    def start_receiving(self, pair: int) -> None:
        """See `Vf.start_receiving`."""
        if self._device is not None:
            queue = self._receivers[pair]
            queue.areas.clear()
            vector = _vector(self._interrupts, queue)
            self._device.enable_queue(queue.number, queue.areas, vector)

    def _forget(self) -> None:
        self._device = self._interrupts = None
        self._opened = None


def _vector(interrupts: Interrupts | None, queue: Queue) -> int:
    """For `Device.enable_queue`: vector n is queue pair n's, to receive."""
    pair, sends = divmod(queue.number, 2)
    # The control queue's number is even, too, and follows those of all pairs.
    receives = not sends and interrupts is not None and pair < len(interrupts)
    return pair if receives else NO_VECTOR


def _page_of(offset: int) -> int:
    return offset // mmap.PAGESIZE * mmap.PAGESIZE


def _map_notify(function: Function, place: Place) -> Mapping:
    """The pages of the notification structure."""
    begin = _page_of(place.offset)
    end = _page_of(place.offset + place.size + mmap.PAGESIZE - 1)
    return function.map_area(place.bar, Area(begin, end - begin), writable=True)


def _stop(device: Device) -> None:
    """Before the memory goes. A device that is gone touches none."""
    with contextlib.suppress(VhostPciError):
        device.reset()
