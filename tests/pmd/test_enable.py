"""Queue pairs that are switched on and off (`ethtool -L`) while others carry frames."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from typing import TYPE_CHECKING

from guest.closing import Closing
from tests.pmd.processes import Device, pmd
from tests.pmd.wait import wait_for
from tools.vhost_user_abi import Request
from tools.vm1.frontend import FrontEnd
from tools.vm1.options import MemoryOptions, Mode, Options, RingOptions, Socket, TrafficOptions
from tools.vm1.rings import Rings

if TYPE_CHECKING:
    from pathlib import Path

    from tools.vm1.rings import Ring

PAIRS = 16
HEADER = bytes(12)
BURST = 32
_INDEX, _ENTRIES = 2, 4  # in avail and used areas (virtio 1.3, 2.7.6, 2.7.8)


def _index(area: int) -> int:
    return ctypes.c_uint16.from_address(area + _INDEX).value


class Pair:
    """One queue pair, driven by hand. Sends numbered frames and takes what comes back."""

    def __init__(self, receive: Ring, transmit: Ring) -> None:
        self._rx, self._tx = receive, transmit
        self._sent = self._taken = 0
        for head in range(receive.shape.size):
            self._post(receive, head, head, bytes(64), flags=2)
        ctypes.c_uint16.from_address(receive.avail.host + _INDEX).value = receive.shape.size

    def _post(self, ring: Ring, place: int, head: int, data: bytes, flags: int = 0) -> None:
        slot = ring.slots[head]
        ctypes.memmove(slot.host, data, len(data))
        descriptor = struct.pack("<QIHH", slot.bus, 256 if flags else len(data), flags, 0)
        ctypes.memmove(ring.desc.host + 16 * head, descriptor, 16)
        entry = ring.avail.host + _ENTRIES + 2 * (place % ring.shape.size)
        ctypes.c_uint16.from_address(entry).value = head

    def send(self, count: int) -> None:
        """Frames with the next numbers."""
        for _ in range(count):
            data = HEADER + struct.pack("<60xI", self._sent)
            self._post(self._tx, self._sent, self._sent % self._tx.shape.size, data)
            self._sent += 1
        address = self._tx.avail.host + _INDEX
        ctypes.c_uint16.from_address(address).value = self._sent & 0xFFFF

    def all_sent(self) -> bool:
        """Whether every buffer came back to us."""
        return _index(self._tx.used.host) == self._sent & 0xFFFF

    def take(self) -> list[int]:
        """The numbers of the frames that came since the last call; their buffers are posted anew.

        A frame carries its number behind 60 bytes.
        """
        found = []
        ring = self._rx
        while self._taken & 0xFFFF != _index(ring.used.host):
            entry = ring.used.host + _ENTRIES + 8 * (self._taken % ring.shape.size)
            head, length = struct.unpack("<II", ctypes.string_at(entry, 8))
            assert length == len(HEADER) + 64
            frame = ctypes.string_at(ring.slots[head].host + len(HEADER) + 60, 4)
            found.append(struct.unpack("<I", frame)[0])
            self._post(ring, self._taken + ring.shape.size, head, bytes(256), flags=2)
            self._taken += 1
            address = ring.avail.host + _INDEX
            posted = self._taken + ring.shape.size
            ctypes.c_uint16.from_address(address).value = posted & 0xFFFF
        return found


class Vm1(Closing):
    """PAIRS queue pairs, all started and enabled."""

    def __init__(self, path: Path) -> None:
        options = Options(
            mode=Mode.IDLE,
            socket=Socket(path, listen=False),
            memory=MemoryOptions(),
            rings=RingOptions(pairs=PAIRS, size=128, event_idx=False, in_order=False),
            traffic=TrafficOptions(),
        )
        self._rings = Rings(options)
        rings = self._rings.rings
        self.pairs = [Pair(*rings[2 * n : 2 * n + 2]) for n in range(PAIRS)]
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        self._front_end = FrontEnd(connection, str(path))
        self._front_end.negotiate(options.rings)
        self._front_end.share_memory(self._rings.memory)
        self._front_end.start(rings, [0] * len(rings))

    def enable(self, pair: int, value: int) -> None:
        """VIRTIO_NET_CTRL_MQ's way to the device, both rings."""
        for index in (2 * pair, 2 * pair + 1):
            self.enable_ring(index, value)

    def enable_ring(self, index: int, value: int) -> None:
        self._front_end._set_state(Request.SET_VRING_ENABLE, index, value)

    def close(self) -> None:
        self._front_end.close()
        self._rings.close()


def test_pairs_come_and_go_under_traffic(tmp_path: Path) -> None:
    """No frame of a pair that stays is lost, doubled or late, whatever the other fifteen do."""
    arguments = ("run", "--json", "--lcores", "0-1", "--vf", "loop")
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(tmp_path, "a", "--queue-pairs", str(PAIRS)))
        daemon = stack.enter_context(pmd(*arguments, "--device", device.name))
        vm1 = stack.enter_context(Vm1(device.vhost_user))
        steady, arrived, rounds = vm1.pairs[0], [], 0
        for other in range(1, PAIRS):
            for value in (0, 1):
                steady.send(BURST)
                vm1.enable(other, value)  # answered only once the driver has followed
                arrived += steady.take()
                rounds += 1
                wait_for(steady.all_sent, "the steady pair")
        sent = rounds * BURST

        def all_arrived() -> bool:
            arrived.extend(steady.take())
            return len(arrived) >= sent

        wait_for(all_arrived, "the steady pair's frames")
        assert arrived == list(range(sent))
        for pair in vm1.pairs[1:]:  # and each of the others carries frames again
            pair.send(BURST)
            wait_for(pair.all_sent, "a pair that was off")
            got: list[int] = []
            wait_for(lambda got=got, pair=pair: got.extend(pair.take()) or len(got) == BURST, "it")  # type: ignore[misc]
            assert got == list(range(BURST))
        assert daemon.stop() == 0
        (channel,) = daemon.json()["channels"]
        assert channel["reconfigurations"] >= 2 * (PAIRS - 1)
        assert channel["vm1_to_vf"]["drops"] == channel["vf_to_vm1"]["drops"] == {}


def test_a_pair_that_is_off_gives_its_frames_back_unsent(tmp_path: Path) -> None:
    """vhost-user, "ring states": transmit buffers are returned, receive buffers left alone."""
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(tmp_path, "a", "--queue-pairs", str(PAIRS)))
        daemon = stack.enter_context(
            pmd("run", "--json", "--lcores", "0", "--vf", "loop", "--device", device.name)
        )
        vm1 = stack.enter_context(Vm1(device.vhost_user))
        first, last = vm1.pairs[0], vm1.pairs[-1]
        vm1.enable(PAIRS - 1, 0)
        last.send(BURST)
        first.send(1)
        wait_for(last.all_sent, "the buffers")
        wait_for(lambda: first.take() == [0], "a frame of another pair")
        assert last.take() == []
        vm1.enable(PAIRS - 1, 1)
        last.send(1)
        wait_for(lambda: last.take() == [BURST], "the first frame after")
        assert daemon.stop() == 0
        (channel,) = daemon.json()["channels"]
        assert channel["vm1_to_vf"]["drops"] == {"disabled": BURST}


def test_frames_for_pairs_that_are_off_come_by_those_that_are_not(tmp_path: Path) -> None:
    """virtio 1.3, 5.1.6.5.6: the VF still gives them their flows, here what they sent."""
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(tmp_path, "a", "--queue-pairs", str(PAIRS)))
        arguments = ("run", "--json", "--lcores", "0-1", "--vf", "loop", "--device", device.name)
        daemon = stack.enter_context(pmd(*arguments))
        vm1 = stack.enter_context(Vm1(device.vhost_user))
        for number in range(2, PAIRS):
            vm1.enable_ring(2 * number, 0)  # receiving alone: what they send comes back
        for pair in vm1.pairs:
            pair.send(BURST)
        got: tuple[list[int], list[int]] = ([], [])

        def all_came() -> bool:
            for numbers, pair in zip(got, vm1.pairs, strict=False):
                numbers.extend(pair.take())
            return sum(map(len, got)) >= PAIRS * BURST

        wait_for(all_came, "the frames of all pairs")
        for numbers in got:
            assert sorted(numbers) == sorted([*range(BURST)] * (PAIRS // 2))
        assert [pair.take() for pair in vm1.pairs[2:]] == [[]] * (PAIRS - 2)
        for number in range(2, PAIRS):
            vm1.enable_ring(2 * number, 1)
        for pair in vm1.pairs[2:]:
            pair.send(1)
            wait_for(lambda pair=pair: pair.take() == [BURST], "a frame by its own ring")  # type: ignore[misc]
        assert daemon.stop() == 0
        (channel,) = daemon.json()["channels"]
        assert channel["vm1_to_vf"]["drops"] == channel["vf_to_vm1"]["drops"] == {}
