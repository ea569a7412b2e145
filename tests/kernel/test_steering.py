"""Several queue pairs at one port (virtio 1.3, 5.1.6.5.6): where each frame goes, and once."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from pmd.kernel import Work
from pmd.steering import Group, Steering, divide
from tests.kernel.holding_port import HoldingPort
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import Rig
from tests.kernel.steering_scene import POOL, RING, Pair, Scene, turned, udp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scapy.packet import Packet

# ---- which flow a frame is of -------------------------------------------------------------------


def _ether(source: int, destination: int, packet: Packet) -> Packet:
    return Ether(src=f"02:00:00:00:00:{source:02}", dst=f"02:00:00:00:00:{destination:02}") / packet


def _both(
    here: dict[str, str], there: dict[str, str], ports: tuple[int, int]
) -> Iterator[tuple[str, Packet]]:
    one, other = ports

    def ip(**fields: Any) -> IP:  # noqa: ANN401 - as scapy has it
        return IP(src=here["4"], dst=there["4"], **fields)

    v4 = ip()
    v6 = IPv6(src=here["6"], dst=there["6"])
    yield "tcp", v4 / TCP(sport=one, dport=other)
    yield "udp with options", ip(options=[IPOption_NOP()] * 8) / UDP(sport=one, dport=other)
    yield "one tag", Dot1Q(vlan=7) / v4 / UDP(sport=one, dport=other)
    yield "two tags", Dot1AD(vlan=7) / Dot1Q(vlan=8) / v4 / UDP(sport=one, dport=other)
    yield "fragment", ip(flags="MF", proto=17) / Raw(one.to_bytes(2, "big") * 20)
    yield "ping", v4 / ICMP(type=8 if one < other else 0, id=3)
    yield "tcp6", v6 / TCP(sport=one, dport=other)
    chain = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
    yield "extensions", v6 / chain / UDP(sport=one, dport=other)
    yield "fragment6", v6 / IPv6ExtHdrFragment(nh=17, m=1) / Raw(one.to_bytes(2, "big") * 20)
    yield "ping6", v6 / ICMPv6EchoRequest(id=3)
    yield "arp", ARP(psrc=here["4"], pdst=there["4"])
    yield "length", Raw(b"\x00\x10" + bytes(40))


_WAN, _VM1 = {"4": "198.51.100.9", "6": "2001:db8::9"}, {"4": "192.0.2.2", "6": "2001:db8::2"}
TO_VM1 = {name: bytes(_ether(1, 2, packet)) for name, packet in _both(_WAN, _VM1, (999, 1001))}
FROM_VM1 = {name: bytes(_ether(2, 1, packet)) for name, packet in _both(_VM1, _WAN, (1001, 999))}


@pytest.mark.parametrize("name", TO_VM1)
def test_a_flow_comes_where_it_was_last_sent_from(name: str) -> None:
    with Scene(4) as scene:
        for number in (3, 1, 0, 2, 1):
            scene.pairs[number].send(FROM_VM1[name])
            for pair in scene.pairs:
                pair.post(4)
            scene.port.arrive(TO_VM1[name], TO_VM1[name])
            scene.settle()
            found = [len(pair.received()) for pair in scene.pairs]
            assert found == [2 * (number == each) for each in range(4)]
        assert [frame for frame, _ in scene.port.sent] == [FROM_VM1[name]] * 5


def test_fragments_of_a_packet_go_one_way() -> None:
    """Those behind the first have no ports: nothing in their place is taken for such."""
    ip = IP(src="198.51.100.9", dst="192.0.2.2", proto=17, id=7)
    fragments = [_ether(1, 2, ip / Raw(bytes([n]) * 64)) for n in range(8)]
    for number, each in enumerate(fragments):
        each[IP].frag, each[IP].flags = 8 * number, "MF" if number < 7 else 0
    with Scene(8) as scene:
        for pair in scene.pairs:
            pair.post(8)
        scene.port.arrive(*map(bytes, fragments))
        scene.settle()
        assert sorted(len(pair.received()) for pair in scene.pairs) == [0] * 7 + [8]


@pytest.mark.parametrize("name", TO_VM1)
def test_a_frame_may_end_anywhere(name: str) -> None:
    whole = TO_VM1[name]
    with Scene(3) as scene:
        for end in range(14, len(whole)):
            for pair in scene.pairs:
                pair.post(1)
            scene.port.arrive(whole[:end])
            scene.settle()
            assert [each for pair in scene.pairs for each in pair.received()] == [whole[:end]]


def test_flows_that_vm1_never_sent_are_spread() -> None:
    with Scene(4) as scene:
        for pair in scene.pairs:
            pair.post(RING)
        scene.port.arrive(*(udp(flow) for flow in range(100)))
        scene.settle()
        counts = [len(pair.received()) for pair in scene.pairs]
        assert sum(counts) == 100
        assert min(counts) >= 12


def test_only_those_that_receive_are_given_frames() -> None:
    """5.1.6.5.5: pairs that VM1 has switched off get none, whatever they send."""
    with Scene(3, receiving=[1]) as scene:
        for pair in scene.pairs:
            pair.post(RING)
        scene.pairs[0].send(turned(udp(5)))
        scene.port.arrive(*(udp(flow) for flow in range(20)))
        scene.settle()
        assert [len(pair.received()) for pair in scene.pairs] == [0, 20, 0]


# ---- each frame once, in order ------------------------------------------------------------------

_ACTION = st.one_of(
    st.tuples(st.just("arrive"), st.integers(0, 5), st.integers(1, 40)),
    st.tuples(st.just("post"), st.integers(0, 3), st.integers(1, RING)),
    st.tuples(st.just("send"), st.integers(0, 3), st.integers(0, 5)),
    st.tuples(st.just("turn"), st.integers(0, 3), st.sampled_from([1, 3, 32])),
)


class Record:
    """Which pairs each frame may go to, as flows move, and where it was found."""

    def __init__(self) -> None:
        self.number = 0
        self.home: dict[int, int] = {}
        self.allowed: dict[int, list[set[int]]] = defaultdict(list)
        self.found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._names: dict[int, tuple[int, int]] = {}

    def arrive(self, flow: int) -> bytes:
        self._names[self.number] = flow, len(self.allowed[flow])
        self.allowed[flow].append({self.home.get(flow, -1)})
        self.number += 1
        return udp(flow, self.number - 1)

    def send(self, flow: int, pair: int) -> None:
        self.home[flow] = pair
        for each in self.allowed[flow]:  # those that nobody was shown yet
            each.add(pair)

    def receive(self, pair: int, frame: bytes) -> None:
        flow, place = self._names.pop(int.from_bytes(frame[42:46], "big"))  # once
        assert frame[:38] == udp(flow)[:38]
        self.found[flow].append((place, pair))

    def judge(self, count: int) -> None:
        for flow, found in self.found.items():
            hashed = {pair for place, pair in found if self.allowed[flow][place] == {-1}}
            assert len(hashed) <= 1
            for place, pair in found:
                allowed = self.allowed[flow][place]
                assert pair in allowed or -1 in allowed
            for each in range(count):
                places = [place for place, pair in found if pair == each]
                assert places == sorted(places)
        assert sum(map(len, self.found.values())) == self.number - len(self._names)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(count=st.integers(2, 3), actions=st.lists(_ACTION, max_size=40))
def test_each_frame_once_and_each_flow_in_order(
    count: int, actions: list[tuple[str, int, int]]
) -> None:
    record = Record()
    with Scene(count) as scene:

        def look() -> None:
            for number, pair in enumerate(scene.pairs):
                for frame in pair.received():
                    record.receive(number, frame)

        for kind, which, much in actions:
            pair = scene.pairs[which % count]
            if kind == "arrive":
                scene.port.arrive(*(record.arrive(which) for _ in range(much)))
            elif kind == "post":
                pair.post(much)
            elif kind == "send":
                record.send(much, which % count)
                pair.send(turned(udp(much)))
            else:
                pair.work.turn(much)
            look()
        while scene.port.given:
            for pair in scene.pairs:
                pair.post(RING)
            scene.settle()
            look()
        record.judge(count)
        dropped = sum(sum(pair.drops.values()) for pair in scene.pairs)
        assert record.number == dropped + sum(map(len, record.found.values()))
        assert {name for pair in scene.pairs for name in pair.drops} <= {"no_buffer"}


def _learn(scene: Scene) -> None:
    for number, pair in enumerate(scene.pairs):
        pair.send(turned(udp(number)))


def test_a_pair_without_buffers_keeps_its_frames_while_it_is_in_nobodys_way() -> None:
    with Scene(2) as scene:
        _learn(scene)
        scene.pairs[1].post(RING)
        scene.port.arrive(*(udp(0, n) for n in range(20)), *(udp(1, n) for n in range(11)))
        scene.settle()
        assert [len(pair.received()) for pair in scene.pairs] == [0, 11]
        scene.pairs[0].post(RING)
        scene.settle()
        assert scene.pairs[0].received() == [udp(0, n) for n in range(20)]
        assert scene.pairs[0].drops == {}


def test_a_pair_without_buffers_does_not_keep_the_others_waiting() -> None:
    with Scene(2) as scene:
        _learn(scene)
        scene.port.arrive(*(udp(0, n) for n in range(3 * POOL)))
        scene.port.arrive(*(udp(1, n) for n in range(POOL)))
        found = []
        for _ in range(20):
            scene.pairs[1].post(RING)
            scene.pairs[1].work.turn(32)
            found += scene.pairs[1].received()
        assert found == [udp(1, n) for n in range(POOL)]
        lost = scene.pairs[0].drops["no_buffer"]
        assert lost >= 2 * POOL
        scene.pairs[0].post(RING)
        scene.settle()
        # The newest are left, as of any queue that is full.
        assert scene.pairs[0].received() == [udp(0, n) for n in range(lost, 3 * POOL)]


def test_a_pair_that_was_not_asked_yet_loses_nothing() -> None:
    """It has buffers: it is only not its turn."""
    with Scene(2) as scene:
        _learn(scene)
        scene.pairs[0].post(RING)
        scene.pairs[1].post(RING)
        scene.port.arrive(*(udp(0, n) for n in range(2 * POOL)), udp(1))
        for _ in range(10):
            scene.pairs[1].work.turn(32)
        assert scene.pairs[0].drops == {}
        for _ in range(3):
            scene.settle()
            assert scene.pairs[0].received()
            scene.pairs[0].post(RING)
            if not scene.port.given:
                break
        assert scene.pairs[1].received() == [udp(1)]


def test_who_has_the_port_next_is_shown_nothing_twice() -> None:
    with Scene(2) as scene:
        _learn(scene)
        scene.pairs[1].post(RING)
        scene.port.arrive(udp(0, 0), udp(1, 1), udp(0, 2), udp(1, 3), udp(0, 4), udp(0, 5))
        scene.settle()
        assert scene.pairs[1].received() == [udp(1, 1), udp(1, 3)]
        scene.steering.close()
        assert [frame for frame, _ in scene.port.given] == [udp(0, 4), udp(0, 5)]
        assert scene.pairs[0].drops == {"no_buffer": 2}


# ---- frames that the VF holds -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Rig, PackedRig])
def test_what_the_vf_is_done_with_goes_back_to_who_sent_it(kind: type[Rig]) -> None:
    port = HoldingPort(lambda number: number % 3 != 2)
    with ExitStack() as stack:
        pairs = [Pair(stack, kind) for _ in range(3)]
        steering = stack.enter_context(
            Steering(port, [pair.rx for pair in pairs])  # type: ignore[arg-type]
        )
        for pair, lane in zip(pairs, steering.ports, strict=True):
            pair.work = Work(pair.tx, None, lane)
        order = [0, 1, 2, 1, 0, 0, 2, 1, 1, 0, 2, 0]
        for number, which in enumerate(order):
            pairs[which].send(udp(which, number))
        held = [which for number, which in enumerate(order) if number % 3 != 2]
        assert port.held == len(held) == 8
        while held:
            port.finish(1)
            held.pop(0)
            for pair in pairs:
                pair.work.turn(32)
            for number, pair in enumerate(pairs):
                # What was done at once waits for what was sent before it.
                assert (pair.tx.in_flight == 0) == (number not in held)
        assert [frame for frame in port.sent if frame] == [
            udp(which, number) for number, which in enumerate(order)
        ]
        for pair in pairs:
            assert pair.work.drain() == 0


# ---- which pairs have which ports ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("receiving", "sending", "ports", "groups"),
    [
        ([0, 1, 2, 3], [], 4, [([0], [0]), ([1], [1]), ([2], [2]), ([3], [3])]),
        ([0, 1, 2, 3], [], 1, [([0, 1, 2, 3], [0])]),
        ([0, 1, 2, 3], [], 2, [([0, 2], [0]), ([1, 3], [1])]),
        ([0], [], 4, [([0], [0, 1, 2, 3])]),
        ([0, 1], [], 4, [([0], [0, 2]), ([1], [1, 3])]),
        ([0], [1, 2], 2, [([0, 1, 2], [0, 1])]),
        ([], [0, 1], 2, [([0, 1], [0, 1])]),
        ([2], [0], 1, [([2, 0], [0])]),
        ([], [], 3, []),
    ],
)
def test_each_port_has_a_pair_and_each_pair_a_port(
    receiving: list[int], sending: list[int], ports: int, groups: list[tuple[list[int], list[int]]]
) -> None:
    expected = [Group(tuple(pairs), tuple(each)) for pairs, each in groups]
    assert list(divide(receiving, sending, ports)) == expected
