"""A vhost-user back-end in pure Python that loops frames, and does wrong on demand.

It is the other side of the embedded VM1: its ring code is device_ring.py, written from the
specification, and what it does wrong is one entry of Fault, once, at the frame `fault_at`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Self

from tests.vm1.device_ring import WRITE, Chain, DeviceRing
from tests.vm1.fault import Fault
from tests.vm1.guest_memory import GuestMemory
from tests.vm1.packed_device_ring import PackedDeviceRing
from tools import vhost_user_abi as abi
from tools import vhost_user_wire as wire
from tools.vhost_user_abi import Feature, ProtocolFeature, Request

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from tests.vm1.inflight import InflightRegion

OFFERED = (
    Feature.VERSION_1
    | Feature.NET_MRG_RXBUF
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.NET_MQ
    | Feature.PROTOCOL_FEATURES
)
PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


class Backend:
    """Serves one front-end after another at path, on a thread, until left.

    batch: completes transmit chains a batch at a time, one used element each (2.7.9, 2.8.9).
    kick_after: asks for a kick by event index: for the first chain transmitted, and then each time
        for the one after so many. None: asks for none.
    inflight: offers INFLIGHT_SHMFD, and keeps its region there. Closed with the back-end.
    Leaving it raises what went wrong on the thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        offered: Feature = OFFERED,
        fault: Fault | None = None,
        fault_at: int = 100,
        batch: bool = False,
        kick_after: int | None = None,
        inflight: InflightRegion | None = None,
        connect: bool = False,
    ) -> None:
        self.offered = offered
        self.features = Feature(0)
        self.rings = [DeviceRing() for _ in range(128)]
        self.received = 0
        self.delivered = 0
        self._kick_after, self._until_kick = kick_after, 0
        self._inflight = inflight
        self._fault, self._fault_at = fault, fault_at
        self._batch = batch
        self._memory: GuestMemory | None = None
        # Filled by this thread, emptied by the peer's where frames cross.
        self._frames: deque[bytes] = deque()
        self._outgoing = self._frames
        self._held: Chain | None = None
        self._held_polls = 0
        self._doubling = False
        self._failure: BaseException | None = None
        self._path, self._connect = path, connect
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if not connect:
            self._socket.bind(str(path))
            self._socket.listen(1)
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._main)

    def send_to(self, other: Backend) -> None:
        """Before either starts: their front-ends' frames cross instead of coming back."""
        self._outgoing, other._outgoing = other._frames, self._frames

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)
        self._socket.close()
        self._reset()
        if self._inflight is not None:
            self._inflight.close()
        if self._failure is not None and error is None:
            raise self._failure

    # ---- vhost-user -----------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            if self._connect:
                self._serve(self._dial())
                return
            while self._stop not in _readable(self._socket.fileno(), self._stop, None):
                self._serve(self._socket.accept()[0])
        except BaseException as failure:  # noqa: BLE001 - handed to the test by __exit__
            self._failure = failure

    def _dial(self) -> socket.socket:
        self._socket.connect(str(self._path))
        return self._socket.dup()

    def _serve(self, peer: socket.socket) -> None:
        self._reset()
        with peer:
            while True:
                message, busy = None, self._poll_rings()
                ready = _readable(peer.fileno(), self._stop, 0 if busy else 0.0005)
                if self._stop in ready:
                    return
                if ready:
                    with contextlib.suppress(ConnectionResetError):
                        message = wire.receive(peer)
                    if message is None or not self._answer(peer, message):
                        return

    def _reset(self) -> None:
        for ring in self.rings:
            ring.close()
        self.rings = [DeviceRing() for _ in self.rings]
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _answer(self, peer: socket.socket, message: wire.Message) -> bool:
        """Do what a message says; False to hang up."""
        request = Request(message.request)
        if request == Request.GET_INFLIGHT_FD:
            assert self._inflight is not None
            wire.send(peer, self._inflight.make(message))
            return True
        reply = self._query(request, message.payload)
        if reply is None:
            self._command(request, message)
            if self._fault == Fault.HANG_UP and request == Request.SET_VRING_ADDR:
                return False
            refused = self._fault == Fault.REFUSE_MEMORY and request == Request.SET_MEM_TABLE
            reply = abi.U64.pack(refused) if message.need_reply else None
        if reply is not None:
            wire.send(peer, message.reply(reply))
        return True

    def _query(self, request: Request, payload: bytes) -> bytes | None:
        if request == Request.GET_FEATURES:
            return abi.U64.pack(self.offered)
        if request == Request.GET_PROTOCOL_FEATURES:
            inflight = ProtocolFeature.INFLIGHT_SHMFD if self._inflight else 0
            return abi.U64.pack(PROTOCOL | inflight)
        if request == Request.GET_QUEUE_NUM:
            return abi.U64.pack(8)
        return self._stop_ring(payload) if request == Request.GET_VRING_BASE else None

    def _command(self, request: Request, message: wire.Message) -> None:
        if request == Request.SET_FEATURES:
            self.features = Feature(abi.U64.unpack(message.payload)[0])
            assert not self.features & ~self.offered
            kind = PackedDeviceRing if self.features & Feature.RING_PACKED else DeviceRing
            assert not any(ring.running for ring in self.rings)
            for ring in self.rings:
                ring.close()
            self.rings = [kind() for _ in self.rings]
        elif request == Request.SET_MEM_TABLE:
            assert self._memory is None
            self._memory = GuestMemory(message)
        elif request == Request.SET_INFLIGHT_FD:
            assert self._inflight is not None
            self._inflight.take(message)
        elif request in {Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR}:
            index = abi.U64.unpack(message.payload)[0] & abi.EVENT_INDEX_MASK
            name = request.name.removeprefix("SET_VRING_").lower()
            self.rings[index].set_fd(name, message.fds[0])
        elif request.name.startswith("SET_VRING"):
            self._set_vring(request, message.payload)
        else:
            assert request in {Request.SET_OWNER, Request.SET_PROTOCOL_FEATURES}

    def _set_vring(self, request: Request, payload: bytes) -> None:
        ring = self.rings[abi.VRING_STATE.unpack_from(payload)[0]]
        value = abi.VRING_STATE.unpack_from(payload)[1]
        if request == Request.SET_VRING_NUM:
            ring.size = value
        elif request == Request.SET_VRING_BASE:
            ring.set_base(value)
        elif request == Request.SET_VRING_ENABLE:
            ring.enabled = bool(value)
        else:
            assert request == Request.SET_VRING_ADDR
            assert self._memory is not None
            _, _, desc, used, avail, _ = abi.VRING_ADDRESS.unpack(payload)
            ring.desc = self._memory.bus_of_user(desc)
            ring.avail = self._memory.bus_of_user(avail)
            ring.used = self._memory.bus_of_user(used)
            ring.event_idx = bool(self.features & Feature.EVENT_IDX)
            ring.suppress_kicks(self._memory)
            if self._kick_after is not None and ring is self.rings[1]:
                ring.want_kick(self._memory, 0)

    def _stop_ring(self, payload: bytes) -> bytes:
        index = abi.VRING_STATE.unpack(payload)[0]
        ring = self.rings[index]
        base = ring.base() ^ (self._fault == Fault.WRONG_BASE and index == 1)
        ring.close()
        return abi.VRING_STATE.pack(index, base)

    # ---- rings ----------------------------------------------------------------------------------

    @property
    def _header_bytes(self) -> int:
        """virtio 1.3, 5.1.6.1."""
        return 12 if self.features & (Feature.VERSION_1 | Feature.NET_MRG_RXBUF) else 10

    def _poll_rings(self) -> bool:
        memory, busy = self._memory, False
        if memory is None:
            return False
        for receive, transmit in zip(self.rings[::2], self.rings[1::2], strict=True):
            if transmit.running:
                busy |= self._transmit(memory, transmit)
            if receive.running:
                busy |= self._deliver(memory, receive)
        return busy

    def _faulty(self, fault: Fault) -> bool:
        """Whether this is the frame at which to do wrong, in this way."""
        if self._fault != fault or self.received < self._fault_at:
            return False
        self._fault = None
        return True

    def _transmit(self, memory: GuestMemory, ring: DeviceRing) -> bool:
        chains: list[Chain] = []
        while len(chains) < 32 and (chain := ring.take(memory)) is not None:
            assert all(not flags & WRITE for _, _, flags in chain.buffers), "2.7.4.2"
            data = b"".join(memory.read(bus, length) for bus, length, _ in chain.buffers)
            assert not any(data[10 : self._header_bytes]), "5.1.6.2.1: num_buffers is 0"
            self._outgoing.extend(self.accept(data[:10], data[self._header_bytes :]))
            self.received += 1
            chains.append(chain)
            self._ask_for_kick(memory, ring)
            self._write_where_forbidden(memory, ring, chain)
        if self._batch and chains:
            ring.put_used(memory, chains[-1].head, 0)
            ring.publish(memory, len(chains))
        elif chains:
            ring.loses_call |= self._faulty(Fault.LOSE_TRANSMIT_CALL)
            self._use_transmitted(memory, ring, self._reordered(chains))
        return bool(chains)

    def accept(self, header: bytes, frame: bytes) -> list[bytes]:
        """What a transmitted frame becomes: frames to return, each behind ten bytes of header."""
        assert header == bytes(10), "5.1.6.2.1: nothing was negotiated"
        return [header + frame]

    def _ask_for_kick(self, memory: GuestMemory, ring: DeviceRing) -> None:
        if self._kick_after is None:
            return
        if self._until_kick == 0:
            self._until_kick = self._kick_after + 1
            ring.want_kick(memory, self._kick_after)
        self._until_kick -= 1

    def _reordered(self, chains: list[Chain]) -> list[Chain]:
        """Holds one chain back until the driver, at its next but one turn, has seen others used."""
        if self._faulty(Fault.OUT_OF_ORDER):
            self._held, self._held_polls = chains[0], 4
            chains = chains[1:]
        self._held_polls -= 1
        if self._held is not None and self._held_polls == 0:
            chains, self._held = [*chains, self._held], None
        return chains

    def _write_where_forbidden(self, memory: GuestMemory, ring: DeviceRing, chain: Chain) -> None:
        if self._faulty(Fault.SIGNAL_ERROR):
            os.eventfd_write(ring.fds["err"], 1)
        if self._faulty(Fault.WRITE_READABLE):
            bus, length, _ = chain.buffers[-1]
            memory.write(bus + length - 1, bytes([memory.read(bus + length - 1, 1)[0] ^ 1]))
        if self._faulty(Fault.WRITE_DESC):
            memory.write(chain.last_at + 8, b"\1\0\0\0")

    def _use_transmitted(self, memory: GuestMemory, ring: DeviceRing, chains: list[Chain]) -> None:
        passed_over: Chain | None = None
        for chain, following in zip(chains, [*chains[1:], None], strict=True):
            if chain is passed_over:
                continue
            if following is not None and self._faulty(Fault.STALE_ID):
                ring.put_used(memory, chain.head, 0)
                ring.put_used(memory, chain.head, 0, ahead=1)
                ring.publish(memory, 2)
                passed_over = following
                continue
            if self._doubling:
                # In the place of the chain that was passed over, so that used.idx can be right.
                ring.use(memory, chain.head, 0)
                self._doubling = False
            if self._faulty(Fault.DUPLICATE_ID):
                self._doubling = True
            elif self._faulty(Fault.BAD_ID):
                ring.use(memory, ring.size + 7, 0)
            elif self._faulty(Fault.TRANSMIT_LENGTH):
                ring.use(memory, chain.head, 1)
            elif self._faulty(Fault.INDEX_JUMP):
                ring.jump(memory, chain.head)
            else:
                ring.use(memory, chain.head, 0)

    def _deliver(self, memory: GuestMemory, ring: DeviceRing) -> bool:
        busy = False
        while self._frames and (chain := ring.take(memory)) is not None:
            if self._faulty(Fault.LOSE):
                self._frames.popleft()
            if self._faulty(Fault.REPEAT) and self._frames:
                self._frames.appendleft(self._frames[0])
            if len(self._frames) > 1 and self._faulty(Fault.SWAP):
                self._frames[0], self._frames[1] = self._frames[1], self._frames[0]
            if self._faulty(Fault.FOREIGN):
                self._frames.appendleft(bytes(10) + b"\xff" * 12 + b"\x08\x06" + bytes(46))
            if not self._frames:
                ring.give_back(chain)
                break
            ring.loses_call |= self._faulty(Fault.LOSE_CALL)
            self._fill(memory, ring, chain, self._frames.popleft())
            busy = True
        return busy

    def _fill(self, memory: GuestMemory, ring: DeviceRing, first: Chain, frame: bytes) -> None:
        """Write a frame into as many chains as it takes (5.1.6.4)."""
        header, frame = frame[:10], self._spoil(frame[10:])
        chains, need = [first], self._header_bytes + len(frame)
        while sum(chain.length for chain in chains) < need:
            assert self.features & Feature.NET_MRG_RXBUF
            further = ring.take(memory)
            assert further is not None, "a receive ring without room for the window"
            chains.append(further)
        data = self._header(header, len(chains)) + frame
        for number, chain in enumerate(chains):
            piece, data = data[: chain.length], data[chain.length :]
            chain.scatter(memory, piece)
            self._write_beside(memory, chain, len(piece))
            ring.put_used(memory, chain.head, self._used_length(chain, len(piece)), number)
        ring.publish(memory, len(chains))
        self.delivered += 1

    def _spoil(self, frame: bytes) -> bytes:
        if self._faulty(Fault.CORRUPT):
            return frame[:-1] + bytes([frame[-1] ^ 0x10])
        return frame[:-1] if self._faulty(Fault.TRUNCATE) else frame

    def _header(self, header: bytes, buffers: int) -> bytes:
        if self._faulty(Fault.HEADER_FLAGS):
            return (b"\1" + bytes(9) + buffers.to_bytes(2, "little"))[: self._header_bytes]
        if self._faulty(Fault.NO_BUFFERS):
            buffers = 0
        elif self._faulty(Fault.MISSING_BUFFER):
            buffers += 1
        return (header + buffers.to_bytes(2, "little"))[: self._header_bytes]

    def _used_length(self, chain: Chain, written: int) -> int:
        if self._faulty(Fault.LONG_LENGTH):
            return chain.length + 1
        return self._header_bytes if self._faulty(Fault.SHORT_LENGTH) else written

    def _write_beside(self, memory: GuestMemory, chain: Chain, written: int) -> None:
        begin, length = chain.buffers[0][0], chain.length
        if self._faulty(Fault.WRITE_BEHIND):
            memory.write(begin + length, b"!")
        if self._faulty(Fault.WRITE_BEFORE):
            memory.write(begin - 1, b"!")
        if self._faulty(Fault.WRITE_IN_BUFFER):
            memory.write(begin + written, b"!")


def _readable(one: int, other: int, timeout_s: float | None) -> list[int]:
    return select.select([one, other], [], [], timeout_s)[0]
