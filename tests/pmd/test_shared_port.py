"""VM1 has more queue pairs than its VF, and switches some off (5.1.6.5.5, 5.1.6.5.6)."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from tests.pmd.many_pairs import Vm1
from tests.pmd.processes import Device, pmd
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = 4
FLOWS = 24
ROUNDS = 4


def frame(flow: int, number: int = 0, *, from_vm1: bool = False) -> bytes:
    """A datagram of IPv4 and UDP, to VM1 or back."""
    macs = [b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"]
    addresses = [b"\xc0\0\x02\x01", b"\xc0\0\x02\x02"]
    ports = [1000 + flow, 53]
    for each in (macs, addresses, ports):
        each.sort(reverse=from_vm1 == (each is not ports))
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 32, 0, 0, 64, 17, 0) + b"".join(addresses)
    udp = struct.pack(">HHHH", *ports, 12, 0)
    return b"".join(macs) + b"\x08\x00" + ip + udp + number.to_bytes(4, "big")


class Wire:
    """The other end of `--vf dgram:`."""

    def __init__(self, directory: Path) -> None:
        self.spec = f"dgram:{directory}/vf,{directory}/wire"
        self._vf = str(directory / "vf")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "wire"))

    def send(self, data: bytes) -> None:
        self._socket.sendto(data, self._vf)

    def receive(self) -> bytes:
        self._socket.settimeout(60)
        return self._socket.recv(65536)

    def close(self) -> None:
        self._socket.close()


def where(vm1: Vm1, wire: Wire) -> list[int]:
    """The pair of each flow: every frame comes once, in order, and all of a flow on one pair."""
    numbers: dict[int, list[int]] = {flow: [] for flow in range(FLOWS)}
    homes: dict[int, set[int]] = {flow: set() for flow in range(FLOWS)}

    def look() -> bool:
        for pair, each in enumerate(vm1.pairs):
            for data in each.take_frames():
                flow = struct.unpack_from(">H", data, 34)[0] - 1000
                number = int.from_bytes(data[42:], "big")
                assert data == frame(flow, number)
                numbers[flow].append(number)
                homes[flow].add(pair)
        return sum(map(len, numbers.values())) >= FLOWS * ROUNDS

    for number in range(ROUNDS):
        for flow in range(FLOWS):
            wire.send(frame(flow, number))
    wait_for(look, "the frames")
    assert list(numbers.values()) == [list(range(ROUNDS))] * FLOWS
    assert all(len(each) == 1 for each in homes.values())
    return [each.pop() for each in homes.values()]


def test_frames_come_to_the_pair_that_sends_their_flow(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        wire = Wire(tmp_path)
        stack.callback(wire.close)
        device = stack.enter_context(Device(tmp_path, "a", "--queue-pairs", str(PAIRS)))
        arguments = ("run", "--json", "--lcores", "0-1", "--vf", wire.spec)
        daemon = stack.enter_context(pmd(*arguments, "--device", device.name))
        vm1 = stack.enter_context(Vm1(device.vhost_user, PAIRS))
        vm1.pairs[0].send_frames(frame(0, from_vm1=True))
        assert wire.receive() == frame(0, from_vm1=True)
        assert set(where(vm1, wire)) == set(range(PAIRS))
        for shift in (0, 1):
            homes = [(flow + shift) % PAIRS for flow in range(FLOWS)]
            for flow, pair in enumerate(homes):
                vm1.pairs[pair].send_frames(frame(flow, from_vm1=True))
            for _ in homes:
                wire.receive()
            assert where(vm1, wire) == homes
        for pair in range(1, PAIRS):
            vm1.enable(pair, 0)
        assert where(vm1, wire) == [0] * FLOWS
        vm1.enable(2, 1)
        vm1.pairs[2].send_frames(frame(5, from_vm1=True))
        wire.receive()
        homes = where(vm1, wire)
        assert homes[5] == 2
        assert set(homes) == {0, 2}
        assert daemon.stop() == 0
        (channel,) = daemon.json()["channels"]
        assert channel["vm1_to_vf"]["packets"] == 2 + 2 * FLOWS
        assert channel["vm1_to_vf"]["drops"] == channel["vf_to_vm1"]["drops"] == {}
