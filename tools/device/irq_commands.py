"""DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS of a vfio-user client."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from guest.vfio_user_abi import IrqFlag, IrqInfo, IrqSet, IrqSetFlag
from tools.device.interrupts import VECTORS

if TYPE_CHECKING:
    from tools.device.interrupts import Interrupts
    from tools.device.vfio_user_connection import Message


def irq_info(message: Message) -> bytes:
    """Payload of the reply to DEVICE_GET_IRQ_INFO; OSError EINVAL for an index there is not."""
    request = IrqInfo.unpack(message.payload)
    if request.index not in VECTORS or request.argsz < IrqInfo.LAYOUT.size:
        raise OSError(errno.EINVAL, f"interrupt index {request.index}")
    count = VECTORS[request.index]
    return IrqInfo(
        IrqInfo.LAYOUT.size, IrqFlag.EVENTFD if count else 0, request.index, count
    ).pack()


def set_irqs(interrupts: Interrupts, message: Message) -> None:
    """Do what DEVICE_SET_IRQS says. OSError EINVAL for all that is not one of the forms below.

    DATA_NONE | TRIGGER, count 0: disable the index. DATA_EVENTFD | TRIGGER: assign the message's
    descriptors, as many as count; without descriptors, take those of the range away.
    DATA_NONE | TRIGGER and DATA_BOOL | TRIGGER: signal vectors, as a test of the wiring.
    """
    request = IrqSet.unpack(message.payload)
    index, start, count = request.index, request.start, request.count
    if index not in VECTORS or start + count > VECTORS[index]:
        raise OSError(errno.EINVAL, f"vectors {start} to {start + count} of interrupt {index}")
    if request.argsz < IrqSet.LAYOUT.size:
        raise OSError(errno.EINVAL, f"argsz {request.argsz}")
    data = message.payload[IrqSet.LAYOUT.size :]
    trigger = IrqSetFlag.ACTION_TRIGGER
    form = (request.flags, len(data), bool(message.fds))
    if form == (IrqSetFlag.DATA_EVENTFD | trigger, 0, bool(message.fds)):
        _set_eventfds(interrupts, request, message)
    elif form == (IrqSetFlag.DATA_NONE | trigger, 0, False) and not count:
        interrupts.release(index)
    elif form == (IrqSetFlag.DATA_NONE | trigger, 0, False):
        _trigger(interrupts, request, b"\1" * count)
    elif form == (IrqSetFlag.DATA_BOOL | trigger, count, False):
        _trigger(interrupts, request, data)
    else:
        raise OSError(errno.EINVAL, f"flags {request.flags:#x}, {len(data)} bytes of data")


def _trigger(interrupts: Interrupts, request: IrqSet, values: bytes) -> None:
    for vector, value in enumerate(values, request.start):
        if value:
            interrupts.signal(request.index, vector)


def _set_eventfds(interrupts: Interrupts, request: IrqSet, message: Message) -> None:
    if not request.count or len(message.fds) not in (0, request.count):
        raise OSError(errno.EINVAL, f"{len(message.fds)} eventfds for {request.count} vectors")
    if not message.fds:
        interrupts.release(request.index, request.start, request.count)
        return
    try:
        interrupts.assign(request.index, request.start, message.fds)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from error
    message.take_fds()
